"""Which of LDN's terms carries the accuracy, alone and together?

Diffusion, local and attention, each on and off, all 8 combinations x 3 seeds on two digits and a cue (no download);
about 10 s a run on one CPU core. Found: attention alone carries it, 96 to 97 % with and 51 to 54 % without.

    python -m studies run components
"""

from studies.ablations.axes import ldn
from studies.study import Study

STUDY = Study(
    question="Which of LDN's terms carries the accuracy, alone and together?",
    reference="ldn",
    arms={"ldn": ldn},
    factors={"model.steps": [2, 0], "model.attention": ["diffusion", "none"], "model.local": [True, False]},
    design="crossed",
)
