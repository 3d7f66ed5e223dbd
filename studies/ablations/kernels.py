"""What should tokens diffuse along: a fixed, learned, dilated, dense or content-adaptive kernel?

9 arms x 3 seeds on two digits and a cue (no download), without attention, so that only diffusion carries information
from token to token; 4 sub-steps a layer. Two and a half times as many training steps as in `axes`, for most learn
late: about 40 s a run on one CPU core.

    python -m studies run kernels
"""

from studies.ablations.axes import ldn
from studies.spec import Budget, with_field, with_fields
from studies.study import Study

alone = with_fields(ldn, {"model.attention": "none", "model.steps": 4, "budget": Budget(steps=1500)})
stationary = with_field(alone, "model.kernel", "stationary")
wide = with_field(stationary, "model.radius", 4)

STUDY = Study(
    question="What should tokens diffuse along, when diffusion alone mixes them?",
    reference="multiscale",
    arms={
        "multiscale": alone,
        "multiscale, asymmetric": with_field(alone, "model.symmetric", False),
        "multiscale, radius 2": with_field(alone, "model.radius", 2),
        "fixed": with_field(alone, "model.kernel", "fixed"),
        "stationary, radius 4": wide,
        "stationary, radius 4, asymmetric": with_field(wide, "model.symmetric", False),
        "adaptive": with_field(alone, "model.kernel", "adaptive"),
        "dense": with_field(alone, "model.kernel", "dense"),
        "no diffusion": with_field(alone, "model.steps", 0),
    },
)
