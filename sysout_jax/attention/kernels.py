"""How `(out, lse)` of causal softmax attention is computed. Every kernel gives the same numbers to rounding.

`reference` materialises the (T, S) map; `blockwise` is exact too, holds one block of query rows at a time and skips most keys
that lie in the future, so its memory is linear in T. Both return the column sums that attention outliers are defined on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 128  # query rows held at once by `blockwise`
GROUPS = 8  # spans of query rows with a static number of keys each: at most 1/(2*GROUPS) of the keys is computed in vain


class Attended(NamedTuple):
    """What attention returns: `out` (B, T, H, Dh), `lse` (B, H, T) and `sums` (B, H, S), the map summed over queries."""

    out: jax.Array
    lse: jax.Array
    sums: jax.Array


def attend(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, *, kernel: str = "auto") -> Attended:
    """Causal softmax attention, `softmax(q kᵀ / √Dh) v`, with H a multiple of K (query heads share key heads in order).

    Logits, `lse` and `sums` are at least float32 whatever the inputs are; `out` has the dtype of `v`.
    Raises ValueError for an unknown kernel.
    """
    return KERNELS[resolve_kernel(kernel)](q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)


def attention_map(q_BxTxHxDh, k_BxSxKxDh, lse_BxHxT) -> jax.Array:
    """The (B, H, T, S) probabilities that belong to `lse`. For short prompts: this is the quadratic object itself."""
    B, T, H, _ = q_BxTxHxDh.shape
    S = k_BxSxKxDh.shape[1]
    logits = _logits(_split_heads(q_BxTxHxDh, k_BxSxKxDh.shape[2]), _keys_last(k_BxSxKxDh))
    causal = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    logits_BxHxTxS = logits.reshape(B, H, T, S)
    return jnp.where(causal, jnp.exp(logits_BxHxTxS - lse_BxHxT[..., None]), 0.0)


def resolve_kernel(kernel: str) -> str:
    """The kernel that `auto` stands for on this platform; any other name is honoured or refused, never replaced."""
    if kernel == "auto":
        return "blockwise"
    if kernel not in KERNELS:
        raise ValueError(
            f"attention kernel {kernel!r} is unknown; expected auto or one of {', '.join(KERNELS)}"
        )
    return kernel


def _split_heads(q_BxTxHxDh, num_kv_heads: int):
    """Scale and group the queries: (B, K, G, T, Dh), G query heads to a key head."""
    B, T, H, Dh = q_BxTxHxDh.shape
    grouped = q_BxTxHxDh.reshape(B, T, num_kv_heads, H // num_kv_heads, Dh)
    return grouped.transpose(0, 2, 3, 1, 4) * jnp.asarray(Dh**-0.5, q_BxTxHxDh.dtype)


def _keys_last(k_BxSxKxDh):
    # (B, K, Dh, S): the layout in which XLA's CPU matmul needs no transposition per block
    return k_BxSxKxDh.transpose(0, 2, 3, 1)


def _accumulator(dtype) -> jnp.dtype:
    return jnp.promote_types(dtype, jnp.float32)


def _logits(q_BxKxGxTxDh, k_BxKxDhxS):
    B, K, G, T, Dh = q_BxKxGxTxDh.shape
    rows = q_BxKxGxTxDh.reshape(B, K, G * T, Dh)
    logits = jnp.matmul(rows, k_BxKxDhxS, preferred_element_type=_accumulator(rows.dtype))
    return logits.reshape(B, K, G, T, -1)


def _rows(q_BxKxGxTxDh, k_BxKxDhxS, v_BxKxSxDv, first_row, num_rows: int):
    """Exact attention of a span of query rows that starts at `first_row` over the S first keys.

    Rows from `num_rows` on are padding: they are computed, but do not enter the column sums.
    """
    T, S = q_BxKxGxTxDh.shape[3], k_BxKxDhxS.shape[-1]
    row = first_row + jnp.arange(T)
    logits = _logits(q_BxKxGxTxDh, k_BxKxDhxS)
    logits = jnp.where(row[:, None] >= jnp.arange(S)[None, :], logits, -jnp.inf)
    top = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - top)
    total = weights.sum(-1)
    B, K, G = logits.shape[:3]
    mixed = jnp.matmul(
        weights.reshape(B, K, G * T, S).astype(v_BxKxSxDv.dtype),
        v_BxKxSxDv,
        preferred_element_type=logits.dtype,
    ).reshape(B, K, G, T, -1)
    lse = top[..., 0] + jnp.log(total)
    # Always true for numbers, but it keeps `lse` alive where nobody reads it: the compiled arithmetic, and with it the last bit
    # of `out`, must not depend on what is captured.
    divisor = jnp.where(lse == lse, total, jnp.nan)
    out = (mixed / divisor[..., None]).astype(v_BxKxSxDv.dtype)
    share = jnp.where(row < num_rows, 1.0 / total, 0.0)
    sums = jnp.matmul(share[..., None, :], weights)[..., 0, :]
    return out, lse, sums


def _assemble(out_BxKxGxTxDv, lse_BxKxGxT, sums_BxKxGxS) -> Attended:
    B, K, G, T, Dv = out_BxKxGxTxDv.shape
    return Attended(
        out_BxKxGxTxDv.transpose(0, 3, 1, 2, 4).reshape(B, T, K * G, Dv),
        lse_BxKxGxT.reshape(B, K * G, T),
        sums_BxKxGxS.reshape(B, K * G, -1),
    )


def reference(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv) -> Attended:
    """All rows at once: the formula as written, quadratic in memory."""
    q, k = _split_heads(q_BxTxHxDh, k_BxSxKxDh.shape[2]), _keys_last(k_BxSxKxDh)
    return _assemble(*_rows(q, k, v_BxSxKxDv.transpose(0, 2, 1, 3), 0, q.shape[3]))


def blockwise(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv) -> Attended:
    """Exact attention over blocks of query rows; memory O(B H BLOCK S), about half the work of `reference`."""
    q, k = _split_heads(q_BxTxHxDh, k_BxSxKxDh.shape[2]), _keys_last(k_BxSxKxDh)
    v = v_BxSxKxDv.transpose(0, 2, 1, 3)
    T, S = q.shape[3], k.shape[-1]
    block = min(BLOCK, T)
    num_blocks = -(-T // block)
    q = jnp.pad(q, ((0, 0),) * 3 + ((0, num_blocks * block - T), (0, 0)))
    groups = min(GROUPS, num_blocks)
    bounds = [round(g * num_blocks / groups) for g in range(groups + 1)]

    sums = jnp.zeros((*q.shape[:3], S), _accumulator(q.dtype))
    outs, lses = [], []
    for first, last in zip(bounds, bounds[1:], strict=False):
        keys = min(last * block, S)
        k_span, v_span = k[..., :keys], v[:, :, :keys]

        def one_block(sums, b, k_span=k_span, v_span=v_span, keys=keys):
            rows = jax.lax.dynamic_slice_in_dim(q, b * block, block, axis=3)
            out, lse, part = _rows(rows, k_span, v_span, b * block, T)
            return sums.at[..., :keys].add(part), (out, lse)

        sums, (out, lse) = jax.lax.scan(one_block, sums, jnp.arange(first, last))
        outs.append(_unblock(out))
        lses.append(_unblock(lse))
    return _assemble(jnp.concatenate(outs, 3)[..., :T, :], jnp.concatenate(lses, 3)[..., :T], sums)


def _unblock(x):
    """(blocks, B, K, G, block, ...) to (B, K, G, blocks*block, ...)."""
    x = jnp.moveaxis(x, 0, 3)
    return x.reshape(*x.shape[:3], -1, *x.shape[5:])


KERNELS: dict[str, Callable[..., Attended]] = {"reference": reference, "blockwise": blockwise}
