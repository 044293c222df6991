"""A quantised key-value cache against torch, and what static calibration leaves out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.compress.cache import SHARED, rounded
from sysout_jax.compress.inputs import calibrate, calibrated_on
from sysout_jax.compress.methods import METHODS, Compressor, Settings, named
from sysout_jax.compress.quantise import absmax_weights
from tests.random_models import random_model

TOKENS = np.arange(24).reshape(2, 12) % 16


def of_torch(x: np.ndarray, bits: int, sets: str, tap: str, kept: int) -> np.ndarray:
    """Symmetric AbsMax, one scale for each set of values, in PyTorch float64."""
    torch = pytest.importorskip("torch", reason="PyTorch is the independent implementation")
    values = torch.tensor(x, dtype=torch.float64)
    part = values[:, kept:]
    if sets == "tensor":
        largest = part.abs().flatten(1).amax(1)[:, None, None, None]
    elif tap == "k":
        largest = part.abs().amax(1, keepdim=True)
    else:
        largest = part.abs().amax(3, keepdim=True)
    scale = largest / (2 ** (bits - 1) - 1)
    values[:, kept:] = torch.round(part / scale) * scale
    return values.numpy()


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("sets", SHARED)
def test_keys_and_values_equal_torch(bits, sets, kept):
    x = np.random.default_rng(bits).standard_normal((2, 9, 3, 5)).astype(np.float32)
    x[:, 0] *= 50  # a sink token's
    for tap, shared in SHARED[sets].items():
        found = np.asarray(rounded(jnp.asarray(x), bits, shared, kept))
        np.testing.assert_allclose(found, of_torch(x, bits, sets, tap, kept), rtol=2e-6, atol=1e-6)
        np.testing.assert_array_equal(found[:, :kept], x[:, :kept])


@pytest.fixture(scope="module")
def lm() -> so.LanguageModel:
    return random_model("llama-gqa", 0, num_layers=2, vocab_size=16)


def test_a_model_reads_its_cache_rounded(lm):
    """One key head after another: what attention went on with lies on the grid that the method names."""
    method = METHODS["kv4_tensor_first"]
    _, taps = so.capture(Compressor(lm).model(method), TOKENS, ("k", "v"))
    _, exact = so.capture(lm, TOKENS, ("k", "v"))
    for name in ("k", "v"):
        np.testing.assert_array_equal(taps[name][0][:, 0], exact[name][0][:, 0])
        want = of_torch(exact[name][0], 4, "tensor", name, 1)
        np.testing.assert_allclose(taps[name][0], want, rtol=1e-5, atol=1e-6)
    full, few, fine = (
        so.perplexity(one, TOKENS).value
        for one in (lm, Compressor(lm).model(METHODS["kv2_tensor"]), Compressor(lm).model(METHODS["kv8_channel"]))
    )  # fmt: skip
    assert abs(few / full - 1) > 10 * abs(fine / full - 1) > 0


def test_calibration_without_some_tokens(lm):
    counted = np.ones(TOKENS.shape, bool)
    counted[:, 0] = False
    counted[1, 5] = False
    found, whole = calibrate(lm, TOKENS, counted), calibrate(lm, TOKENS)
    _, taps = so.capture(lm, TOKENS, ("x_down", "attn_in"))
    for layer in range(lm.num_layers):
        for path, tap in (("mlp/down_proj", "x_down"), ("attn/q_proj", "attn_in")):
            size = np.abs(np.asarray(taps[tap][layer]))
            np.testing.assert_allclose(found[layer][path], size[counted].max(0), rtol=1e-6)
            np.testing.assert_allclose(whole[layer][path], size.max((0, 1)), rtol=1e-6)
    with pytest.raises(so.InputError, match="no token that counts"):
        calibrate(lm, TOKENS, np.zeros(TOKENS.shape, bool))


def test_what_is_calibrated_on_is_named_by_what_it_is():
    """Whoever gives the analysed windows as calibration is not told that they are others."""
    read = np.arange(12).reshape(3, 4)
    assert calibrated_on(read, read + 1) == "3 windows of 4 tokens, other windows"
    assert calibrated_on(read, read) == "3 windows of 4 tokens, the analysed windows themselves"
    assert calibrated_on(read, read[1:2]) == "3 windows of 4 tokens, 1 of them analysed too"
    assert calibrated_on(read[:, :2], read) == "3 windows of 2 tokens, other windows"


def test_an_exempted_weight_in_the_scale():
    """By hand: 7 sets the step of its group only when it counts."""
    kernel = np.array([[7.0], [0.7], [-0.3], [0.1]], np.float32)
    kept = np.array([[True], [False], [False], [False]])
    settings = {"bits": 4, "granularity": "group", "group_size": 4}
    outside = absmax_weights(jnp.asarray(kernel), jnp.asarray(kept), **settings)
    inside = absmax_weights(jnp.asarray(kernel), jnp.asarray(kept), **settings, kept_in_scale=True)
    np.testing.assert_allclose(outside[:, 0], [7.0, 0.7, -0.3, 0.1], rtol=1e-6)  # step 0.1
    np.testing.assert_allclose(inside[:, 0], [7.0, 1.0, 0.0, 0.0], rtol=1e-6)  # step 1


def test_labels_say_what_is_compressed():
    whole = Settings(group_size=32, embeddings=True)
    assert named(METHODS["w4_group"], whole) == "W4 per group of 32, with embeddings"
    assert named(METHODS["w4_group"], Settings()) == "W4 per group of 64"
    assert named(METHODS["kv4_tensor"], whole) == "KV4 per tensor"
