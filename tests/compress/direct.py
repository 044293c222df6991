"""Slow, direct float64 implementations of the quantisers and pruners, written from their definitions."""

from __future__ import annotations

import numpy as np


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """One set of values that shares a scale."""
    top = 2 ** (bits - 1) - 1
    largest = max((abs(float(v)) for v in values.ravel()), default=0.0)
    if largest == 0:
        return np.zeros(values.shape)
    scale = float(np.float32(largest) / np.float32(top))
    out = [
        scale * min(max(round(float(np.float32(v) / np.float32(scale))), -top), top)
        for v in values.ravel()
    ]
    return np.array(out).reshape(values.shape)


def absmax(kernel: np.ndarray, bits: int, granularity: str, group: int, kept=None) -> np.ndarray:
    I, O = kernel.shape
    kept = np.zeros((I, O), bool) if kept is None else kept
    out = kernel.astype(np.float64)
    sets = []
    if granularity == "tensor":
        sets = [[(i, o) for i in range(I) for o in range(O)]]
    elif granularity == "channel":
        sets = [[(i, o) for i in range(I)] for o in range(O)]
    else:
        for start in range(0, I, group):
            sets += [[(i, o) for i in range(start, min(start + group, I))] for o in range(O)]
    for members in sets:
        free = [place for place in members if not kept[place]]
        if free:
            rows, columns = zip(*free, strict=True)
            out[rows, columns] = rounded(kernel[rows, columns], bits)
    return out


def pruned(arrays: list[np.ndarray], count: int) -> list[np.ndarray]:
    """The `count` smallest of all arrays at zero; of equals the first."""
    flat = [(abs(float(v)), a, i) for a, x in enumerate(arrays) for i, v in enumerate(x.ravel())]
    out = [x.copy() for x in arrays]
    for _, a, i in sorted(flat)[:count]:
        out[a].reshape(-1)[i] = 0
    return out


def assert_nearest(found: np.ndarray, exact: np.ndarray, expected: np.ndarray) -> None:
    """Equal, or (where `exact` lies between two steps of the grid) as near to `exact` as expected: division by a constant may
    round the scale by one bit, and with it the tie."""
    differs = ~np.isclose(found, expected, rtol=1e-6, atol=0)
    step = np.abs(found - expected)[differs]
    distance = np.abs(found - exact)[differs] - np.abs(expected - exact)[differs]
    assert (np.abs(distance) <= 1e-4 * step).all()
    assert differs.mean() < 0.01
