"""How `(out, lse)` of causal softmax attention is computed. Every kernel gives the same numbers to rounding.

`reference` materialises the (T, S) map; `blockwise` is exact too, holds one block of query rows at a time and skips most keys
that lie in the future, so its memory is linear in T. Both return the column sums that attention outliers are defined on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

BLOCK = 256  # query rows held at once by `blockwise`
GROUPS = 8  # spans of query rows with a static number of keys each: at most 1/(2*GROUPS) of the keys is computed in vain
#: Logits held at once, in bytes. A CPU is fastest when they stay in its cache, an accelerator when there are many.
LOGIT_BYTES = {"cpu": 2 * 2**20, "other": 512 * 2**20}


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
    B, T, H, Dh = q_BxTxHxDh.shape
    S, K = k_BxSxKxDh.shape[1:3]
    rows = _split_heads(q_BxTxHxDh, K).reshape(B, K, H // K * T, Dh)
    logits = jnp.matmul(
        rows, _keys_last(k_BxSxKxDh), preferred_element_type=_accumulator(rows.dtype)
    )
    seen_TxS = jnp.arange(T)[:, None] >= jnp.arange(S)[None, :]
    weights = jnp.exp(logits.reshape(B, H, T, S) - lse_BxHxT[..., None])
    return jnp.where(seen_TxS[None, None], weights, 0.0)


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


def _rows(q_GxTxDh, k_DhxS, v_SxDv, first_row, num_rows: int):
    """Exact attention of a span of query rows that starts at `first_row` over the S first keys, for one key head.

    Rows from `num_rows` on are padding: they are computed, but do not enter the column sums.
    """
    G, T, Dh = q_GxTxDh.shape
    S = k_DhxS.shape[-1]
    dtype = _accumulator(q_GxTxDh.dtype)
    row_T = first_row + jnp.arange(T)
    logits = jnp.matmul(q_GxTxDh.reshape(G * T, Dh), k_DhxS, preferred_element_type=dtype)
    seen_TxS = row_T[:, None] >= jnp.arange(S)[None, :]
    logits_GxTxS = jnp.where(seen_TxS[None], logits.reshape(G, T, S), -jnp.inf)
    top_GxT = logits_GxTxS.max(-1)
    weights_GxTxS = jnp.exp(logits_GxTxS - top_GxT[..., None])
    total_GxT = weights_GxTxS.sum(-1)
    mixed_GxTxDv = jnp.matmul(
        weights_GxTxS.reshape(G * T, S).astype(v_SxDv.dtype), v_SxDv, preferred_element_type=dtype
    ).reshape(G, T, -1)
    lse_GxT = top_GxT + jnp.log(total_GxT)
    # Always true for numbers, but it keeps `lse` alive where nobody reads it: the compiled arithmetic, and with it the last bit
    # of `out`, must not depend on what is captured.
    divisor_GxT = jnp.where(lse_GxT == lse_GxT, total_GxT, jnp.nan)
    out_GxTxDv = (mixed_GxTxDv / divisor_GxT[..., None]).astype(v_SxDv.dtype)
    share_GxT = jnp.where((row_T < num_rows)[None], 1.0 / total_GxT, 0.0)
    sums_GxS = jnp.matmul(share_GxT[:, None, :], weights_GxTxS)[:, 0]
    return out_GxTxDv, lse_GxT, sums_GxS


def _over_key_heads(one_head, q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, at_once: int) -> Attended:
    """Apply `one_head(q (G, T, Dh), k (Dh, S), v (S, Dv))` to the key heads of all sequences, `at_once` in parallel."""
    B, T, H, _ = q_BxTxHxDh.shape
    K, Dv = v_BxSxKxDv.shape[2:]
    q = _split_heads(q_BxTxHxDh, K)
    k, v = _keys_last(k_BxSxKxDh), v_BxSxKxDv.transpose(0, 2, 1, 3)
    heads = tuple(x.reshape(B * K, *x.shape[2:]) for x in (q, k, v))
    if at_once >= B * K:
        out, lse, sums = jax.vmap(one_head)(*heads)
    else:
        out, lse, sums = jax.lax.map(
            lambda head: one_head(*head), heads, batch_size=at_once if at_once > 1 else None
        )
    return Attended(
        out.reshape(B, H, T, Dv).transpose(0, 2, 1, 3), lse.reshape(B, H, T), sums.reshape(B, H, -1)
    )


def reference(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv) -> Attended:
    """All rows at once: the formula as written, quadratic in memory."""
    B, T = q_BxTxHxDh.shape[:2]

    def one_head(q, k, v):
        return _rows(q, k, v, 0, T)

    return _over_key_heads(one_head, q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, B * k_BxSxKxDh.shape[2])


def blockwise(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv) -> Attended:
    """Exact attention over blocks of query rows; memory O(heads at once · BLOCK · S), about half the work of `reference`."""
    T, H = q_BxTxHxDh.shape[1:3]
    S, K = k_BxSxKxDh.shape[1:3]
    block = min(BLOCK, T)
    num_blocks = -(-T // block)
    groups = min(GROUPS, num_blocks)
    bounds = [round(g * num_blocks / groups) for g in range(groups + 1)]
    dtype = _accumulator(q_BxTxHxDh.dtype)

    def one_head(q_GxTxDh, k_DhxS, v_SxDv):
        G, Dh = q_GxTxDh.shape[0], q_GxTxDh.shape[-1]
        q_blocks = jnp.pad(q_GxTxDh, ((0, 0), (0, num_blocks * block - T), (0, 0)))
        q_blocks = q_blocks.reshape(G, num_blocks, block, Dh).transpose(1, 0, 2, 3)
        sums_GxS = jnp.zeros((G, S), dtype)
        outs, lses = [], []
        for first, last in itertools.pairwise(bounds):
            keys = min(last * block, S)
            k_span, v_span = k_DhxS[:, :keys], v_SxDv[:keys]

            def one_block(sums, b, k_span=k_span, v_span=v_span):
                out, lse, part = _rows(q_blocks[b], k_span, v_span, b * block, T)
                return sums + part, (out, lse)

            part, (out, lse) = jax.lax.scan(
                one_block, jnp.zeros((G, keys), dtype), jnp.arange(first, last)
            )
            sums_GxS = sums_GxS.at[:, :keys].add(part)
            outs.append(out)
            lses.append(lse)
        out_GxTxDv = jnp.concatenate(outs).transpose(1, 0, 2, 3).reshape(G, num_blocks * block, -1)
        lse_GxT = jnp.concatenate(lses).transpose(1, 0, 2).reshape(G, num_blocks * block)
        return out_GxTxDv[:, :T], lse_GxT[:, :T], sums_GxS

    room = LOGIT_BYTES["cpu" if jax.default_backend() == "cpu" else "other"]
    at_once = max(1, room // (H // K * block * S * dtype.itemsize))
    return _over_key_heads(one_head, q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, at_once)


KERNELS: dict[str, Callable[..., Attended]] = {"reference": reference, "blockwise": blockwise}
