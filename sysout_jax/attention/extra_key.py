"""Attention with one more key per query head, k', that every query sees: the variants (c) and (d).

A kernel with `lse` needs no more than `g = σ(q·k'/√d − lse)`, the attention that k' takes (expand the softmax). On a fused kernel, whose
log-sum-exp has no gradient, k' becomes position 0, with a query that nobody reads: causal attention over T + 1 positions.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sysout_jax.attention.kernels import KERNELS, attend, resolve_kernel
from sysout_jax.attention.rows import Attended, accumulator
from sysout_jax.attention.spec import AttentionSpec


def beside(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, kernel: str, spec: AttentionSpec
) -> tuple[Attended, jax.Array]:
    """Attention without k', and g (B, H, T)."""
    name = _kernel(kernel, q_BxTxHxDh.dtype, spec)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name, spec=spec)
        return attended, jax.nn.sigmoid(_log_odds(q_BxTxHxDh, key_HxDh, attended.lse, spec))
    # Two more value channels give g and 1 − g, each to its own relative precision: out must not suffer where g is nearly 1.
    ones = jnp.ones_like(v_BxSxKxDv[..., :1])
    real = jnp.concatenate([v_BxSxKxDv, jnp.zeros_like(ones), ones], axis=-1)
    H, Dv = q_BxTxHxDh.shape[2], v_BxSxKxDv.shape[-1]
    value_HxDv2 = jnp.zeros((H, Dv + 2), real.dtype).at[:, Dv].set(1)
    mixed = _prepended(q_BxTxHxDh, k_BxSxKxDh, real, key_HxDh, value_HxDv2, name, spec)
    kept_BxTxHxDv = mixed[..., :Dv]
    g_BxHxT, rest_BxHxT = mixed[..., Dv:].transpose(3, 0, 2, 1).astype(accumulator(mixed.dtype))
    # where nothing is left for the real keys, kept is zero too
    rest_BxHxT = jnp.maximum(rest_BxHxT, jnp.finfo(rest_BxHxT.dtype).tiny)
    return Attended(per_head(1.0 / rest_BxHxT, kept_BxTxHxDv), None, None), g_BxHxT


def among(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, value_HxDv, kernel: str, spec: AttentionSpec
) -> tuple[Attended, Callable[[], jax.Array]]:
    """`(1 − g) out + g v'` with `lse` and `sums` of the real keys alone, and a function that gives 1 − g (B, H, T)."""
    name = _kernel(kernel, q_BxTxHxDh.dtype, spec)
    if KERNELS[name].rows:
        attended = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel=name, spec=spec)
        odds = _log_odds(q_BxTxHxDh, key_HxDh, attended.lse, spec)
        scale_BxHxT = jax.nn.sigmoid(-odds)  # 1 − σ(odds), without cancellation
        added = per_head(jax.nn.sigmoid(odds), value_HxDv.astype(attended.out.dtype)[None, None])
        out = per_head(scale_BxHxT, attended.out) + added
        return attended._replace(out=out), lambda: scale_BxHxT

    def scale() -> jax.Array:
        # only for the record, by a kernel that has lse
        lse_BxHxT = attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, kernel="blockwise", spec=spec).lse
        return jax.nn.sigmoid(-_log_odds(q_BxTxHxDh, key_HxDh, lse_BxHxT, spec))

    mixed = _prepended(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, value_HxDv, name, spec)
    return Attended(mixed, None, None), scale


def _log_odds(q_BxTxHxDh, key_HxDh, lse_BxHxT, spec: AttentionSpec) -> jax.Array:
    logit_BxHxT = jnp.einsum(
        "bthd,hd->bht",
        q_BxTxHxDh,
        key_HxDh.astype(q_BxTxHxDh.dtype),
        preferred_element_type=lse_BxHxT.dtype,
    )
    return spec.capped(spec.scale_of(q_BxTxHxDh.shape[-1]) * logit_BxHxT) - lse_BxHxT


def _kernel(kernel: str, dtype, spec: AttentionSpec) -> str:
    """A fused kernel sees k' as position 0, which lies outside of windows and at a distance: those are left to `blockwise`."""
    name = resolve_kernel(kernel, dtype, spec=spec)
    if KERNELS[name].rows or not spec.features & {"window", "alibi"}:
        return name
    if kernel == "auto":
        return "blockwise"
    raise ValueError(
        f"attention kernel {kernel!r} does not compute an extra key beside {', '.join(sorted(spec.features))}; "
        "use auto, blockwise or reference"
    )


def _prepended(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, key_HxDh, value_HxDv, kernel: str, spec: AttentionSpec
):
    B, H = q_BxTxHxDh.shape[0], q_BxTxHxDh.shape[2]
    group = H // k_BxSxKxDh.shape[2]

    def with_first(x_BxSxKxD, first_HxD):
        first = first_HxD.astype(x_BxSxKxD.dtype)[None, None]
        first = jnp.broadcast_to(first, (B, *first.shape[1:]))
        return jnp.concatenate([first, jnp.repeat(x_BxSxKxD, group, axis=2)], axis=1)

    q = jnp.concatenate([jnp.zeros_like(q_BxTxHxDh[:, :1]), q_BxTxHxDh], axis=1)
    k, v = with_first(k_BxSxKxDh, key_HxDh), with_first(v_BxSxKxDv, value_HxDv)
    return attend(q, k, v, kernel=kernel, spec=spec).out[:, 1:]


def per_head(scale_BxHxT, x_BxTxHxD) -> jax.Array:
    """Multiply every head's vector by a number per query, (B, T, H, D) in x's dtype; x may have B and T of 1."""
    scale_BxTxHx1 = scale_BxHxT.transpose(0, 2, 1)[..., None]
    return (scale_BxTxHx1 * x_BxTxHxD.astype(scale_BxHxT.dtype)).astype(x_BxTxHxD.dtype)
