"""Attention variants as algebra on `(out, lse)` (An et al. 2025, Table 2 and D.1). A new one is a function and a line in `VARIANTS`.

    default         out                       fixed_bias      out + v'
    context_bias    out + g v'                attention_bias  (1 − g) out + g v'        g = σ(q·k'/√d − lse)
    context_scale   S(x) out, S = 2σ(xW + b)  sigmoid         Σ σ(q·k/√d + b) v

k' and v' are one vector per head. (c) and (d) are the paper's formulas with the extra key appended, once the softmax is expanded, so all
but `sigmoid` run at the speed of any softmax kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.attention.blocks import Attended
from sysout_jax.attention.kernels import attend, attend_with_key, per_head

INIT = nn.initializers.normal(0.02)


class Mixed(NamedTuple):
    """What a variant returns: heads' outputs (B, T, H, Dh), the scale c(x) on them (B, H, T) or None, and what the kernel gave."""

    out: jax.Array
    scale: jax.Array | None
    attended: Attended


#: `variant(module, x, q, k, v, kernel)`: `module` is the attention module whose parameters it may declare, `x` (B, T, D) its input.
Variant = Callable[..., Mixed]


def _vectors(module: nn.Module, name: str) -> jax.Array:
    """(H, Dh) parameter: one vector per head."""
    shape = (module.cfg.num_heads, module.cfg.head_dim)
    return module.param(name, INIT, shape, module.param_dtype)


def _added(out_BxTxHxDh, values_HxDh, g_BxHxT=None) -> jax.Array:
    values = values_HxDh.astype(out_BxTxHxDh.dtype)[None, None]
    if g_BxHxT is not None:
        values = per_head(g_BxHxT, jnp.broadcast_to(values, out_BxTxHxDh.shape))
    return out_BxTxHxDh + values


def default(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(a): softmax attention."""
    attended = attend(q, k, v, kernel=kernel)
    return Mixed(attended.out, None, attended)


def fixed_bias(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(b): a constant vector per head is added."""
    attended = attend(q, k, v, kernel=kernel)
    return Mixed(_added(attended.out, _vectors(module, "v_extra")), None, attended)


def context_bias(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(c): the constant vector is weighted by the attention that an extra key would take."""
    key, value = _vectors(module, "k_extra"), _vectors(module, "v_extra")
    _, g_BxHxT, attended = attend_with_key(q, k, v, key, kernel=kernel)
    return Mixed(_added(attended.out, value, g_BxHxT), None, attended)


def attention_bias(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(d): an extra key and value take part in the softmax."""
    key, value = _vectors(module, "k_extra"), _vectors(module, "v_extra")
    kept, g_BxHxT, attended = attend_with_key(q, k, v, key, kernel=kernel)
    return Mixed(_added(kept, value, g_BxHxT), 1.0 - g_BxHxT, attended)


def context_scale(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(e): a scale per token and head, between 0 and 2, read from the input of attention."""
    attended = attend(q, k, v, kernel=kernel)
    cfg = module.cfg
    project = nn.Dense(
        cfg.num_heads, True, module.dtype, module.param_dtype, kernel_init=INIT, name="scale_proj"
    )
    logit_BxTxH = project(x_BxTxD).astype(jnp.promote_types(module.dtype, jnp.float32))
    scale_BxHxT = 2.0 * jax.nn.sigmoid(logit_BxTxH).transpose(0, 2, 1)
    return Mixed(per_head(scale_BxHxT, attended.out), scale_BxHxT, attended)


def sigmoid(module, x_BxTxD, q, k, v, kernel) -> Mixed:
    """(f): weights that need not sum to one."""
    attended = attend(q, k, v, kernel=kernel, bias=sigmoid_bias(module.cfg, q.shape[1]))
    return Mixed(attended.out, None, attended)


def sigmoid_bias(cfg, length: int) -> float | None:
    """b of sigmoid attention, None for the softmax variants. −log of the context length, so that a prefix keeps its meaning, or
    of the current length as in the paper's published code."""
    if cfg.attention != "sigmoid":
        return None
    return -math.log(cfg.context_length if cfg.sigmoid_bias == "context" else length)


VARIANTS: dict[str, Variant] = {
    "default": default,
    "fixed_bias": fixed_bias,
    "context_bias": context_bias,
    "attention_bias": attention_bias,
    "context_scale": context_scale,
    "sigmoid": sigmoid,
}
