"""Exact causal attention of a span of query rows by any `AttentionSpec`; all rows at once are the kernel `reference`.

Matrix layouts are those in which XLA's CPU products need no transposition per block.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sysout_jax.attention.spec import AttentionSpec, less_one


class Attended(NamedTuple):
    """What attention returns: `out` (B, T, H, Dh), `lse` (B, H, T), `sums` (B, H, S), the map summed over queries.

    A kernel that cannot give `lse` or `sums` has None there; sigmoid attention has no `lse`, and that of softpick is the logarithm of what
    a row is divided by, without a gradient. `sums` carries none either.
    """

    out: jax.Array
    lse: jax.Array | None
    sums: jax.Array | None


def reference(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec, slopes_H: jax.Array | None = None
) -> Attended:
    """All rows at once: the formula as written, quadratic in memory, differentiated by jax."""
    B, T = q_BxTxHxDh.shape[:2]

    def one_head(q, k, v, slopes_G):
        return attend_rows(q, k, v, 0, T, spec, slopes_G)

    heads = to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec, slopes_H)
    out, lse, sums = map_heads(one_head, heads, B * k_BxSxKxDh.shape[2])
    return from_heads(out, lse, sums, B, spec)


def scaled(q: jax.Array, spec: AttentionSpec) -> jax.Array:
    """Queries times the factor on their products with keys."""
    return q * jnp.asarray(spec.scale_of(q.shape[-1]), q.dtype)


def accumulator(dtype) -> jnp.dtype:
    """Logits and sums are at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def split_heads(q_BxTxHxDh, num_kv_heads: int, spec: AttentionSpec):
    """Scale and group the queries: (B, K, G, T, Dh), G query heads to a key head."""
    B, T, H, Dh = q_BxTxHxDh.shape
    grouped = q_BxTxHxDh.reshape(B, T, num_kv_heads, H // num_kv_heads, Dh)
    return scaled(grouped.transpose(0, 2, 3, 1, 4), spec)


def to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec, slopes_H):
    """N = B·K key heads: q (N, G, T, Dh) scaled, k (N, Dh, S), v (N, S, Dv), and ALiBi's slopes (N, G) or None."""
    B, K = q_BxTxHxDh.shape[0], k_BxSxKxDh.shape[2]
    parts = (
        split_heads(q_BxTxHxDh, K, spec),
        k_BxSxKxDh.transpose(0, 2, 3, 1),
        v_BxSxKxDv.transpose(0, 2, 1, 3),
    )
    slopes_NxG = None if slopes_H is None else jnp.tile(slopes_H.reshape(K, -1), (B, 1))
    return *(part.reshape(-1, *part.shape[2:]) for part in parts), slopes_NxG


def from_heads(out_NxGxTxDv, lse_NxGxT, sums_NxGxS, B: int, spec: AttentionSpec) -> Attended:
    N, G, T, Dv = out_NxGxTxDv.shape
    H = N * G // B
    out = out_NxGxTxDv.reshape(B, H, T, Dv).transpose(0, 2, 1, 3)
    sums = jax.lax.stop_gradient(sums_NxGxS.reshape(B, H, -1))
    lse = None if spec.sigmoid is not None else lse_NxGxT.reshape(B, H, T)
    if lse is not None and spec.softpick is not None:
        lse = jax.lax.stop_gradient(lse)
    return Attended(out, lse, sums)


def map_heads(one_head, heads, at_once: int):
    if at_once >= len(heads[0]):
        return jax.vmap(one_head)(*heads)
    batch = at_once if at_once > 1 else None
    return jax.lax.map(lambda head: one_head(*head), heads, batch_size=batch)


class Logits(NamedTuple):
    """Logits of a span of query rows over a span of keys."""

    values: jax.Array  # (G, T, S)
    seen: jax.Array  # (1, T, S) bool: the query may see the key
    slope: (
        jax.Array | None
    )  # (G, T, S) d value / d (scale · q·k) where a cap bends it, else None for 1


def causal_logits(q_GxTxDh, k_DhxS, row_T, key_S, spec: AttentionSpec, slopes_G=None) -> Logits:
    """Of scaled queries at the positions `row_T` and keys at the positions `key_S`."""
    G, T, Dh = q_GxTxDh.shape
    S = k_DhxS.shape[-1]
    dtype = accumulator(q_GxTxDh.dtype)
    values = jnp.matmul(q_GxTxDh.reshape(G * T, Dh), k_DhxS, preferred_element_type=dtype)
    values, slope = values.reshape(G, T, S), None
    distance_TxS = row_T[:, None] - key_S[None, :]
    if spec.softcap is not None:
        values = spec.capped(values)
        slope = 1.0 - (values / spec.softcap) ** 2
    if slopes_G is not None:
        values = values - slopes_G.astype(dtype)[:, None, None] * distance_TxS[None].astype(dtype)
    return Logits(values, spec.sees(distance_TxS)[None], slope)


def attend_rows(
    q_GxTxDh,
    k_DhxS,
    v_SxDv,
    first_row,
    num_rows: int,
    spec: AttentionSpec,
    slopes_G=None,
    first_key: int = 0,
):
    """Exact attention of a span of query rows over S keys from `first_key` on, for one key head.

    Rows from `num_rows` on are padding: they are computed, but do not enter the column sums.
    """
    G, T, _ = q_GxTxDh.shape
    S = k_DhxS.shape[-1]
    dtype = accumulator(q_GxTxDh.dtype)
    row_T, key_S = first_row + jnp.arange(T), first_key + jnp.arange(S)
    logits_GxTxS, seen, _ = causal_logits(q_GxTxDh, k_DhxS, row_T, key_S, spec, slopes_G)

    def mix(weights_GxTxS):
        flat = weights_GxTxS.reshape(G * T, S).astype(v_SxDv.dtype)
        return jnp.matmul(flat, v_SxDv, preferred_element_type=dtype).reshape(G, T, -1)

    real_T = row_T < num_rows
    if spec.sigmoid is not None:
        weights_GxTxS = jnp.where(seen, spec.weights(logits_GxTxS, None), 0.0)
        share_GxT = jnp.broadcast_to(real_T[None].astype(dtype), (G, T))
        sums_GxS = jnp.matmul(share_GxT[:, None, :], weights_GxTxS)[:, 0]
        return mix(weights_GxTxS).astype(v_SxDv.dtype), jnp.zeros((G, T), dtype), sums_GxS
    if spec.softpick is not None:
        logits_GxTxS = jnp.where(seen, logits_GxTxS, 0.0)  # e^0 − 1 is 0
        top_GxT = jax.lax.stop_gradient(logits_GxTxS).max(-1).clip(0.0)
        parts_GxTxS = less_one(logits_GxTxS, top_GxT[..., None])
        total_GxT = jnp.abs(parts_GxTxS).sum(-1) + spec.softpick
        weights_GxTxS = jnp.maximum(parts_GxTxS, 0.0)
        out_GxTxDv = (mix(weights_GxTxS) / total_GxT[..., None]).astype(v_SxDv.dtype)
        share_GxT = jnp.where(real_T[None], 1.0 / total_GxT, 0.0)
        sums_GxS = jnp.matmul(share_GxT[:, None, :], weights_GxTxS)[:, 0]
        return out_GxTxDv, top_GxT + jnp.log(total_GxT), sums_GxS
    logits_GxTxS = jnp.where(seen, logits_GxTxS, -jnp.inf)
    top_GxT = jax.lax.stop_gradient(logits_GxTxS.max(-1))
    if spec.window is not None:  # a padded row may see nothing
        top_GxT = jnp.where(jnp.isneginf(top_GxT), 0.0, top_GxT)
    weights_GxTxS = jnp.exp(logits_GxTxS - top_GxT[..., None])
    total_GxT = weights_GxTxS.sum(-1)
    lse_GxT = top_GxT + jnp.log(total_GxT)
    # Always true for numbers, but it keeps `lse` alive where nobody reads it: the compiled arithmetic, and with it the last bit
    # of `out`, must not depend on what is captured.
    divisor_GxT = jnp.where(lse_GxT == lse_GxT, total_GxT, jnp.nan)
    out_GxTxDv = (mix(weights_GxTxS) / divisor_GxT[..., None]).astype(v_SxDv.dtype)
    share_GxT = jnp.where(real_T[None], 1.0 / total_GxT, 0.0)
    sums_GxS = jnp.matmul(share_GxT[:, None, :], weights_GxTxS)[:, 0]
    return out_GxTxDv, lse_GxT, sums_GxS
