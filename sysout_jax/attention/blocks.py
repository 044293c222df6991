"""Exact causal attention in blocks of query rows, with its gradient: softmax or sigmoid, `reference` or `blockwise`.

`reference` materialises the (T, S) map; `blockwise` holds one block of query rows at a time and skips most keys that lie in the
future, so its memory is linear in T, forward and backward. Both return the column sums that attention outliers are defined on.
Matrix layouts are those in which XLA's CPU products need no transposition per block.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sysout_jax.platform import target_platform

BLOCK = 256  # query rows held at once by `blockwise`
#: Spans of query rows with a static number of keys each: at most 1/(2 GROUPS) of the keys is computed in vain, but each span is code to compile.
GROUPS = {"cpu": 8, "other": 2}
#: Logits held at once, in bytes. A CPU is fastest when they stay in its cache, an accelerator when there are many.
LOGIT_BYTES = {"cpu": 2 * 2**20, "other": 512 * 2**20}


class Attended(NamedTuple):
    """What attention returns: `out` (B, T, H, Dh), `lse` (B, H, T), `sums` (B, H, S), the map summed over queries.

    A kernel that cannot give `lse` or `sums` has None there; sigmoid attention has no `lse`. `sums` carries no gradient.
    """

    out: jax.Array
    lse: jax.Array | None
    sums: jax.Array | None


def reference(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, bias: float | None = None) -> Attended:
    """All rows at once: the formula as written, quadratic in memory, differentiated by jax.

    Softmax attention, or with a `bias` `σ(q·k/√Dh + bias)`.
    """
    B, T = q_BxTxHxDh.shape[:2]

    def one_head(q, k, v):
        return _rows(q, k, v, 0, T, bias)

    heads = _to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv)
    found = _map_heads(one_head, heads, B * k_BxSxKxDh.shape[2])
    out, lse, sums = found
    return _from_heads(out, lse, sums, B, bias)


def blockwise(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, bias: float | None = None) -> Attended:
    """The same in memory linear in T and about half the work; its own gradient keeps only `out` and `lse`."""
    B = q_BxTxHxDh.shape[0]
    out, lse, sums = _blockwise(*_to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv), bias)
    return _from_heads(out, lse, sums, B, bias)


def scaled(q: jax.Array) -> jax.Array:
    """q / √Dh."""
    return q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)


def accumulator(dtype) -> jnp.dtype:
    """Logits and sums are at least float32."""
    return jnp.promote_types(dtype, jnp.float32)


def split_heads(q_BxTxHxDh, num_kv_heads: int):
    """Scale and group the queries: (B, K, G, T, Dh), G query heads to a key head."""
    B, T, H, Dh = q_BxTxHxDh.shape
    grouped = q_BxTxHxDh.reshape(B, T, num_kv_heads, H // num_kv_heads, Dh)
    return scaled(grouped.transpose(0, 2, 3, 1, 4))


def _to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv):
    """N = B·K key heads: q (N, G, T, Dh) scaled, k (N, Dh, S), v (N, S, Dv)."""
    K = k_BxSxKxDh.shape[2]
    parts = (
        split_heads(q_BxTxHxDh, K),
        k_BxSxKxDh.transpose(0, 2, 3, 1),
        v_BxSxKxDv.transpose(0, 2, 1, 3),
    )
    return tuple(part.reshape(-1, *part.shape[2:]) for part in parts)


def _from_heads(out_NxGxTxDv, lse_NxGxT, sums_NxGxS, B: int, bias: float | None) -> Attended:
    N, G, T, Dv = out_NxGxTxDv.shape
    H = N * G // B
    out = out_NxGxTxDv.reshape(B, H, T, Dv).transpose(0, 2, 1, 3)
    sums = jax.lax.stop_gradient(sums_NxGxS.reshape(B, H, -1))
    return Attended(out, lse_NxGxT.reshape(B, H, T) if bias is None else None, sums)


def _kind() -> str:
    return "cpu" if target_platform() == "cpu" else "other"


def _map_heads(one_head, heads, at_once: int):
    if at_once >= len(heads[0]):
        return jax.vmap(one_head)(*heads)
    batch = at_once if at_once > 1 else None
    return jax.lax.map(lambda head: one_head(*head), heads, batch_size=batch)


def _at_once(q_NxGxTxDh, k_NxDhxS) -> int:
    """Key heads that are worked on in parallel."""
    room = LOGIT_BYTES[_kind()]
    _, G, T, _ = q_NxGxTxDh.shape
    rows = G * min(BLOCK, T) * k_NxDhxS.shape[-1]
    return max(1, room // (rows * accumulator(q_NxGxTxDh.dtype).itemsize))


def _logits(q_GxTxDh, k_DhxS, first_row):
    """(G, T, S) logits of a span of query rows that starts at `first_row`, and which pairs are causal."""
    G, T, Dh = q_GxTxDh.shape
    S = k_DhxS.shape[-1]
    dtype = accumulator(q_GxTxDh.dtype)
    logits = jnp.matmul(q_GxTxDh.reshape(G * T, Dh), k_DhxS, preferred_element_type=dtype)
    seen_TxS = (first_row + jnp.arange(T))[:, None] >= jnp.arange(S)[None, :]
    return logits.reshape(G, T, S), seen_TxS[None]


def _rows(q_GxTxDh, k_DhxS, v_SxDv, first_row, num_rows: int, bias: float | None):
    """Exact attention of a span of query rows over the S first keys, for one key head.

    Rows from `num_rows` on are padding: they are computed, but do not enter the column sums.
    """
    G, T, _ = q_GxTxDh.shape
    S = k_DhxS.shape[-1]
    dtype = accumulator(q_GxTxDh.dtype)
    logits_GxTxS, seen = _logits(q_GxTxDh, k_DhxS, first_row)

    def mix(weights_GxTxS):
        flat = weights_GxTxS.reshape(G * T, S).astype(v_SxDv.dtype)
        return jnp.matmul(flat, v_SxDv, preferred_element_type=dtype).reshape(G, T, -1)

    real_T = (first_row + jnp.arange(T)) < num_rows
    if bias is not None:
        weights_GxTxS = jnp.where(seen, jax.nn.sigmoid(logits_GxTxS + bias), 0.0)
        share_GxT = jnp.broadcast_to(real_T[None].astype(dtype), (G, T))
        sums_GxS = jnp.matmul(share_GxT[:, None, :], weights_GxTxS)[:, 0]
        return mix(weights_GxTxS).astype(v_SxDv.dtype), jnp.zeros((G, T), dtype), sums_GxS
    logits_GxTxS = jnp.where(seen, logits_GxTxS, -jnp.inf)
    top_GxT = jax.lax.stop_gradient(logits_GxTxS.max(-1))
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


class _Blocks(NamedTuple):
    """How T query rows are cut: `number` blocks of `size` rows, in spans with a static number of keys."""

    size: int
    number: int
    spans: tuple[tuple[int, int, int], ...]  # (first block, last block + 1, keys)

    def cut(self, x_GxTxD):
        """(number, G, size, D), padded with zeros."""
        G, T, D = x_GxTxD.shape
        padded = jnp.pad(x_GxTxD, ((0, 0), (0, self.number * self.size - T), (0, 0)))
        return padded.reshape(G, self.number, self.size, D).transpose(1, 0, 2, 3)

    def join(self, parts, T: int):
        """Back to (G, T, …)."""
        blocks = jnp.concatenate(parts)
        rows = jnp.moveaxis(blocks, 0, 1)
        return rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, :T]


def _blocks(T: int, S: int) -> _Blocks:
    size = min(BLOCK, T)
    count = -(-T // size)
    groups = min(GROUPS[_kind()], count)
    bounds = [round(g * count / groups) for g in range(groups + 1)]
    spans = tuple((a, b, min(b * size, S)) for a, b in itertools.pairwise(bounds))
    return _Blocks(size, count, spans)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _blockwise(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, bias):
    T, S = q_NxGxTxDh.shape[2], k_NxDhxS.shape[-1]
    blocks = _blocks(T, S)
    dtype = accumulator(q_NxGxTxDh.dtype)

    def one_head(q_GxTxDh, k_DhxS, v_SxDv):
        q_blocks = blocks.cut(q_GxTxDh)
        sums_GxS = jnp.zeros((q_GxTxDh.shape[0], S), dtype)
        outs, lses = [], []
        for first, last, keys in blocks.spans:
            k_span, v_span = k_DhxS[:, :keys], v_SxDv[:keys]

            def one_block(sums, b, k_span=k_span, v_span=v_span):
                out, lse, part = _rows(q_blocks[b], k_span, v_span, b * blocks.size, T, bias)
                return sums + part, (out, lse)

            zero = jnp.zeros((q_GxTxDh.shape[0], keys), dtype)
            part, (out, lse) = jax.lax.scan(one_block, zero, jnp.arange(first, last))
            sums_GxS = sums_GxS.at[:, :keys].add(part)
            outs.append(out)
            lses.append(lse)
        return blocks.join(outs, T), blocks.join(lses, T), sums_GxS

    return _map_heads(one_head, (q_NxGxTxDh, k_NxDhxS, v_NxSxDv), _at_once(q_NxGxTxDh, k_NxDhxS))


def _blockwise_forward(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, bias):
    out, lse, sums = _blockwise(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, bias)
    return (out, lse, sums), (q_NxGxTxDh, k_NxDhxS, v_NxSxDv, out, lse)


def _blockwise_backward(bias, residuals, cotangents):
    """Softmax: dS = A ∘ (dP − rowsum(dout ∘ out) + dlse), sigmoid: dS = A (1 − A) ∘ dP; A is made again block by block."""
    q_NxGxTxDh, k_NxDhxS, v_NxSxDv, out_NxGxTxDv, lse_NxGxT = residuals
    dout_NxGxTxDv, dlse_NxGxT, _ = cotangents  # sums carry no gradient: _from_heads cuts it
    T, S = q_NxGxTxDh.shape[2], k_NxDhxS.shape[-1]
    blocks = _blocks(T, S)
    dtype = accumulator(q_NxGxTxDh.dtype)
    product = (dout_NxGxTxDv.astype(dtype) * out_NxGxTxDv.astype(dtype)).sum(-1)
    # one number per row that goes with its logits, and one that is taken from dP
    rows = jnp.stack([lse_NxGxT, product - dlse_NxGxT], axis=-1)

    def one_head(q_GxTxDh, k_DhxS, v_SxDv, dout_GxTxDv, rows_GxTx2):
        G, _, Dh = q_GxTxDh.shape
        q_blocks, dout_blocks = blocks.cut(q_GxTxDh), blocks.cut(dout_GxTxDv)
        row_blocks = blocks.cut(rows_GxTx2)
        dk_DhxS, dv_SxDv = jnp.zeros(k_DhxS.shape, dtype), jnp.zeros(v_SxDv.shape, dtype)
        dqs = []
        for first, last, keys in blocks.spans:
            k_span, v_span = k_DhxS[:, :keys], v_SxDv[:keys]

            def one_block(carry, b, k_span=k_span, v_span=v_span, keys=keys):
                dk, dv = carry
                q, dout, row = q_blocks[b], dout_blocks[b], row_blocks[b]
                logits, seen = _logits(q, k_span, b * blocks.size)
                dweights = jnp.matmul(
                    dout.reshape(-1, dout.shape[-1]), v_span.T, preferred_element_type=dtype
                ).reshape(logits.shape)
                if bias is None:
                    # padded rows have lse 0 and dout 0: their weights are finite and count for nothing
                    weights = jnp.where(seen, jnp.exp(logits - row[..., :1]), 0.0)
                    dlogits = weights * (dweights - row[..., 1:])
                else:
                    weights = jnp.where(seen, jax.nn.sigmoid(logits + bias), 0.0)
                    dlogits = weights * (1 - weights) * dweights
                flat = dlogits.reshape(-1, keys).astype(q.dtype)
                dq = jnp.matmul(flat, k_span.T, preferred_element_type=dtype)
                dk = dk + jnp.matmul(q.reshape(-1, Dh).T, flat, preferred_element_type=dtype)
                weights = weights.reshape(-1, keys).astype(dout.dtype)
                dv = dv + jnp.matmul(
                    weights.T, dout.reshape(-1, dout.shape[-1]), preferred_element_type=dtype
                )
                return (dk, dv), dq.reshape(G, blocks.size, Dh)

            zeros = (jnp.zeros((Dh, keys), dtype), jnp.zeros((keys, v_SxDv.shape[-1]), dtype))
            (dk, dv), dq = jax.lax.scan(one_block, zeros, jnp.arange(first, last))
            dk_DhxS, dv_SxDv = dk_DhxS.at[:, :keys].add(dk), dv_SxDv.at[:keys].add(dv)
            dqs.append(dq)
        grads = blocks.join(dqs, T), dk_DhxS, dv_SxDv
        return tuple(
            g.astype(x.dtype) for g, x in zip(grads, (q_GxTxDh, k_DhxS, v_SxDv), strict=True)
        )

    heads = (q_NxGxTxDh, k_NxDhxS, v_NxSxDv, dout_NxGxTxDv, rows)
    return _map_heads(one_head, heads, _at_once(q_NxGxTxDh, k_NxDhxS))


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
