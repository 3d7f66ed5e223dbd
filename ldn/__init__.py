"""Linear Diffusion Networks: the model, its operator, and the parts it shares with its baselines."""

from ldn.classifier import Classifier, InputSpec, ModelConfig, Stem, TargetSpec
from ldn.config import Config
from ldn.model import LDN, LDNConfig, LDNLayer
from ldn.ops import diffuse, linear_attention
from ldn.published import PaperSequenceConfig, PaperVisionConfig

__all__ = [
    "LDN",
    "Classifier",
    "Config",
    "InputSpec",
    "LDNConfig",
    "LDNLayer",
    "ModelConfig",
    "PaperSequenceConfig",
    "PaperVisionConfig",
    "Stem",
    "TargetSpec",
    "diffuse",
    "linear_attention",
]
