"""LDN's operators as fused GPU kernels, in Triton: the same maths as `ldn.reference`, in as few passes as it takes."""

from ldn.kernels.diffusion import diffuse

__all__ = ["diffuse"]
