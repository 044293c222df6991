"""The counting median against numpy's, on distributions that break shortcuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.numerics.order import median_of_magnitudes

MEDIAN = jax.jit(median_of_magnitudes)


def _normal(rng, shape):
    return np.abs(rng.standard_normal(shape))


DISTRIBUTIONS = {
    "normal": _normal,
    "rounded, many ties": lambda rng, shape: np.round(_normal(rng, shape) * 2) / 2,
    "all zero": lambda rng, shape: np.zeros(shape),
    "half zero, as after ReLU": lambda rng, shape: np.maximum(rng.standard_normal(shape), 0),
    "sixteen orders of magnitude": lambda rng, shape: np.exp(rng.standard_normal(shape) * 8),
    "two clusters": lambda rng, shape: np.where(rng.random(shape) < 0.5, 1e30, _normal(rng, shape)),
    "sorted": lambda rng, shape: np.sort(_normal(rng, shape).ravel()).reshape(shape),
    "tiny": lambda rng, shape: _normal(rng, shape) * 1e-30,
    "outliers in one channel": lambda rng, shape: (
        _normal(rng, shape) + 5000.0 * (np.arange(shape[-1]) == 0)
    ),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize(
    "shape", [(2, 1, 1), (3, 1, 2), (2, 3, 1), (3, 7, 15), (2, 128, 200), (1, 301, 97)]
)
def test_equals_numpy(name, shape):
    rng = np.random.default_rng()
    values = DISTRIBUTIONS[name](rng, shape).astype(np.float32) * rng.choice([-1, 1], shape)
    found = MEDIAN(jnp.asarray(values, jnp.float32), jnp.zeros(shape[0], jnp.int32))
    want = np.median(np.abs(values).reshape(shape[0], -1), axis=1)
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 130, 201)])
def test_leaves_out_what_is_not_finite(share, shape):
    rng = np.random.default_rng()
    values = rng.standard_normal(shape).astype(np.float32)
    bad = rng.random(shape) < share
    values[bad] = rng.choice([np.nan, np.inf, -np.inf], bad.sum())
    found = MEDIAN(jnp.asarray(values), jnp.asarray(bad.sum((1, 2)), jnp.int32))
    want = [
        np.median(np.abs(row[~drop])) if (~drop).any() else 0
        for row, drop in zip(values, bad, strict=True)
    ]
    np.testing.assert_allclose(found, want, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_takes_any_dtype(dtype):
    values = jnp.asarray(np.random.default_rng().standard_normal((2, 100, 250)), dtype)
    want = np.median(np.abs(np.asarray(values, np.float32)).reshape(2, -1), axis=1)
    np.testing.assert_allclose(MEDIAN(values, jnp.zeros(2, jnp.int32)), want, rtol=1e-6)
