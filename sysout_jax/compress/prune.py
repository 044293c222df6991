"""Unstructured magnitude pruning with exact sparsity: the k smallest of all weights become zero, per matrix or of the whole model.

Non-negative floats order as their bits do, so two counts over the bits' halves find the exact k-th smallest magnitude in passes over weights
that are read one matrix at a time. Of weights that tie with it the first are pruned, in the order of reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

HALF = 1 << 16


@dataclass(frozen=True)
class Threshold:
    """Everything with magnitude bits below `bits` is pruned, and the first `ties` of those equal to them."""

    bits: int
    ties: int


def pruned_count(size: int, sparsity: float) -> int:
    """How many of `size` weights a sparsity in [0, 1] removes; ValueError outside."""
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity {sparsity:g}; expected a share from 0 to 1")
    return round(size * sparsity)


def find_threshold(matrices: Callable[[], Iterable[np.ndarray]], count: int) -> Threshold:
    """The `count`-th smallest magnitude of all matrices, which are read twice."""
    high, remaining = _bin((m >> 16 for m in map(_bits, matrices())), count)
    low, ties = _bin(((m[m >> 16 == high] & (HALF - 1)) for m in map(_bits, matrices())), remaining)
    return Threshold(high * HALF + low, ties)


def prune(weights: np.ndarray, threshold: Threshold, ties_before: int = 0) -> np.ndarray:
    """A copy with its smallest weights at zero; `ties_before` ties came in matrices that were read earlier."""
    bits = _bits(weights)
    removed = bits < threshold.bits
    ties = np.flatnonzero(bits == threshold.bits)[: max(threshold.ties - ties_before, 0)]
    removed[ties] = True
    return np.where(removed.reshape(weights.shape), np.zeros((), weights.dtype), weights)


def count_ties(weights: np.ndarray, threshold: Threshold) -> int:
    """Weights whose magnitude is the threshold."""
    return int((_bits(weights) == threshold.bits).sum())


def prune_matrix(weights: np.ndarray, sparsity: float) -> np.ndarray:
    """The smallest `round(sparsity · size)` weights of one matrix at zero."""
    count = pruned_count(weights.size, sparsity)
    return prune(weights, find_threshold(lambda: [weights], count))


def _bits(weights: np.ndarray) -> np.ndarray:
    """Magnitudes as integers of the same order, flat; NaN above everything."""
    return np.abs(np.asarray(weights, np.float32)).ravel().view(np.uint32)


def _bin(values: Iterable[np.ndarray], count: int) -> tuple[int, int]:
    """Which 16-bit value the `count`-th smallest has, and how many of the `count` have it."""
    histogram = np.zeros(HALF, np.int64)
    for part in values:
        histogram += np.bincount(part, minlength=HALF)
    below = np.cumsum(histogram)
    place = int(np.searchsorted(below, count))
    return place, count - int(below[place - 1] if place else 0)
