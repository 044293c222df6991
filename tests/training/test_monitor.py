"""The outlier monitor against its definitions in numpy, on raw captured intermediates."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.outliers.definitions import NEAR_ZERO
from sysout_jax.training.monitor import Monitor
from tests.models.random_models import random_model, random_tokens
from tests.outliers.rules import excess_kurtosis


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def case(request):
    lm = random_model(request.param, int(np.random.default_rng().integers(1000)))
    names = ("h", "h_mid", "x_down", "attn_map", "attn_out", "q", "k")
    tokens = random_tokens(0)
    _, taps = so.capture(lm, tokens, names)
    return lm, tokens, {name: np.asarray(value, np.float64) for name, value in taps.items()}


def test_every_quantity(case):
    lm, tokens, taps = case
    found = Monitor(lm.config, "float32")(lm.params, jnp.asarray(tokens))
    h, x_down, maps = np.abs(taps["h"]), np.abs(taps["x_down"]), taps["attn_map"]
    share = maps[..., 0].mean(-1)  # (L, B, H): attention that queries give to the first token
    group = taps["q"].shape[3] // taps["k"].shape[3]
    keys = np.repeat(taps["k"], group, axis=3)
    logits = np.einsum("lbthd,lbshd->lbhts", taps["q"], keys) / keys.shape[-1] ** 0.5
    causal = np.tri(logits.shape[-1], dtype=bool)
    norm = np.linalg.norm
    moved = norm(taps["attn_out"], axis=-1) < NEAR_ZERO * norm(taps["h_mid"], axis=-1)
    want = {
        "h_top1": h.max((2, 3)).mean(1),
        "h_mean": h.mean((1, 2, 3)),
        "h_median": np.median(h, axis=(2, 3)).mean(1),
        "h_kurtosis": [excess_kurtosis(layer.reshape(-1, layer.shape[-1])) for layer in taps["h"]],
        "x_down_top1": x_down.max((2, 3)).mean(1),
        "first_token_share": share.mean((1, 2)),
        "first_token_over_even": share.mean((1, 2)) / np.mean(1 / np.arange(1, maps.shape[-1] + 1)),
        "sink_rate": (share > 0.3).mean((1, 2)),
        "logit_max": np.where(causal, logits, -np.inf).max((1, 2, 3, 4)),
        "logit_min": np.where(causal, logits, np.inf).min((1, 2, 3, 4)),
        "near_zero_updates": moved.mean((1, 2)),
    }
    assert set(found) == set(want)
    for name, values in want.items():
        np.testing.assert_allclose(found[name], values, rtol=2e-4, atol=2e-5, err_msg=name)


def test_works_on_the_intermediates_of_another_trainer():
    rng = np.random.default_rng()
    h = rng.standard_normal((2, 5, 7))
    h[1, 3, 2] = -50
    found = so.monitor_layer({"h": jnp.asarray(h), "attn_scale": jnp.full((2, 3, 5), 0.25)})
    assert set(found) == {"h_top1", "h_mean", "h_median", "h_kurtosis", "scale_mean", "scale_min"}
    assert found["h_top1"] == pytest.approx((np.abs(h[0]).max() + 50) / 2, rel=1e-6)
    assert found["scale_min"] == 0.25
    usual = float(found["h_kurtosis"])
    for exponent in (-100, 100):  # fourth powers would leave float32
        scaled = so.monitor_layer({"h": jnp.asarray(h * 2.0**exponent)})["h_kurtosis"]
        assert float(scaled) == pytest.approx(usual, rel=1e-6)
