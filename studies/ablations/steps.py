"""How many diffusion sub-steps does a layer need, with attention and without?

6 numbers of steps x 2 attentions x 3 seeds on two digits and a cue (no download), of two and a half times as many
training steps as in `axes`: without attention, many sub-steps learn late. About 40 s a run on one CPU core.

    python -m studies run steps
"""

from studies.ablations.axes import ldn
from studies.spec import Budget, with_field
from studies.study import Study

STUDY = Study(
    question="How many diffusion sub-steps does a layer need, with attention and without?",
    reference="ldn",
    arms={"ldn": with_field(ldn, "budget", Budget(steps=1500))},
    factors={"model.attention": ["diffusion", "none"], "model.steps": [0, 1, 2, 4, 8, 16]},
    design="crossed",
)
