"""`so.absorb` on planted outliers: they go wholly, attention moves to the extra keys, and a search finds the prefix that does it."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import sysout_jax as so
from sysout_jax.analyses.absorb.measure import QUANTISED
from sysout_jax.analyses.absorb.results import Absorption
from sysout_jax.analyses.absorb.search import candidates, chosen
from sysout_jax.analyses.lifecycle.story import course_of
from sysout_jax.attention.logits import first_key_weights
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.compress.inputs import calibrate
from sysout_jax.compress.methods import Compressor
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.outliers.definitions import is_sink
from sysout_jax.testing import planted_llama
from sysout_jax.weights import InMemory
from tests.families.cases import CASES
from tests.random_models import random_model, random_params

OUTLIER = 3000.0  # at position 0, whatever the token
DIM = 5


@cache
def parked() -> so.LanguageModel:
    """A GPT-2 whose first position carries an outlier into every layer; token 3 takes it away."""
    config = Gpt2Config(
        vocab_size=19, context_length=48, d_model=32, d_ff=32, num_layers=2, num_heads=2, bias=False
    )
    params = jax.tree.map(np.array, random_params(config, 1, std=0.1))
    params["positions"]["embedding"][0, DIM] = OUTLIER
    params["embed"]["embedding"][:, DIM] = 0.0
    return so.LanguageModel(config, InMemory(params), name="parked")


TEXT = np.random.default_rng(0).integers(4, 19, (3, 40))


@cache
def report() -> Absorption:
    return so.absorb(parked(), TEXT, longest=2)


def test_a_planted_outlier_goes_wholly():
    found = report()
    assert (
        found.before.h_counts[:, :2] == len(TEXT)
    ).all()  # one of every sequence, over τ = 300 too
    assert found.before.h_ratio.min() > 300
    (wave,) = found.before.waves
    assert wave.ratio == pytest.approx(found.before.h_ratio.max(), rel=1e-5)
    assert (
        wave.embedded and course_of(wave) == "written by the embedding and alive in the last layer"
    )
    assert len(wave.tokens) == len(TEXT) and found.after.waves == ()
    assert found.after.h_counts.sum() == 0 and found.after.stays == ()
    assert {stay.layers for stay in found.before.stays} == {(0, 1)}
    assert sum(stay.count for stay in found.before.stays) == len(TEXT)


def test_the_proof_and_the_model_hold():
    found = report()
    assert found.proof.logits <= 1e-4 and found.proof.nll <= 1e-4
    assert found.proof.tokens == TEXT.shape[1]
    lm, m = parked(), len(found.prefix)
    whole = np.concatenate([np.tile(found.prefix, (3, 1)), TEXT], axis=1)
    original = np.asarray(so.capture(lm, whole, ())[0])[:, m:]
    np.testing.assert_allclose(so.capture(found.model, TEXT, ())[0], original, atol=1e-4)
    assert found.after.perplexity.value == pytest.approx(
        so.perplexity(found.model, TEXT).value, rel=1e-6
    )
    assert found.before.perplexity.value == pytest.approx(so.perplexity(lm, TEXT).value, rel=1e-6)


def test_quantised_inputs_alone_leave_the_weights():
    lm, (a8, w8a8) = parked(), report().quantised
    assert (a8.label, w8a8.label) == ("A8 static per tensor", "W8A8 static per tensor")
    made = Compressor(lm, calibration=calibrate(lm, TEXT))
    kernels = [
        made.model(method).read("layer_0")["attn"]["o_proj"]["kernel"] for method in QUANTISED
    ]
    assert (kernels[0] == lm.read("layer_0")["attn"]["o_proj"]["kernel"]).all()
    assert (kernels[0] != kernels[1]).any()
    assert a8.before == pytest.approx(so.perplexity(made.model(QUANTISED[0]), TEXT).value, rel=1e-6)


def test_attention_of_a_planted_sink_moves_to_the_extra_key():
    planted = planted_llama(
        1,
        num_layers=3,
        d_model=64,
        d_ff=48,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        death_layer=None,
    )
    tokens = planted.tokens(2, 96)  # an outlier token stands first
    _, taps = so.capture(planted.lm, tokens, ("h", "attn_map"))
    assert np.abs(taps["h"][-1]).max() > 1000 * np.abs(taps["h"][-1]).mean()
    found = so.absorb(planted.lm, tokens[:, 1:], prefix=planted.truth.outlier_tokens)
    assert found.after.h_counts.sum() == 0
    layers, heads = zip(*planted.truth.sink_heads, strict=True)
    assert is_sink(found.after.extra[layers, heads]).all()
    np.testing.assert_allclose(
        found.after.extra[layers, heads],
        taps["attn_map"][layers, :, heads, 1:, 0].mean(axis=(1, 2)),
        atol=1e-4,
    )
    assert found.given and found.search == ()


def test_the_even_share_knows_each_layers_window():
    """Queries of zero make every row even; in a layer with a window of six, six queries see the first token."""
    case = CASES["qwen2-window"]
    config = read_config({"model_type": case.kind, **case.settings}, "config.json").config
    flat = flatten_dict(random_params(config, 3))
    params = unflatten_dict({k: 0 * v if "q_proj" in k else v for k, v in flat.items()})
    lm = so.LanguageModel(config, InMemory(params), name="even")
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 20))
    found = so.absorb(lm, tokens, prefix=[3])
    expected = [sum(1 / seen for seen in range(1, n + 1)) / 20 for n in (20, 6)]
    np.testing.assert_allclose(found.even_share, expected)
    np.testing.assert_allclose(found.before.first, np.tile(expected, (4, 1)).T, rtol=1e-5)


def test_search_takes_the_smallest_ratio_and_reads_no_prefix_twice():
    found = report()
    tried = found.search
    assert tried[0].prefix == () and tried[0].ratio == max(one.ratio for one in tried)
    assert found.prefix == chosen(tried).prefix
    single = [one for one in tried if len(one.prefix) == 1]
    best = min(one.ratio for one in single if one.perplexity <= 1.02 * tried[0].perplexity)
    assert chosen(tried).ratio <= best
    assert len({one.prefix for one in tried}) == len(tried)
    # what is tried is what the absorbed model does on the same text
    text = TEXT[:2, : 40 - len(found.prefix)]
    h_LxNxTxD = np.abs(so.capture(found.model, text, ("h",))[1]["h"])
    ratio = (h_LxNxTxD.max(axis=(2, 3)) / h_LxNxTxD.mean(axis=(2, 3))).max()
    assert chosen(tried).ratio == pytest.approx(ratio, rel=1e-4)
    found_here = so.perplexity(found.model, text).value
    assert chosen(tried).perplexity == pytest.approx(found_here, rel=1e-4)


def test_candidates_are_the_strongest_tokens():
    """Without a tokenizer only tokens of the text, those beyond the first position; its only one where there is no other."""
    ratio = np.array([[9.0, 1, 3, 2, 7]])
    assert candidates(None, np.array([[4, 5, 6, 6, 7]]), ratio) == [7, 6, 5]
    assert candidates(None, np.array([[4]]), ratio[:, :1]) == [4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prefix": []}, "prefix is empty"),
        ({"prefix": [-1]}, r"prefix\[0\] is -1"),
        ({"prefix": [99]}, "vocabulary"),
        ({"longest": 0}, r"longest\[0\] is 0"),
        ({"longest": 9}, "exceed the model's context of 48"),
    ],
)
def test_bad_input_is_one_line(changes, said):
    with pytest.raises(so.InputError, match=said):
        so.absorb(parked(), TEXT, **changes)


def test_refuses_what_cannot_be_absorbed():
    lm = random_model("gpt2", 0, attention="sigmoid")
    with pytest.raises(so.InputError, match="its attention is sigmoid, not default"):
        so.absorb(lm, np.zeros((1, 4), int))


def test_first_key_weights_are_a_column_of_the_map():
    lm = random_model("llama-gqa", 0)
    tokens = np.random.default_rng(0).integers(0, 61, (2, 9))
    _, taps = so.capture(lm, tokens, ("q", "k", "lse", "attn_map"))
    for layer in range(lm.num_layers):
        for spec in (lm.attention(layer, 9),):
            found = first_key_weights(*(taps[n][layer] for n in ("q", "k", "lse")), spec)
            np.testing.assert_allclose(found, taps["attn_map"][layer][..., 0], atol=1e-6)
