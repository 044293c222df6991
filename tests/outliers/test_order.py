"""The counting median against numpy's, on distributions that break shortcuts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.outliers.order import median_of_magnitudes

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
    values = DISTRIBUTIONS[name](rng, shape).astype(np.float32)
    found = MEDIAN(jnp.asarray(values), jnp.zeros(shape[0], jnp.int32))
    np.testing.assert_allclose(found, np.median(values.reshape(shape[0], -1), axis=1), rtol=1e-6)


@pytest.mark.parametrize("skipped", [0, 1, 2, 50, 299, 300])
def test_skips_the_smallest(skipped):
    values = np.random.default_rng().random((1, 20, 15)).astype(np.float32) + 0.1
    flat = values.reshape(-1)
    flat[:skipped] = 0.0
    want = np.median(flat[skipped:]) if skipped < 300 else 0.0
    found = MEDIAN(jnp.asarray(values), jnp.array([skipped], jnp.int32))
    np.testing.assert_allclose(found, [want], rtol=1e-6)
