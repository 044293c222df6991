"""Attention: the mathematics of the variants and the kernels that compute `(out, lse)`."""

from sysout_jax.attention.kernels import attend, attention_map, resolve_kernel
from sysout_jax.attention.rows import Attended
from sysout_jax.attention.spec import PLAIN, AttentionSpec
from sysout_jax.attention.variants import VARIANTS, attention_spec

__all__ = [
    "PLAIN",
    "VARIANTS",
    "Attended",
    "AttentionSpec",
    "attend",
    "attention_map",
    "attention_spec",
    "resolve_kernel",
]
