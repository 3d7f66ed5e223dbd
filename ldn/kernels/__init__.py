"""LDN's operators as fused GPU kernels, in Triton: the same maths as `ldn.reference`, in as few passes as it takes."""

from ldn.kernels.attention import linear_attention
from ldn.kernels.attention import refusal as attention_refusal
from ldn.kernels.diffusion import diffuse

__all__ = ["attention_refusal", "diffuse", "linear_attention"]
