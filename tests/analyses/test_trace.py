"""The narrow second pass records what the model computes: rows and inputs of the birth channel, and of the drawn head."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.close_up import WINDOW
from sysout_jax.config import ATTENTION
from sysout_jax.outliers.definitions import entering
from sysout_jax.testing import Birth, planted_llama
from tests.parameters import mostly_endurance
from tests.random_models import random_model


def fresh_seed() -> int:
    seed = int(np.random.default_rng().integers(10_000))
    print("seed", seed)
    return seed


def followed(lm: so.LanguageModel, tokens: np.ndarray) -> so.Lifecycle:
    report = so.lifecycle(lm, tokens, cause=False)
    return report if report.found else report.candidate


@pytest.mark.parametrize("name", ["llama-gqa", "llama-mqa", "gpt2"])
def test_rows_times_input_are_what_the_model_computes(name):
    """On random models with biases and norm scales, the rows and inputs kept give the captured gate and up, q and v."""
    seed = fresh_seed()
    lm = random_model(name, seed)
    tokens = np.random.default_rng(seed).integers(0, 61, (2, 60))
    traced = followed(lm, tokens).trace
    rows, close_up = traced.rows, traced.close_up
    names = ("up", "q", "v", "attn_in", *(("gate",) if name != "gpt2" else ()))
    _, taps = so.capture(lm, tokens, names)
    mlp = lm.params[f"layer_{rows.layer}"]["mlp"]
    matrices = {"up": rows.up} | ({"gate": rows.gate} if name != "gpt2" else {})
    assert (rows.gate is None) == (name == "gpt2")
    for tapped, matrix in matrices.items():
        bias = np.asarray(mlp[f"{tapped}_proj"].get("bias", np.zeros(lm.config.d_ff)))
        product = rows.x @ matrix.T + bias[rows.indices]
        for e, sequence in enumerate(traced.targets.sequences):
            want = taps[tapped][rows.layer][sequence][traced.targets.tokens[e]][:, rows.indices]
            np.testing.assert_allclose(product[e], want, rtol=1e-4, atol=1e-4)
    first, place = traced.targets.sequences[0], slice(close_up.start, close_up.start + WINDOW)
    assert close_up.x.shape == (WINDOW, lm.config.d_model)
    want = taps["attn_in"][close_up.layer][first][place]
    np.testing.assert_allclose(close_up.x, want, rtol=1e-5, atol=1e-5)
    q = taps["q"][close_up.layer][first][place][:, close_up.head]
    np.testing.assert_allclose(close_up.q, q, rtol=1e-5, atol=1e-5)


UNSCALED = ("default", "fixed_bias", "context_bias", "sigmoid", "softpick")
PAPER = ("fixed_bias", "context_bias", "attention_bias", "context_scale")


@pytest.mark.parametrize(
    ("name", "attention"),
    mostly_endurance(
        itertools.product(("gpt2", "llama-gqa"), ATTENTION),
        usual=[("llama-gqa", "default"), ("llama-gqa", "sigmoid")]
        + [("gpt2", each) for each in (*PAPER, "softpick")],
    ),
)
def test_attention_on_outliers_is_that_of_the_variant(name, attention):
    """Mass, update and the close-up equal what captured maps, values and scales give, for every attention variant."""
    seed = fresh_seed()
    lm = random_model(name, seed, attention=attention)
    tokens = np.random.default_rng(seed).integers(0, 61, (3, 60))
    traced = followed(lm, tokens).trace
    scaled = () if attention in UNSCALED else ("attn_scale",)
    _, taps = so.capture(lm, tokens, ("attn_map", "v", "attn_heads", *scaled))
    maps = taps["attn_map"].astype(np.float64)
    group = lm.config.num_heads // taps["v"].shape[3]
    values = np.repeat(taps["v"], group, axis=3)
    mask = traced.targets.mask
    sees = np.cumsum(mask, axis=2) > 0
    mass = np.einsum("lehts,les,let->lh", maps, mask, sees) / sees.sum((1, 2))[:, None]
    np.testing.assert_allclose(traced.mass, mass, rtol=1e-4)
    added = np.einsum("lehts,les,leshd->lethd", maps, mask, values)
    if scaled:
        added *= taps["attn_scale"].transpose(0, 1, 3, 2)[..., None]
    whole = np.linalg.norm(taps["attn_heads"], axis=-1)
    # softpick may attend to nothing
    share = np.linalg.norm(added, axis=-1) / np.where(whole > 0, whole, 1)
    others = sees & ~mask
    count = np.maximum(others.sum((1, 2)), 1)[:, None]
    np.testing.assert_allclose(
        traced.update, np.einsum("leth,let->lh", share, others) / count, rtol=1e-4
    )
    head = traced.close_up
    place = slice(head.start, head.start + WINDOW)
    want = maps[head.layer, traced.targets.sequences[0], head.head][place, place]
    np.testing.assert_allclose(head.probabilities, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("window", [None, 24])
def test_sinks_values_and_logits_are_compared_among_the_keys_that_a_query_sees(window):
    """Written out query by query: the even share, the causal difference of q·k, the lengths of values, projected ones and heads."""
    seed = fresh_seed()
    lm = random_model("llama-gqa", seed, sliding_window=window)
    tokens = np.random.default_rng(seed).integers(0, 61, (3, 60))
    traced = followed(lm, tokens).trace
    _, taps = so.capture(lm, tokens, ("q", "k", "v", "attn_heads"))
    L, N, T, H, Dh = taps["q"].shape
    q, heads = taps["q"].astype(np.float64), taps["attn_heads"].astype(np.float64)
    k, v = (
        np.repeat(taps[name].astype(np.float64), H // lm.config.num_kv_heads, 3) for name in "kv"
    )
    o = np.stack(
        [np.asarray(lm.params[f"layer_{l}"]["attn"]["o_proj"]["kernel"]) for l in range(L)]
    )
    projected = np.einsum("lnthd,lhde->lnthe", v, o.reshape(L, H, Dh, -1))
    for l, mask in enumerate(traced.targets.mask):
        even, parts, lengths = [], [], []
        for n, t in np.ndindex(N, T):
            seen = np.arange(T) <= t
            if window is not None:
                seen &= np.arange(T) > t - window
            looked = seen & mask[n]
            if not looked.any():
                continue
            even.append(looked.sum() / seen.sum())
            if mask[n, t]:
                continue
            lengths.append(np.linalg.norm(heads[l, n, t], axis=-1))
            difference = k[l, n, looked].mean(0) - k[l, n, seen & ~mask[n]].mean(0)
            parts.append(q[l, n, t] * difference / np.sqrt(Dh))
        np.testing.assert_allclose(traced.even[l], np.mean(even), rtol=1e-5)
        np.testing.assert_allclose(traced.qk[l], np.mean(parts, 0), rtol=1e-3, atol=1e-4)
        loudness = np.mean(lengths, 0)
        np.testing.assert_allclose(traced.loudness[l], loudness / loudness.mean(), rtol=1e-4)
        held = mask.any(1)[:, None]

        def root_mean_square(x_NxTxHxD, where, l=l):
            return np.sqrt((x_NxTxHxD[l][where] ** 2).sum(-1).mean(0))

        want = root_mean_square(projected, mask) / root_mean_square(projected, ~mask & held)
        np.testing.assert_allclose(traced.output_drain[l], want, rtol=1e-4)


def test_what_is_not_followed_is_counted(monkeypatch):
    """All sequences are followed where there is room, the strongest where there is not; attention is that of all either way."""
    seed = fresh_seed()
    plant = planted_llama(seed, births=(Birth(1, 2, 1),))
    tokens = plant.tokens(12, 64, seed)
    whole = so.lifecycle(plant.lm, tokens, cause=False).trace
    assert len(whole.targets.sequences) == 12 and whole.targets.tokens_left_out == 0
    monkeypatch.setattr("sysout_jax.analyses.lifecycle.targets.MAX_ELEMENTS", 1)
    one = so.lifecycle(plant.lm, tokens, cause=False).trace
    assert len(one.targets.sequences) == 1
    ever = so.collect(plant.lm, tokens).h.outlier_tokens(1000.0).any(0)
    assert one.targets.tokens_left_out == ever.sum() - one.targets.valid.sum() > 0
    np.testing.assert_array_equal(one.mass, whole.mass)


def test_the_tokens_looked_at_are_those_that_enter_the_layer():
    living = np.zeros((4, 2, 3), bool)
    living[0, 0, 1] = living[1, 0, 1] = living[1, 1, 2] = living[2, 1, 2] = True
    want = np.zeros_like(living)
    want[[0, 2], 0, 1] = want[[0, 2], 1, 2] = True  # layer 0: none enters, all that there ever are
    want[1, 0, 1] = want[3, 1, 2] = True
    np.testing.assert_array_equal(entering(living), want)


@pytest.mark.parametrize("layer", [0, 3, 5])
def test_the_dim_that_excites_a_planted_birth(layer):
    """Gate and up of c* read one dim only, the largest of the outlier token's embedding; also in the last layer."""
    seed = fresh_seed()
    plant = planted_llama(seed, births=(Birth(layer, 2, 1),), sinks=0, death_layer=None)
    report = so.lifecycle(plant.lm, plant.tokens(2, 128, seed), cause=False)
    rows, (birth,) = report.trace.rows, plant.truth.births
    assert rows.layer == birth.layer == report.birth.layer == layer
    assert rows.indices[0] == birth.channels[0]
    trigger = int(np.abs(plant.lm.params["embed"]["embedding"][0]).argmax())
    for matrix in (rows.gate, rows.up):
        parts = np.abs(matrix[0] * rows.x[0, 0])
        assert parts.argmax() == trigger and parts[trigger] > 0.99 * parts.sum()
