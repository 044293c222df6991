"""Attention with keys and values of the layer's own beside those of the text, the variants (c) and (d), or with a logit that has no value, a sink.

A kernel with `lse` needs no more than `g = σ(lse' − lse)`, the attention that they take together, where lse' is the log-sum-exp of their logits
(expand the softmax). On a fused kernel, whose log-sum-exp has no gradient, they become the first positions, with queries that nobody reads:
causal attention over T + M positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sysout_jax.attention.kernels import KERNELS, attend, resolve_kernel
from sysout_jax.attention.rows import Attended, accumulator
from sysout_jax.attention.spec import AttentionSpec


class Among(NamedTuple):
    """Attention over the keys of the text and those of the layer."""

    attended: Attended  # `out` of all keys, `lse` and `sums` of the real ones alone
    odds: Callable[[], jax.Array]  # (B, H, T) g is σ of it, see `kept`
    lse: jax.Array | None  # (B, H, T) of all keys; None from a kernel without


def kept(odds: jax.Array) -> jax.Array:
    """1 − σ(odds), what the keys of the text keep; σ(odds) is `kept(−odds)`. Neither it nor its gradient is 0 before float32 ends."""
    return jnp.exp(jax.nn.log_sigmoid(-odds))


def sink_odds(sink_H: jax.Array, lse_BxHxT: jax.Array) -> jax.Array:
    """(B, H, T) of one logit per head, without a value, against the keys that `lse` is of."""
    return sink_H.astype(lse_BxHxT.dtype)[None, :, None] - lse_BxHxT


def with_sink(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, sink_H, kernel: str, spec: AttentionSpec
) -> Among:
    """Softmax over the keys and one logit per head that has no value: `(1 − g) out`.

    A kernel without `lse` has it as the first key: two more channels, in which every query is 1, hold the logit, since one number of half
    precision would round it too much.
    """
    name = _kernel(kernel, q_BxTxHxDh.dtype, spec, placed=False, own_logit=True)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name, spec=spec)
        assert attended.lse is not None
        odds_BxHxT = sink_odds(sink_H, attended.lse)
        out = per_head(kept(odds_BxHxT), attended.out)
        return Among(attended._replace(out=out), lambda: odds_BxHxT, None)
    dtype, Dh = q_BxTxHxDh.dtype, q_BxTxHxDh.shape[-1]
    scale = spec.scale_of(Dh)
    logit_H = sink_H.astype(accumulator(dtype)) / scale
    high_H = logit_H.astype(dtype)
    low_H = (logit_H - high_H.astype(logit_H.dtype)).astype(dtype)
    beside_it = ((0, 0), (0, 0), (0, 0), (0, 2))
    q = jnp.pad(q_BxTxHxDh, beside_it, constant_values=1)
    k = jnp.pad(k_BxSxKxDh, beside_it)
    key_HxDh2 = jnp.pad(jnp.stack([high_H, low_H], axis=-1), ((0, 0), (Dh, 0)))
    value_HxDv = jnp.zeros((len(sink_H), v_BxSxKxDv.shape[-1]), v_BxSxKxDv.dtype)
    wider = dataclasses.replace(spec, scale=scale)
    mixed = _prepended(q, k, v_BxSxKxDv, key_HxDh2[None], value_HxDv[None], name, wider)

    def odds() -> jax.Array:
        return sink_odds(sink_H, _lse(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec))

    return Among(Attended(mixed, None, None), odds, None)


def _lse(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec) -> jax.Array:
    """(B, H, T), only for the record, by a kernel that has it."""
    lse_BxHxT = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel="blockwise", spec=spec).lse
    assert lse_BxHxT is not None
    return lse_BxHxT


def beside(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, kernel: str, spec: AttentionSpec
) -> tuple[Attended, jax.Array]:
    """Attention without the one key k' of every query head, and g (B, H, T)."""
    name = _kernel(kernel, q_BxTxHxDh.dtype, spec, placed=False)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name, spec=spec)
        assert attended.lse is not None
        logit_BxHxT = _logits(q_BxTxHxDh, key_HxDh[None], spec, placed=False)[0]
        return attended, jax.nn.sigmoid(logit_BxHxT - attended.lse)
    # Two more value channels give g and 1 − g, each to its own relative precision: out must not suffer where g is nearly 1.
    ones = jnp.ones_like(v_BxSxKxDv[..., :1])
    real = jnp.concatenate([v_BxSxKxDv, jnp.zeros_like(ones), ones], axis=-1)
    H, Dv = q_BxTxHxDh.shape[2], v_BxSxKxDv.shape[-1]
    value_HxDv2 = jnp.zeros((H, Dv + 2), real.dtype).at[:, Dv].set(1)
    mixed = _prepended(q_BxTxHxDh, k_BxSxKxDh, real, key_HxDh[None], value_HxDv2[None], name, spec)
    kept_BxTxHxDv = mixed[..., :Dv]
    g_BxHxT, rest_BxHxT = mixed[..., Dv:].transpose(3, 0, 2, 1).astype(accumulator(mixed.dtype))
    # where nothing is left for the real keys, kept is zero too
    rest_BxHxT = jnp.maximum(rest_BxHxT, jnp.finfo(rest_BxHxT.dtype).tiny)
    return Attended(per_head(1.0 / rest_BxHxT, kept_BxTxHxDv), None, None), g_BxHxT


def among(
    q_BxTxHxDh,
    k_BxSxKxDh,
    v_BxSxKxDv,
    keys_MxHxDh,
    values_MxHxDv,
    kernel: str,
    spec: AttentionSpec,
    placed: bool,
) -> Among:
    """Softmax over the real keys and M of the layer's own: `(1 − g) out + Σ_m g_m v'_m`.

    `placed` keys stand at the positions −M … −1: their distance counts and a window leaves them. Others are as near to every query.
    """
    name = _kernel(kernel, q_BxTxHxDh.dtype, spec, placed)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name, spec=spec)
        assert attended.lse is not None
        logits_MxBxHxT = _logits(q_BxTxHxDh, keys_MxHxDh, spec, placed)
        own_BxHxT = jax.nn.logsumexp(logits_MxBxHxT, axis=0)
        odds_BxHxT = own_BxHxT - attended.lse
        weights_MxBxHxT = kept(-odds_BxHxT)[None] * jnp.exp(logits_MxBxHxT - own_BxHxT[None])
        added = per_head(kept(odds_BxHxT), attended.out)
        for weight_BxHxT, value_HxDv in zip(weights_MxBxHxT, values_MxHxDv, strict=True):
            value = value_HxDv.astype(attended.out.dtype)[None, None]
            added = added + per_head(weight_BxHxT, value)
        lse_BxHxT = jnp.logaddexp(attended.lse, own_BxHxT)
        return Among(attended._replace(out=added), lambda: odds_BxHxT, lse_BxHxT)

    def odds() -> jax.Array:
        logits_MxBxHxT = _logits(q_BxTxHxDh, keys_MxHxDh, spec, placed)
        lse_BxHxT = _lse(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec)
        return jax.nn.logsumexp(logits_MxBxHxT, axis=0) - lse_BxHxT

    mixed = _prepended(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, keys_MxHxDh, values_MxHxDv, name, spec)
    return Among(Attended(mixed, None, None), odds, None)


def _logits(q_BxTxHxDh, keys_MxHxDh, spec: AttentionSpec, placed: bool) -> jax.Array:
    """(M, B, H, T) of the layer's own keys; where a query does not see one, so low that it takes nothing."""
    dtype = accumulator(q_BxTxHxDh.dtype)
    logits_MxBxHxT = jnp.einsum(
        "bthd,mhd->mbht",
        q_BxTxHxDh,
        keys_MxHxDh.astype(q_BxTxHxDh.dtype),
        preferred_element_type=dtype,
    )
    logits_MxBxHxT = spec.capped(spec.scale_of(q_BxTxHxDh.shape[-1]) * logits_MxBxHxT)
    if not placed:
        return logits_MxBxHxT
    M, T = len(keys_MxHxDh), q_BxTxHxDh.shape[1]
    distance_MxT = jnp.arange(T)[None] + M - jnp.arange(M)[:, None]
    slopes_H = spec.slopes()
    if slopes_H is not None:
        far_MxHxT = slopes_H.astype(dtype)[None, :, None] * distance_MxT[:, None].astype(dtype)
        logits_MxBxHxT = logits_MxBxHxT - far_MxHxT[:, None]
    if spec.window is None:
        return logits_MxBxHxT
    # no −inf: with all keys out of the window its log-sum-exp has no gradient
    return jnp.where(
        spec.sees(distance_MxT)[:, None, None], logits_MxBxHxT, jnp.finfo(dtype).min / 2
    )


def _kernel(kernel: str, dtype, spec: AttentionSpec, placed: bool, own_logit: bool = False) -> str:
    """A fused kernel has the layer's own keys at the first positions: right where they are `placed` there, else not with a window
    or a distance, nor an `own_logit`, which is no q·k', with a cap; these are left to `blockwise`."""
    name = resolve_kernel(kernel, dtype, spec=spec)
    not_there = {"window", "alibi", *(["softcap"] if own_logit else [])}
    if KERNELS[name].rows or placed or not spec.features & not_there:
        return name
    if kernel == "auto":
        return "blockwise"
    raise ValueError(
        f"attention kernel {kernel!r} does not compute an extra key or a sink beside {', '.join(sorted(spec.features))}; "
        "use auto, blockwise or reference"
    )


def _prepended(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, keys_MxHxDh, values_MxHxDv, kernel: str, spec: AttentionSpec
):
    B, _, H, Dh = q_BxTxHxDh.shape
    M, group = len(keys_MxHxDh), H // k_BxSxKxDh.shape[2]

    def with_first(x_BxSxKxD, first_MxHxD):
        first = jnp.broadcast_to(first_MxHxD.astype(x_BxSxKxD.dtype)[None], (B, *first_MxHxD.shape))
        return jnp.concatenate([first, jnp.repeat(x_BxSxKxD, group, axis=2)], axis=1)

    q = jnp.concatenate([jnp.zeros((B, M, H, Dh), q_BxTxHxDh.dtype), q_BxTxHxDh], axis=1)
    k, v = with_first(k_BxSxKxDh, keys_MxHxDh), with_first(v_BxSxKxDv, values_MxHxDv)
    return attend(q, k, v, kernel=kernel, spec=spec).out[:, M:]


def per_head(scale_BxHxT, x_BxTxHxD) -> jax.Array:
    """Multiply every head's vector by a number per query, (B, T, H, D) in x's dtype; x may have B and T of 1."""
    scale_BxTxHx1 = scale_BxHxT.transpose(0, 2, 1)[..., None]
    return (scale_BxTxHx1 * x_BxTxHxD.astype(scale_BxHxT.dtype)).astype(x_BxTxHxD.dtype)
