"""Attention: the mathematics of the variants and the kernels that compute `(out, lse)`."""

from sysout_jax.attention.kernels import Attended, attend, attention_map, resolve_kernel

__all__ = ["Attended", "attend", "attention_map", "resolve_kernel"]
