"""Attention variants as algebra on `(out, lse)` (An et al. 2025, Table 2 and D.1). A new one is a function and a line in `VARIANTS`.

    default         out                       fixed_bias      out + v'
    context_bias    out + g v'                attention_bias  (1 − g) out + g v'        g = σ(q·k'/√d − lse)
    context_scale   S(x) out, S = 2σ(xW + b)  sigmoid         Σ σ(q·k/√d + b) v
    softmax1        (1 − g) out, g = σ(−lse)  learned_sink    (1 − g) out, g = σ(b_h − lse)
    gate            σ(x W_g) out, per head    gate_elements   σ(x W_g) ∘ out, per element
    softpick        Σ max(e^s − 1, 0) v / Σ |e^s − 1|, s = q·k/√d

Those of the last three lines are its successors: softmax1 of Miller 2023, learned_sink of gpt-oss (OpenAI 2025), gates of Qiu et al. 2025,
softpick of Zuhri et al. 2025.

k' and v' are one vector per head; (d) may have M of them per key head instead, at positions −M … −1. (c) and (d) are the paper's formulas with the extra key appended, once the softmax is expanded, so all
but `sigmoid` and `softpick` run at the speed of any softmax kernel.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from sysout_jax.attention.extra_key import (
    Among,
    among,
    beside,
    kept,
    per_head,
    sink_odds,
    with_sink,
)
from sysout_jax.attention.kernels import attend
from sysout_jax.attention.rows import Attended, accumulator
from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.linear import INIT, dense


class Mixed(NamedTuple):
    """What a variant returns: what its kernel gave, with `out` (B, T, H, Dh) as the variant makes it, and the scale c(x) on it.

    `scale` gives (B, H, T) and is called only when it is recorded; None where the variant has none. `lse` (B, H, T) is that of all keys where
    the variant adds some; None: the kernel's. `mass` gives (B, H, T), the attention that goes to extra keys or a sink logit; None where there is
    neither.
    """

    attended: Attended
    scale: Callable[[], jax.Array] | None = None
    lse: jax.Array | None = None
    mass: Callable[[], jax.Array] | None = None


#: Zuhri et al.'s, against 0/0 where all logits are 0.
SOFTPICK_EPS = 1e-6

#: `variant(module, x, q, k, v, kernel, spec)`: `module` is the attention module whose parameters it may declare, `x` (B, T, D) its input.
Variant = Callable[..., Mixed]


def _vectors(module: nn.Module, name: str) -> jax.Array:
    """(H, Dh) parameter: one vector per head."""
    heads = module.spec.heads
    return module.param(name, INIT, (heads.heads, heads.head_dim), module.param_dtype)


def _of_key_heads(module: nn.Module, name: str) -> jax.Array:
    """(M, H, Dh) from an (M, K, Dh) parameter: M vectors per key head, each for all of its query heads."""
    heads, count = module.spec.heads, module.cfg.extra_keys
    shape = (count, heads.kv_heads, heads.head_dim)
    vectors_MxKxDh = module.param(name, INIT, shape, module.param_dtype)
    return jnp.repeat(vectors_MxKxDh, heads.heads // heads.kv_heads, axis=1)


def default(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(a): softmax attention."""
    return Mixed(attend(q, k, v, kernel=kernel, spec=spec))


def fixed_bias(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(b): a constant vector per head is added."""
    attended = attend(q, k, v, kernel=kernel, spec=spec)
    value = _vectors(module, "v_extra").astype(attended.out.dtype)
    return Mixed(attended._replace(out=attended.out + value[None, None]))


def context_bias(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(c): the constant vector is weighted by the attention that an extra key would take."""
    key, value = _vectors(module, "k_extra"), _vectors(module, "v_extra")
    attended, g_BxHxT = beside(q, k, v, key, kernel, spec)
    added = per_head(g_BxHxT, value.astype(attended.out.dtype)[None, None])
    return Mixed(attended._replace(out=attended.out + added), mass=lambda: g_BxHxT)


def _shared(among: Among) -> Mixed:
    """Of a softmax in which the keys of the text have no more than their share."""
    odds = among.odds
    return Mixed(among.attended, lambda: kept(odds()), among.lse, lambda: kept(-odds()))


def attention_bias(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(d): an extra key and value take part in the softmax; with `extra_keys` so many of every key head, at the positions before the text."""
    placed = module.cfg.extra_keys > 0
    if placed:
        keys, values = _of_key_heads(module, "k_extra"), _of_key_heads(module, "v_extra")
    else:
        keys, values = _vectors(module, "k_extra")[None], _vectors(module, "v_extra")[None]
    return _shared(among(q, k, v, keys, values, kernel, spec, placed))


def context_scale(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(e): a scale per token and head, between 0 and 2, read from the input of attention."""
    attended = attend(q, k, v, kernel=kernel, spec=spec)
    project = dense(module, module.cfg.num_heads, "scale_proj", True)
    logit_BxTxH = project(x_BxTxD).astype(jnp.promote_types(module.dtype, jnp.float32))
    scale_BxHxT = 2.0 * jax.nn.sigmoid(logit_BxTxH).transpose(0, 2, 1)
    scaled = attended._replace(out=per_head(scale_BxHxT, attended.out))
    return Mixed(scaled, lambda: scale_BxHxT)


def sigmoid(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """(f): weights that need not sum to one."""
    return Mixed(attend(q, k, v, kernel=kernel, spec=spec))


def softmax1(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """One is added to what a row is divided by, as by a key whose logit is 0 and whose value is 0 (Miller 2023)."""
    zeros_H = jnp.zeros((q.shape[2],), accumulator(q.dtype))
    return _shared(with_sink(q, k, v, zeros_H, kernel, spec))


def learned_sink(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """The same with a trained logit per head."""
    sink_H = module.param("sink", INIT, (q.shape[2],), module.param_dtype)
    return _shared(with_sink(q, k, v, sink_H, kernel, spec))


def beside_own_sink(module: nn.Module, mixed: Mixed) -> Mixed:
    """Any of them with a trained logit per head beside all of its keys (gpt-oss); `scale` and `mass` are those of both."""
    attended, scale, mass = mixed.attended, mixed.scale, mixed.mass
    whole_BxHxT = attended.lse if mixed.lse is None else mixed.lse
    assert whole_BxHxT is not None
    sink_H = module.param("sink", INIT, (attended.out.shape[2],), module.param_dtype)
    odds_BxHxT = sink_odds(sink_H, whole_BxHxT)
    left_BxHxT, taken_BxHxT = kept(odds_BxHxT), kept(-odds_BxHxT)
    return mixed._replace(
        attended=attended._replace(out=per_head(left_BxHxT, attended.out)),
        scale=lambda: left_BxHxT if scale is None else left_BxHxT * scale(),
        mass=lambda: taken_BxHxT if mass is None else taken_BxHxT + left_BxHxT * mass(),
    )


def gate(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """A scale per token and head, between 0 and 1, read from the input of attention (Qiu et al. 2025, G1 head by head)."""
    attended = attend(q, k, v, kernel=kernel, spec=spec)
    gate_BxHxT = _gate(module, x_BxTxD, q.shape[2]).transpose(0, 2, 1)
    return Mixed(attended._replace(out=per_head(gate_BxHxT, attended.out)), lambda: gate_BxHxT)


def gate_elements(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """The same for every element of a head's output; its scale is their mean."""
    attended = attend(q, k, v, kernel=kernel, spec=spec)
    out = attended.out
    gate_BxTxHxDh = _gate(module, x_BxTxD, math.prod(out.shape[2:])).reshape(out.shape)
    gated = (gate_BxTxHxDh * out.astype(gate_BxTxHxDh.dtype)).astype(out.dtype)
    return Mixed(
        attended._replace(out=gated), lambda: gate_BxTxHxDh.mean(axis=-1).transpose(0, 2, 1)
    )


def _gate(module: nn.Module, x_BxTxD, count: int) -> jax.Array:
    """σ(x W_g), (B, T, count), at least float32."""
    logit = dense(module, count, "out_gate_proj", False)(x_BxTxD)
    return jax.nn.sigmoid(logit.astype(accumulator(module.dtype)))


def softpick(module, x_BxTxD, q, k, v, kernel, spec) -> Mixed:
    """Weights that may all be 0: neither must they sum to one (Zuhri et al. 2025)."""
    return Mixed(attend(q, k, v, kernel=kernel, spec=spec))


def attention_spec(cfg, plain: AttentionSpec, length: int) -> AttentionSpec:
    """The rule behind the weights of a layer, by itself `plain`, over sequences of `length` tokens; a window that none leaves is none.

    b of sigmoid attention is −log of the context length, so that a prefix keeps its meaning, or of the current length as in the paper's
    published code.
    """
    if plain.window is not None and plain.window >= length + cfg.extra_keys:
        plain = dataclasses.replace(plain, window=None)
    if cfg.attention == "softpick":
        return dataclasses.replace(plain, softpick=SOFTPICK_EPS)
    if cfg.attention != "sigmoid":
        return plain
    positions = cfg.context_length if cfg.sigmoid_bias == "context" else length
    return dataclasses.replace(plain, sigmoid=-math.log(positions))


VARIANTS: dict[str, Variant] = {
    "default": default,
    "fixed_bias": fixed_bias,
    "context_bias": context_bias,
    "attention_bias": attention_bias,
    "context_scale": context_scale,
    "sigmoid": sigmoid,
    "softmax1": softmax1,
    "learned_sink": learned_sink,
    "gate": gate,
    "gate_elements": gate_elements,
    "softpick": softpick,
}
