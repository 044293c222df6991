"""Attention statistics from column sums: cumulative scores, both outlier rules, sinks and the overlap with outlier tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.outliers import definitions as rules
from sysout_jax.statistics.statistic import Layer, Statistic


@dataclass(frozen=True)
class AttentionStats:
    """Attention over N sequences of T tokens, H heads, L layers. All from column sums; no map is ever whole in memory."""

    sums: np.ndarray  # (L, N, H, T) float32: column sums; 0 where they are not finite
    cumulative: np.ndarray  # (L, H, T) column sums, mean over sequences
    head_mean: np.ndarray  # (L, N, T) column sums, mean over heads
    outlier_keys: (
        np.ndarray
    )  # (L, H) share of sequences in which the head has an attention outlier, paper's rule at τ
    key_heads: (
        np.ndarray
    )  # (L, N, T) int: heads in which the key is an attention outlier, paper's rule at τ
    counts: (
        np.ndarray
    )  # (L, len(TAUS)) keys of all sequences and heads flagged at each threshold of TAUS
    ratio: (
        np.ndarray
    )  # (L,) largest column sum over the mean column sum of its head: what is compared with τ
    code_outlier_tokens: np.ndarray  # (L, N, T) bool, the published code's rule
    reach: np.ndarray  # (L,) int: queries that see a key at most, T or the layer's window
    sink_rate: np.ndarray  # (L,) share of (sequence, head) whose first token is a sink (α > 0.3)
    overlap: np.ndarray  # (L,) paper B.2 with the paper's rule, mean over samples with outlier tokens and heads; NaN without
    overlap_code: np.ndarray  # (L,) the same with the published code's rule
    iou: np.ndarray  # (L,) intersection over union beside `overlap`
    iou_code: np.ndarray  # (L,)
    nonfinite: np.ndarray  # (L,)

    @property
    def even_share(self) -> np.ndarray:
        """(L,) what even attention would give the first token, mean over all queries."""
        length = self.cumulative.shape[-1]
        return np.array([rules.even_share(length, reach) for reach in self.reach])


def reduce_attention(
    sums_NxHxT: np.ndarray, outliers_NxT: np.ndarray, tau: float, window: int | None = None
) -> dict[str, Any]:
    """One layer's column sums and outlier tokens of `h` to one row of `AttentionStats`; a query sees its own key and those before it, of them only the
    last `window`."""
    length = sums_NxHxT.shape[-1]
    reach = min(window or length, length)
    finite = np.isfinite(sums_NxHxT)
    sums = np.where(finite, sums_NxHxT, 0.0).astype(np.float64)
    flagged = rules.attention_outliers(sums, tau)
    mean = sums.mean(axis=-1, keepdims=True)
    ratio = rules.ratio(sums, mean)
    flagged_code = rules.code_outliers(sums.mean(axis=1))
    with_outliers = np.flatnonzero(outliers_NxT.any(axis=1))

    def mean_over_samples(measure, keys_NxHxT) -> float:
        values = [measure(outliers_NxT[n], keys_NxHxT[n]) for n in with_outliers]
        return float(np.nanmean(values)) if values and np.isfinite(values).any() else float("nan")

    return {
        "sums": sums.astype(np.float32),
        "cumulative": sums.mean(axis=0),
        "head_mean": sums.mean(axis=1),
        "outlier_keys": flagged.any(axis=-1).mean(axis=0),
        "key_heads": flagged.sum(axis=1, dtype=np.int32),
        "counts": np.array([(ratio > each).sum() for each in rules.TAUS]),
        "ratio": ratio.max(),
        "code_outlier_tokens": flagged_code,
        "reach": reach,
        "sink_rate": rules.sink_rate(sums, reach),
        "overlap": mean_over_samples(rules.overlap, flagged),
        "overlap_code": mean_over_samples(rules.overlap, flagged_code[:, None]),
        "iou": mean_over_samples(rules.intersection_over_union, flagged),
        "iou_code": mean_over_samples(rules.intersection_over_union, flagged_code[:, None]),
        "nonfinite": (~finite).sum(),
    }


def join_attention(layers: Sequence[dict[str, np.ndarray]]) -> AttentionStats:
    """Stack the rows of all layers."""
    return AttentionStats(
        **{name: np.stack([layer[name] for layer in layers]) for name in layers[0]}
    )


def near_zero_updates(attn_out_BxTxD: jax.Array, h_mid_BxTxD: jax.Array) -> jax.Array:
    """(B,) share of the tokens with finite values whose attention update is near zero beside the residual stream it leads to."""
    update = jnp.linalg.norm(attn_out_BxTxD.astype(jnp.float32), axis=-1)
    stream = jnp.linalg.norm(h_mid_BxTxD.astype(jnp.float32), axis=-1)
    finite = jnp.isfinite(update) & jnp.isfinite(stream)
    near = rules.is_near_zero(update, stream) & finite
    return near.sum(-1) / jnp.maximum(finite.sum(-1), 1).astype(jnp.float32)


def _row(layer: Layer) -> dict[str, np.ndarray]:
    h = layer.seen["h"]
    outliers_NxT = rules.exceeds(h["token_max"], h["mean"][:, None], layer.tau)
    sums, window = layer.seen["attention"]["sums"], layer.spec.attention.window
    return reduce_attention(sums, outliers_NxT, layer.tau, window)


def _columns(stats: AttentionStats) -> dict[str, Any]:
    names = "sink_rate outlier_keys overlap overlap_code iou iou_code nonfinite".split()
    return {name: getattr(stats, name) for name in names} | {
        "first_token_share": stats.cumulative[:, :, 0] / stats.cumulative.shape[-1],
        "even_share": stats.even_share,
        "code_outlier_tokens": stats.code_outlier_tokens.sum(axis=(1, 2)),
    }


STATISTIC = Statistic(
    "attention",
    taps=("attn_sums",),
    reduce=lambda spec, taps: {"sums": taps["attn_sums"]},
    row=_row,
    join=lambda rows, config: join_attention(rows),
    columns=_columns,
)
