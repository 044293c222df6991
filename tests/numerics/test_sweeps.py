"""Sweeps in spans and blocks give what numpy gives of everything at once, whatever the sizes are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.families.llama import LlamaConfig
from sysout_jax.numerics import sweeps
from sysout_jax.statistics.activations import reduce_activations
from sysout_jax.statistics.weights import reduce_weights
from tests.random_models import random_params

SHAPES = [(1, 1, 1), (2, 7, 3), (1, 32, 5), (3, 33, 2), (2, 100, 11)]


@pytest.mark.parametrize("shape", SHAPES)
def test_spans(shape):
    x = np.random.default_rng().standard_normal(shape).astype(np.float32)
    spans = sweeps.fold(jnp.min, jnp.asarray(x))
    assert spans.shape == (shape[0], -(-shape[1] // sweeps.SPAN), shape[2])
    np.testing.assert_array_equal(spans.min(1), x.min(1))
    np.testing.assert_array_equal(sweeps.count(jnp.asarray(x > 0.5)), (x > 0.5).sum((1, 2)))


@pytest.mark.parametrize("block", [1, 30, 70, 10**9])
@pytest.mark.parametrize("shape", SHAPES)
def test_blocks_come_in_order_and_are_joined(shape, block, monkeypatch):
    monkeypatch.setattr(sweeps, "BLOCK", block)
    x = np.random.default_rng().integers(-9, 9, shape).astype(np.float32)
    sizes = []

    def step(carry, block_BxRxC):
        sizes.append(block_BxRxC.shape[1])
        # depends on the order of the blocks
        return 0.5 * carry + block_BxRxC[:, -1].sum(1), (block_BxRxC.max(2), 2 * block_BxRxC)

    carry, (largest, doubled) = sweeps.in_blocks(step, jnp.zeros(shape[0]), jnp.asarray(x))
    np.testing.assert_array_equal(largest, x.max(2))
    np.testing.assert_array_equal(doubled, 2 * x)
    ends = [*range(sizes[0], shape[1], sizes[0]), shape[1]]
    want = np.zeros(shape[0], np.float32)
    for end in ends:
        want = 0.5 * want + x[:, end - 1].sum(1)
    np.testing.assert_array_equal(carry, want)
    assert sizes[0] == min(
        shape[1], max(2 ** (block // (shape[0] * shape[2])).bit_length() // 2, 1)
    )


@pytest.mark.parametrize("block", [40, 333])
def test_statistics_do_not_depend_on_the_blocks(block, monkeypatch):
    """Counts, maxima and indices are equal, sums to rounding; NaN and inf included."""
    rng = np.random.default_rng()
    x = (rng.standard_normal((2, 75, 20)) ** 5).astype(np.float32)
    x[rng.random(x.shape) < 0.01] = np.nan
    x[rng.random(x.shape) < 0.01] = np.inf
    config = LlamaConfig(
        vocab_size=11, context_length=8, d_model=24, d_ff=52, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=12,
    )  # fmt: skip
    layer = jax.tree.map(lambda w: w**7, random_params(config, int(rng.integers(1000)))["layer_0"])
    layer["mlp"]["down_proj"]["kernel"] = layer["mlp"]["down_proj"]["kernel"].at[3, 5].set(jnp.nan)

    def run():
        jax.clear_caches()
        return reduce_activations(jnp.asarray(x), 16), reduce_weights(config.layer(0), layer)

    whole = run()
    monkeypatch.setattr(sweeps, "BLOCK", block)
    cut = run()
    jax.clear_caches()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(cut), strict=True):
        if jnp.issubdtype(a.dtype, jnp.integer):
            np.testing.assert_array_equal(a, b)
        # signed sums cancel: to the rounding of what is summed
        largest = np.abs(np.nan_to_num(b, posinf=0, neginf=0)).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * min(largest, 10))
    assert int(cut[0]["nonfinite"].sum()) == (~np.isfinite(x)).sum()
    assert int(cut[1]["down"]["nonfinite"]) == 1
