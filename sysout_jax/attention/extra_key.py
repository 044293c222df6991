"""Attention with keys and values of the layer's own beside those of the text: the variants (c) and (d).

A kernel with `lse` needs no more than `g = σ(lse' − lse)`, the attention that they take together, where lse' is the log-sum-exp of their logits
(expand the softmax). On a fused kernel, whose log-sum-exp has no gradient, they become the first positions, with queries that nobody reads:
causal attention over T + M positions.
"""

from __future__ import annotations

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
    scale: Callable[[], jax.Array]  # 1 − g (B, H, T)
    lse: jax.Array | None  # (B, H, T) of all keys; None from a kernel without


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
        scale_BxHxT = jax.nn.sigmoid(-odds_BxHxT)  # 1 − σ(odds), without cancellation
        weights_MxBxHxT = jax.nn.sigmoid(odds_BxHxT)[None] * jnp.exp(
            logits_MxBxHxT - own_BxHxT[None]
        )
        added = per_head(scale_BxHxT, attended.out)
        for weight_BxHxT, value_HxDv in zip(weights_MxBxHxT, values_MxHxDv, strict=True):
            value = value_HxDv.astype(attended.out.dtype)[None, None]
            added = added + per_head(weight_BxHxT, value)
        lse_BxHxT = jnp.logaddexp(attended.lse, own_BxHxT)
        return Among(attended._replace(out=added), lambda: scale_BxHxT, lse_BxHxT)

    def scale() -> jax.Array:
        # only for the record, by a kernel that has lse
        lse_BxHxT = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel="blockwise", spec=spec).lse
        assert lse_BxHxT is not None
        logits_MxBxHxT = _logits(q_BxTxHxDh, keys_MxHxDh, spec, placed)
        return jax.nn.sigmoid(lse_BxHxT - jax.nn.logsumexp(logits_MxBxHxT, axis=0))

    mixed = _prepended(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, keys_MxHxDh, values_MxHxDv, name, spec)
    return Among(Attended(mixed, None, None), scale, None)


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


def _kernel(kernel: str, dtype, spec: AttentionSpec, placed: bool) -> str:
    """A fused kernel has the layer's own keys at the first positions: right where they are `placed` there, else not with a window
    or a distance, which are left to `blockwise`."""
    name = resolve_kernel(kernel, dtype, spec=spec)
    if KERNELS[name].rows or placed or not spec.features & {"window", "alibi"}:
        return name
    if kernel == "auto":
        return "blockwise"
    raise ValueError(
        f"attention kernel {kernel!r} does not compute an extra key beside {', '.join(sorted(spec.features))}; "
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
