"""Quantisers against a direct implementation, and the bounds that they promise."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.compress.quantise import GRANULARITIES, absmax_scale, absmax_weights, fake_quantise
from tests.compress.direct import absmax, assert_nearest

SHAPES = [(13, 7), (64, 5), (1, 9), (130, 3), (6, 1)]


def draw(shape) -> np.ndarray:
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("keep", [False, True])
def test_weights_equal_the_direct_definition(shape, granularity, bits, keep):
    kernel = draw(shape)
    kept = np.random.default_rng().random(shape) < 0.2 if keep else None
    found = np.asarray(
        absmax_weights(
            jnp.asarray(kernel),
            None if kept is None else jnp.asarray(kept),
            bits=bits, granularity=granularity, group_size=8,
        )
    )  # fmt: skip
    assert_nearest(found, kernel, absmax(kernel, bits, granularity, 8, kept))
    if kept is not None:
        np.testing.assert_array_equal(found[kept], kernel[kept])


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_error_is_at_most_half_a_scale(bits):
    kernel = draw((50, 20))
    scale = np.abs(kernel).max(0) / (2 ** (bits - 1) - 1)
    found = np.asarray(absmax_weights(jnp.asarray(kernel), bits=bits, granularity="channel"))
    assert (np.abs(found - kernel) <= scale[None] / 2 * (1 + 1e-5)).all()
    assert len(np.unique(np.round(found[:, 3] / scale[3]))) <= 2**bits - 1


def test_finer_sets_never_have_larger_scales():
    kernel = draw((96, 10))
    errors = [
        np.square(np.asarray(absmax_weights(jnp.asarray(kernel), bits=8, granularity=g, group_size=16)) - kernel).sum()
        for g in GRANULARITIES
    ]  # fmt: skip
    assert errors[0] > errors[1] > errors[2]


def test_zeros_and_values_that_are_not_finite():
    kernel = draw((12, 4))
    kernel[:, 1] = 0
    found = np.asarray(absmax_weights(jnp.asarray(kernel), bits=8, granularity="channel"))
    assert (found[:, 1] == 0).all() and np.isfinite(found).all()
    kernel[3, 2] = np.inf
    found = np.asarray(absmax_weights(jnp.asarray(kernel), bits=8, granularity="channel"))
    assert np.isinf(found[3, 2]) and np.isfinite(np.delete(found, 3, 0)).all()
    assert np.abs(np.delete(found[:, 2], 3)).max() > 0


def test_a_static_scale_clips():
    x = jnp.array([[-5.0, 0.4, 2.0, 9.0]])
    scale = absmax_scale(jnp.float32(2.0), 8)[None, None]
    np.testing.assert_allclose(fake_quantise(x, scale, 8)[0], [-2, 0.4, 2, 2], atol=1 / 127)


def test_too_few_bits():
    with pytest.raises(ValueError, match="at least 2"):
        absmax_weights(jnp.ones((2, 2)), bits=1)
