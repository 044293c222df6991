"""Attention: the mathematics of the variants and the kernels that compute `(out, lse)`."""

from sysout_jax.attention.kernels import attend, attention_map, resolve_kernel
from sysout_jax.attention.rows import Attended
from sysout_jax.attention.variants import VARIANTS, sigmoid_bias

__all__ = ["VARIANTS", "Attended", "attend", "attention_map", "resolve_kernel", "sigmoid_bias"]
