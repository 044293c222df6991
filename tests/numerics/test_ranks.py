"""Rank correlation against scipy."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from sysout_jax.numerics.ranks import rank_correlation


def test_against_scipy():
    rng = np.random.default_rng(0)
    for size in (3, 5, 40):
        for distinct in (2, 5, 1000):  # ties
            x, y = rng.integers(0, distinct, (2, size)).astype(float)
            x[0] += 0.5
            y[-1] += 0.5
            np.testing.assert_allclose(rank_correlation(x, y), spearmanr(x, y)[0], atol=1e-12)


def test_what_tells_nothing():
    assert np.isnan(rank_correlation([1.0, 2.0], [1.0, 2.0]))
    assert np.isnan(rank_correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))
    assert rank_correlation([1.0, 2.0, 3.0], [0.0, 5.0, np.inf]) == 1.0
