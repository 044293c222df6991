"""Fewer points for wide pictures, without losing a peak: every group of channels keeps its largest value, where it stands."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pooled:
    """X lines of B points: `values[x, b]` stands at `channels[x, b]` of line `lines[x]`; channels ascend along a line."""

    lines: np.ndarray  # (X,) int
    channels: np.ndarray  # (X, B) int
    values: np.ndarray  # (X, B) magnitudes; NaN where there is none


def pool_lines(values_XxC: np.ndarray, lines_X: np.ndarray, bins: int) -> Pooled:
    """Each line on its own; with at most `bins` channels every value is kept. A group that is all NaN stays NaN."""
    edges = _edges(values_XxC.shape[1], bins)
    there = np.where(np.isnan(values_XxC), -1.0, values_XxC)
    at = np.stack(
        [a + there[:, a:b].argmax(axis=1) for a, b in itertools.pairwise(edges)],
        axis=1,
    )
    return Pooled(np.asarray(lines_X), at, np.take_along_axis(values_XxC, at, axis=1))


def pool_matrix(w_OxI: np.ndarray, lines: int, bins: int) -> Pooled:
    """Magnitudes of a matrix: groups of rows give lines that stand at the row of their largest value. NaN and inf count as 0."""
    edges = _edges(len(w_OxI), lines)
    rows, tops = [], []
    for a, b in itertools.pairwise(edges):
        magnitude = np.abs(w_OxI[a:b].astype(np.float32))
        group = np.where(np.isfinite(magnitude), magnitude, 0.0)
        rows.append(a + int(group.max(axis=1).argmax()))
        tops.append(group.max(axis=0))
    return pool_lines(np.stack(tops), np.array(rows), bins)


def _edges(size: int, bins: int) -> np.ndarray:
    """Boundaries of at most `bins` groups of nearly equal size, none empty."""
    return np.linspace(0, size, min(size, bins) + 1).astype(int)
