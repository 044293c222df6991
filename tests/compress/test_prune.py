"""Pruning: exact counts, thresholds and ties, per matrix and over several."""

from __future__ import annotations

import numpy as np
import pytest

from sysout_jax.compress.prune import (
    count_ties,
    find_threshold,
    prune,
    prune_matrix,
    pruned_count,
)
from tests.compress.direct import pruned


def draw(ties: bool) -> list[np.ndarray]:
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    shapes = [(7, 11), (1, 5), (30, 4)]
    arrays = [rng.standard_normal(s) * 10.0 ** rng.integers(-3, 3) for s in shapes]
    if ties:
        arrays = [np.round(3 * a / np.abs(a).max()) for a in arrays]
    return [a.astype(np.float32) for a in arrays]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("sparsity", [0.0, 0.13, 0.5, 0.97, 1.0])
def test_one_matrix(ties, sparsity):
    for weights in draw(ties):
        count = round(weights.size * sparsity)
        (expected,) = pruned([weights], count)
        found = prune_matrix(weights, sparsity)
        np.testing.assert_array_equal(found, expected)
        if not (weights == 0).any():
            assert (found == 0).sum() == count


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [0, 1, 60, 150, 202])
def test_several_matrices_together(ties, count):
    arrays = draw(ties)
    threshold = find_threshold(lambda: arrays, count)
    before, found = 0, []
    for weights in arrays:
        found.append(prune(weights, threshold, before))
        before += count_ties(weights, threshold)
    for a, b in zip(found, pruned(arrays, count), strict=True):
        np.testing.assert_array_equal(a, b)


def test_dtype_shape_and_nan():
    weights = np.array([[3, -1, np.nan], [0.5, -0.25, np.inf]], np.float16)
    found = prune_matrix(weights, 0.5)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, np.array([[3, 0, np.nan], [0, 0, np.inf]], np.float16))
    assert weights[0, 1] == -1  # the original stays


def test_shares_outside_are_refused():
    for sparsity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            pruned_count(10, sparsity)
