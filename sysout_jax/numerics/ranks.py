"""Rank correlation (Spearman 1904)."""

from __future__ import annotations

import numpy as np


def rank_correlation(x_N, y_N) -> float:
    """Spearman's ρ, ties at their mean rank; NaN where fewer than three values or all the same tell nothing. inf ranks as the largest."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (x_N, y_N)]
    if len(ranks[0]) < 3 or any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
