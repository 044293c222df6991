"""Quantisers and pruners against PyTorch's own, which share no line with ours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.compress.block_formats import block_scales
from sysout_jax.compress.prune import find_threshold, prune, prune_matrix
from sysout_jax.compress.quantise import absmax_scale, absmax_weights, fake_quantise
from sysout_jax.compress.smooth import scales

torch = pytest.importorskip("torch", reason="PyTorch is the independent implementation")

SHAPE, GROUP = (48, 7), 16


def drawn(*shape: int) -> np.ndarray:
    rng = np.random.default_rng()
    return (rng.standard_normal(shape) * np.exp(rng.standard_normal(shape))).astype(np.float32)


def near(found, wanted, scale) -> None:
    """Equal but for ties, which the last bit of a scale decides: one step in a hundred values at most."""
    found, wanted, scale = (np.asarray(x, np.float64) for x in (found, wanted, scale))
    steps = np.abs(found - wanted) / scale
    assert (np.minimum(steps, np.abs(steps - 1)) < 1e-3).all() and (steps > 0.5).mean() < 0.01


def of_torch(rows: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Every row on the symmetric grid of its largest magnitude, by torch's quantisation-aware training; and the scales."""
    top = 2 ** (bits - 1) - 1
    values = torch.tensor(rows)
    scale = values.abs().amax(dim=1) / top
    zero = torch.zeros(len(rows), dtype=torch.int32)
    rounded = torch.fake_quantize_per_channel_affine(values, scale, zero, 0, -top, top)
    return rounded.numpy(), scale[:, None].numpy()


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
def test_weights(bits, granularity):
    kernel = drawn(*SHAPE)
    settings = {"bits": bits, "granularity": granularity, "group_size": GROUP}
    found = np.asarray(absmax_weights(jnp.asarray(kernel), **settings))
    sets = {"tensor": (1, -1), "channel": (SHAPE[1], -1), "group": (-1, GROUP)}[granularity]
    wanted, scale = of_torch(kernel.T.reshape(sets), bits)
    near(found.T.reshape(sets), wanted, scale)


def test_inputs_with_a_scale_of_their_own_and_with_a_static_one():
    x = drawn(40, 24)
    own = absmax_scale(jnp.abs(x).max(axis=-1, keepdims=True), 8)
    wanted, scale = of_torch(x, 8)
    near(fake_quantise(jnp.asarray(x), own, 8), wanted, scale)
    static = np.abs(x[:20]).max() / 127  # what is larger in the rest is cut
    clipped = torch.fake_quantize_per_tensor_affine(torch.tensor(x), float(static), 0, -127, 127)
    found = fake_quantise(jnp.asarray(x), jnp.full((1, 1), static), 8)
    near(found, clipped.numpy(), static)


def test_the_scales_of_nvfp4_are_torchs_e4m3():
    largest = np.exp(np.random.default_rng().uniform(-6, 6, 500)).astype(np.float32)
    unit = np.float32(largest.max()) / np.float32(6 * 448)
    share = torch.tensor(largest) / 6 / float(unit)
    wanted = share.to(torch.float8_e4m3fn).float().numpy() * unit
    found = block_scales(jnp.asarray(largest), jnp.asarray(largest.max()), "nvfp4")
    np.testing.assert_array_equal(found, wanted)


def test_the_scales_of_smoothing():
    inputs, weights = (np.abs(drawn(30)).astype(np.float64) for _ in range(2))
    for alpha in (0.0, 0.3, 1.0):
        x, w = torch.tensor(inputs), torch.tensor(weights)
        wanted = x.clamp(min=1e-5).pow(alpha) / w.clamp(min=1e-5).pow(1 - alpha)
        np.testing.assert_allclose(scales(inputs, weights, alpha), wanted, rtol=1e-12)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_pruning_of_one_matrix_and_of_all(share):
    from torch.nn.utils import prune as theirs

    kernels = [drawn(*SHAPE), drawn(20, 9)]
    layers = [torch.nn.Linear(*kernel.shape, bias=False) for kernel in kernels]
    for layer, kernel in zip(layers, kernels, strict=True):
        layer.weight.data = torch.tensor(kernel.T.copy())
    theirs.global_unstructured([(layer, "weight") for layer in layers], theirs.L1Unstructured, amount=share)  # fmt: skip
    together = find_threshold(lambda: kernels, round(share * sum(k.size for k in kernels)))
    for layer, kernel in zip(layers, kernels, strict=True):
        np.testing.assert_array_equal(prune(kernel, together), layer.weight.detach().T)
        alone = torch.nn.Linear(*kernel.shape, bias=False)
        alone.weight.data = torch.tensor(kernel.T.copy())
        theirs.l1_unstructured(alone, "weight", amount=share)
        np.testing.assert_array_equal(prune_matrix(kernel, share), alone.weight.detach().T)
