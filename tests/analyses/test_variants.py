"""Profiles against slow numpy on raw intermediates; records of training runs."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.variants.measure import QUANTILES
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.training.record import training_record
from sysout_jax.weights import InMemory
from tests.models.random_models import CONFIGS
from tests.random_models import random_params

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("family", "attention"),
    [("llama", "default"), ("gpt2", "context_scale"), ("gpt2", "attention_bias"), ("gpt2", "sigmoid"), ("gpt2", "learned_sink"), ("gpt2", "softpick")],
)  # fmt: skip
def test_profile_of_raw_intermediates(family, attention):
    rng = np.random.default_rng()
    seed, tau = int(rng.integers(2**20)), float(rng.uniform(2.5, 6))
    print("seed", seed, "tau", tau)
    config = dataclasses.replace(CONFIGS[family], attention=attention)
    params = jax.tree.map(lambda x: x * 0.7, random_params(config, seed))
    # attention that moves hardly anything in the second layer
    o_proj = params["layer_1"]["attn"]["o_proj"]
    o_proj |= {name: o_proj[name] * 2e-3 for name in o_proj}
    lm = so.LanguageModel(config, InMemory(params))
    tokens = rng.integers(0, config.vocab_size, (3, 15))
    found = so.variant_profile(lm.with_passes(batch_size=2), tokens, tau)
    names = ["h", "h_mid", "attn_out", "attn_map", "q", "k"]
    names += (
        ["attn_scale"] if attention in ("context_scale", "attention_bias", "learned_sink") else []
    )
    _, taps = so.capture(lm, tokens, names)
    taps = {name: np.asarray(value, np.float64) for name, value in taps.items()}
    h = np.abs(taps["h"])
    sinks = (h.max(3) > tau * h.mean((2, 3))[..., None]).any(0)
    sinks[:, 0] = True
    np.testing.assert_array_equal(found.sinks, sinks)
    T = tokens.shape[1]
    left = (taps["attn_map"] * ~sinks[None, :, None, None]).sum(-1)  # L, N, H, T
    scales = {"implicit": left} | ({"explicit": taps["attn_scale"]} if "attn_scale" in taps else {})
    assert (found.explicit is not None) == ("explicit" in scales)
    for layer in range(lm.num_layers):
        for kind, value in scales.items():
            one, rows = getattr(found, kind), value[layer].swapaxes(0, 1)
            np.testing.assert_allclose(one.heads[layer], rows[:, ~sinks].mean(1), rtol=1e-4, atol=1e-6)  # fmt: skip
            np.testing.assert_allclose(one.at_sinks[layer], rows[:, sinks].mean(1), rtol=1e-4, atol=1e-6)  # fmt: skip
            np.testing.assert_allclose(one.quantiles[layer], np.quantile(rows[:, ~sinks], QUANTILES), rtol=1e-3, atol=1e-5)  # fmt: skip
        q, k = taps["q"][layer], taps["k"][layer]
        k = np.repeat(k, q.shape[2] // k.shape[2], axis=2)
        logits = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(q.shape[-1])
        seen = logits[:, :, np.tri(T, dtype=bool)]
        np.testing.assert_allclose(found.logit_max[layer], seen.max(), rtol=1e-4)
        np.testing.assert_allclose(found.logit_min[layer], seen.min(), rtol=1e-4)
        update, stream = (np.linalg.norm(taps[n][layer], axis=-1) for n in ("attn_out", "h_mid"))
        assert found.near_zero[layer] == pytest.approx((update < 0.01 * stream).mean(), abs=1e-6)
        share = taps["attn_map"][layer, :, :, :, 0].mean((0, 2))
        np.testing.assert_allclose(found.first_token_share[layer], share, rtol=1e-4, atol=1e-6)
    assert found.near_zero[1] > 0
    json.dumps(found.to_dict(), allow_nan=False)


def test_planted_sinks_are_the_implicit_scale():
    """The planted sink heads give their attention to the outlier tokens: what is left is next to nothing, elsewhere it is not."""
    seed = int(np.random.default_rng().integers(2**20))
    print("seed", seed)
    planted = planted_llama(seed, num_layers=5, births=(Birth(1, 2, 1),))
    tokens = planted.tokens(3, 60, seed)
    found = so.variant_profile(planted.lm, tokens)
    np.testing.assert_array_equal(found.sinks[:, 1:], planted.mask(tokens)[:, 1:])
    sinks = {(s.layer, s.head) for s in planted.truth.sinks}
    for layer in range(5):
        for head in range(planted.lm.config.num_heads):
            assert ((layer, head) in sinks) == (found.implicit.heads[layer, head] < 0.5)


def test_every_token_a_sink():
    lm = planted_llama(seed=1).lm
    found = so.variant_profile(lm, np.array([[3]]))
    assert np.isnan(found.implicit.heads).all() and (found.implicit.at_sinks == 0).all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_records(tmp_path):
    assert training_record(tmp_path / "nothing") is None
    rows = [
        {"run": {}},
        {"step": 1, "loss": 3.0},
        {"step": 2, "loss": 2.0},
        {"step": 2, "val_loss": 2.5},
        {"step": 2, "monitor": {"h_top1": [1.0, 4.0], "logit_max": [2.0, 2.0]}},
        {"step": 4, "monitor": {"h_top1": [2.0, 5.0]}},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    for place in (tmp_path, tmp_path / "checkpoints/2"):
        record = training_record(place)
        assert record is not None
        assert record.steps.tolist() == [1, 2] and record.loss.tolist() == [3.0, 2.0]
        assert record.val_steps.tolist() == [2] and record.monitor_steps.tolist() == [2, 4]
        assert record.monitor["h_top1"].tolist() == [[1.0, 4.0], [2.0, 5.0]]
        assert set(record.monitor) == {"h_top1"}


def test_a_model_that_only_lies_in_a_run_has_no_record(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "ckpt.pt").touch()
    monkeypatch.chdir(tmp_path)
    assert training_record(tmp_path) is not None
    for name in ("demo", "org/name", str(tmp_path / "other"), str(tmp_path / "ckpt.pt")):
        assert training_record(name) is None
