"""Exact causal attention in blocks of query rows, with its gradient: memory linear in T both ways.

One block of query rows is held at a time, and most keys that lie in its future are skipped. The backward pass makes the weights again
from `lse` (Dao et al. 2022).
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sysout_jax.attention.rows import (
    Attended,
    accumulator,
    attend_rows,
    causal_logits,
    from_heads,
    map_heads,
    to_heads,
)
from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.platform import target_platform

BLOCK = 256  # query rows held at once by `blockwise`
#: Spans of query rows with a static number of keys each: at most 1/(2 GROUPS) of the keys is computed in vain, but each span is code to compile.
GROUPS = {"cpu": 8, "other": 2}
#: Logits held at once, in bytes. A CPU is fastest when they stay in its cache, an accelerator when there are many.
LOGIT_BYTES = {"cpu": 2 * 2**20, "other": 512 * 2**20}


def blockwise(
    q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec: AttentionSpec, slopes_H: jax.Array | None = None
) -> Attended:
    """The same in memory linear in T and about half the work; its own gradient keeps only `out` and `lse`."""
    B = q_BxTxHxDh.shape[0]
    heads = to_heads(q_BxTxHxDh, k_BxSxKxDh, v_BxSxKxDv, spec, slopes_H)
    out, lse, sums = _blockwise(*heads, spec)
    return from_heads(out, lse, sums, B, spec)


def _kind() -> str:
    return "cpu" if target_platform() == "cpu" else "other"


def _at_once(q_NxGxTxDh, k_NxDhxS) -> int:
    """Key heads that are worked on in parallel."""
    room = LOGIT_BYTES[_kind()]
    _, G, T, _ = q_NxGxTxDh.shape
    rows = G * min(BLOCK, T) * k_NxDhxS.shape[-1]
    return max(1, room // (rows * accumulator(q_NxGxTxDh.dtype).itemsize))


class _Blocks(NamedTuple):
    """How T query rows are cut: `number` blocks of `size` rows, in spans with a static number of keys."""

    size: int
    number: int
    spans: tuple[
        tuple[int, int, int, int], ...
    ]  # (first block, last block + 1, first key, last key + 1)

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


def _blocks(T: int, S: int, window: int | None) -> _Blocks:
    size = min(BLOCK, T)
    count = -(-T // size)
    groups = min(GROUPS[_kind()], count)
    bounds = [round(g * count / groups) for g in range(groups + 1)]

    def first_key(block: int) -> int:
        return 0 if window is None else min(max(block * size - window + 1, 0), S - 1)

    spans = tuple((a, b, first_key(a), min(b * size, S)) for a, b in itertools.pairwise(bounds))
    return _Blocks(size, count, spans)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _blockwise(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG, spec):
    T, S = q_NxGxTxDh.shape[2], k_NxDhxS.shape[-1]
    blocks = _blocks(T, S, spec.window)
    dtype = accumulator(q_NxGxTxDh.dtype)

    def one_head(q_GxTxDh, k_DhxS, v_SxDv, slopes_G):
        q_blocks = blocks.cut(q_GxTxDh)
        sums_GxS = jnp.zeros((q_GxTxDh.shape[0], S), dtype)
        outs, lses = [], []
        for first, last, start, stop in blocks.spans:
            k_span, v_span = k_DhxS[:, start:stop], v_SxDv[start:stop]

            def one_block(sums, b, k_span=k_span, v_span=v_span, start=start):
                row = b * blocks.size
                out, lse, part = attend_rows(
                    q_blocks[b], k_span, v_span, row, T, spec, slopes_G, start
                )
                return sums + part, (out, lse)

            zero = jnp.zeros((q_GxTxDh.shape[0], stop - start), dtype)
            part, (out, lse) = jax.lax.scan(one_block, zero, jnp.arange(first, last))
            sums_GxS = sums_GxS.at[:, start:stop].add(part)
            outs.append(out)
            lses.append(lse)
        return blocks.join(outs, T), blocks.join(lses, T), sums_GxS

    heads = (q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG)
    return map_heads(one_head, heads, _at_once(q_NxGxTxDh, k_NxDhxS))


def _blockwise_forward(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG, spec):
    out, lse, sums = _blockwise(q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG, spec)
    return (out, lse, sums), (q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG, out, lse)


def _blockwise_backward(spec, residuals, cotangents):
    """Softmax: dS = A ∘ (dP − rowsum(dout ∘ out) + dlse), sigmoid: dS = A (1 − A) ∘ dP, softpick: dS = e^(S − lse) ∘ ([S > 0] ∘ dP −
    sign(S) rowsum(dout ∘ out)); a cap multiplies dS by its own slope.

    A is made again block by block. ALiBi's slopes are constants.
    """
    q_NxGxTxDh, k_NxDhxS, v_NxSxDv, slopes_NxG, out_NxGxTxDv, lse_NxGxT = residuals
    dout_NxGxTxDv, dlse_NxGxT, _ = cotangents  # sums carry no gradient: from_heads cuts it
    T, S = q_NxGxTxDh.shape[2], k_NxDhxS.shape[-1]
    blocks = _blocks(T, S, spec.window)
    dtype = accumulator(q_NxGxTxDh.dtype)
    product = (dout_NxGxTxDv.astype(dtype) * out_NxGxTxDv.astype(dtype)).sum(-1)
    # one number per row that goes with its logits, and one that is taken from dP
    rows = jnp.stack([lse_NxGxT, product - dlse_NxGxT], axis=-1)

    def one_head(q_GxTxDh, k_DhxS, v_SxDv, dout_GxTxDv, rows_GxTx2, slopes_G):
        G, _, Dh = q_GxTxDh.shape
        q_blocks, dout_blocks = blocks.cut(q_GxTxDh), blocks.cut(dout_GxTxDv)
        row_blocks = blocks.cut(rows_GxTx2)
        dk_DhxS, dv_SxDv = jnp.zeros(k_DhxS.shape, dtype), jnp.zeros(v_SxDv.shape, dtype)
        dqs = []
        for first, last, start, stop in blocks.spans:
            k_span, v_span = k_DhxS[:, start:stop], v_SxDv[start:stop]
            keys = stop - start

            def one_block(carry, b, k_span=k_span, v_span=v_span, keys=keys, start=start):
                dk, dv = carry
                q, dout, row = q_blocks[b], dout_blocks[b], row_blocks[b]
                row_T = b * blocks.size + jnp.arange(blocks.size)
                key_S = start + jnp.arange(keys)
                logits, seen, slope = causal_logits(q, k_span, row_T, key_S, spec, slopes_G)
                dweights = jnp.matmul(
                    dout.reshape(-1, dout.shape[-1]), v_span.T, preferred_element_type=dtype
                ).reshape(logits.shape)
                # padded rows have lse 0 and dout 0: their weights are finite and count for nothing
                weights = jnp.where(seen, spec.weights(logits, row[..., :1]), 0.0)
                if spec.sigmoid is not None:
                    dlogits = weights * (1 - weights) * dweights
                elif spec.softpick is not None:
                    slopes = jnp.where(seen, jnp.exp(logits - row[..., :1]), 0.0)
                    picked = jnp.where(logits > 0, dweights, 0.0)
                    dlogits = slopes * (picked - jnp.sign(logits) * row[..., 1:])
                else:
                    dlogits = weights * (dweights - row[..., 1:])
                if slope is not None:
                    dlogits = dlogits * slope
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
            dk_DhxS = dk_DhxS.at[:, start:stop].add(dk)
            dv_SxDv = dv_SxDv.at[start:stop].add(dv)
            dqs.append(dq)
        grads = blocks.join(dqs, T), dk_DhxS, dv_SxDv
        return tuple(
            g.astype(x.dtype) for g, x in zip(grads, (q_GxTxDh, k_DhxS, v_SxDv), strict=True)
        )

    heads = (q_NxGxTxDh, k_NxDhxS, v_NxSxDv, dout_NxGxTxDv, rows, slopes_NxG)
    return *map_heads(one_head, heads, _at_once(q_NxGxTxDh, k_NxDhxS)), None


_blockwise.defvjp(_blockwise_forward, _blockwise_backward)
