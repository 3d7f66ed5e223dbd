"""Which of LDN's axes carries its accuracy?

One factor at a time around the preset, on two real digits and a cue (no download), beside baselines of as many
parameters. 17 arms x 5 seeds, about 10 s a run on one CPU core. Expected: the reference near 97 %, without
attention or mixing near 54 %.

    python -m studies tune axes    (16 trials an arm, 40 minutes on two CPU cores; axes.tuned.json is what it found)
    python -m studies run axes
"""

from baselines import LinearConfig, RNNConfig, TransformerConfig, ViTConfig
from ldn import LDNConfig
from studies.spec import Budget, Optimiser, RunSpec, with_field, with_fields
from studies.study import Study
from studies.tasks.digits import CuedDigits
from studies.tuning import Tuning

ldn = RunSpec(
    model=LDNConfig(width=48, depth=2),
    task=CuedDigits(),
    optim=Optimiser(lr=4e-3),
    batch=64,
    budget=Budget(steps=600),
)
image = with_field(ldn, "task", CuedDigits(view="image"))  # the same digits, laid out for patches

STUDY = Study(
    question="Which of LDN's axes carries its accuracy?",
    reference="ldn",
    arms={
        "ldn": ldn,
        "no mixing": with_fields(ldn, {"model.steps": 0, "model.attention": "none"}),
        "linear": with_field(ldn, "model", LinearConfig()),
        "Transformer": with_field(ldn, "model", TransformerConfig(depth=2)),
        "BiLSTM": with_field(ldn, "model", RNNConfig(cell="lstm", bidirectional=True)),
        "ViT": with_field(image, "model", ViTConfig(depth=2, heads=4, patch=8)),
    },
    factors={
        "model.steps": [0, 8],
        "model.kernel": ["fixed", "dense", "adaptive"],
        "model.time_step": ["fixed", "token"],
        "model.attention": ["none", "linear", "softmax"],
        "model.local": [False],
    },
    match="params",
    seeds=(10, 11, 12, 13, 14),  # no setting was chosen at these
    tuning=Tuning(
        space={"optim.lr": (1e-3, 3e-2, "log"), "optim.label_smoothing": [0.0, 0.1]},
        trials=16,
    ),
)
