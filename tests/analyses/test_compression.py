"""The study as a whole: known answers on models with planted outliers, and a trained model."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.compression import figures
from sysout_jax.analyses.compression.errors import hidden_errors
from sysout_jax.analyses.compression.keeps import KEEPS
from sysout_jax.analyses.compression.results import Outcome
from sysout_jax.analyses.measured import measured_by_compression
from sysout_jax.compress.methods import METHODS, Compressor, Settings
from sysout_jax.data.text import Windows, read_text, text_windows
from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.models import parameter_count, parameter_shapes
from sysout_jax.numerics.intervals import Interval
from sysout_jax.perplexity import joined_rows
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.weights import InMemory
from tests.random_models import random_model


@pytest.fixture(scope="module")
def wikitext(shared_data):
    """The trained model and windows of WikiText-2."""
    lm = so.load(shared_data / "aidreams-260k")
    text = joined_rows(read_text(shared_data / "text" / "wikitext2-test.txt"))
    return lm, text_windows(lm.tokenizer, text, 12, 96, False)


def test_eight_bits_per_channel_leave_a_trained_model_alone(wikitext):
    lm, tokens = wikitext
    result = so.compression(
        lm, Windows(tokens, joined_by="\n\n"), methods=("w8_channel", "w4_tensor")
    )
    full, w8, w4 = result.outcomes
    assert full.perplexity.value == pytest.approx(so.perplexity(lm, tokens).value)
    assert abs(w8.ratio.value - 1) < 0.02
    assert w8.error < 0.1 * w4.error
    assert result.protocol.counted == 12 * 95 and result.protocol.joined_by == "\n\n"
    assert json.loads(json.dumps(result.to_dict()))["protocol"]["last_partial_window"] == "dropped"
    assert result.calibration == "not needed" and not result.attributions


def test_an_outlier_output_ruins_per_tensor_but_not_per_channel(wikitext):
    """The same function with one output of every up projection a thousand times larger, and what reads it smaller."""
    lm, tokens = wikitext
    rng = np.random.default_rng()
    params = jax.tree.map(np.array, lm.params)
    for layer in range(lm.num_layers):
        channel, mlp = rng.integers(lm.config.d_ff), params[f"layer_{layer}"]["mlp"]
        mlp["up_proj"]["kernel"][:, channel] *= 1000
        mlp["down_proj"]["kernel"][channel] /= 1000
    planted = so.LanguageModel(lm.config, InMemory(params), lm.tokenizer)
    found = so.compression(planted, tokens, methods=("w8_tensor", "w8_channel"))
    full, tensor, channel = found.outcomes
    assert full.perplexity.value == pytest.approx(so.perplexity(lm, tokens).value, rel=1e-3)
    assert tensor.error > 0.5 and tensor.error > 4 * channel.error  # 8.3 was drawn once
    assert abs(tensor.ratio.value - 1) > 4 * abs(channel.ratio.value - 1)


@pytest.fixture(scope="module")
def planted():
    """A planted birth whose weights are far larger than all others of their matrix, and its study."""
    seed = int(np.random.default_rng().integers(1000))
    print("seed", seed)
    plant = planted_llama(births=(Birth(layer=1, dims=2, channels=1),), seed=seed)
    tokens = plant.tokens(2, 96, seed)
    methods = (
        "w8_tensor",
        "w8_channel",
        "w8a8_static",
        "w8a8_token",
        "smooth_static",
        "prune_model",
    )
    result = so.compression(
        plant.lm, tokens, methods=methods, attribute=("w8_tensor", "prune_matrix"), sparsities=(0.25, 0.5), seeds=2
    )  # fmt: skip
    return plant, tokens, result


def test_birth_weights_explain_the_error_of_per_tensor_scales(planted):
    plant, _, result = planted
    (birth,) = plant.truth.births
    assert result.outliers.found and result.outliers.layers == (birth.layer,)
    assert result.outliers.dims == birth.dims
    assert result.outliers.channels == tuple((birth.layer, c) for c in birth.channels)
    errors = {(o.method, o.sparsity): o.error for o in result.outcomes}
    assert errors["w8_tensor", None] > 4 * errors["w8_channel", None]
    assert errors["prune_model", 0.25] < errors["prune_model", 0.5]
    tensor, pruned = result.attributions
    own = tensor.own.relative
    causes = {birth.layer, plant.truth.death_layer} - {None}
    others = np.delete(own, list(causes))
    assert own[birth.layer] > 4 * others.max()
    np.testing.assert_allclose(tensor.own.relative[0], tensor.accumulated.relative[0])
    assert (
        tensor.error == errors["w8_tensor", None] == pytest.approx(tensor.accumulated.relative[-1])
    )
    kept = {k.what: k for k in tensor.kept}
    assert set(kept) == set(KEEPS)
    assert kept["birth_weights"].weights == 2
    for one in kept.values():
        assert one.error < 0.95 * tensor.error
        assert one.control_error == pytest.approx(tensor.error, rel=0.05)
        assert len(one.control.seeds) == 2
    assert not pruned.kept  # large weights are never pruned


def test_per_layer_numbers_are_those_of_models_with_one_layer_compressed(planted):
    plant, tokens, result = planted
    method, made = METHODS["w8_tensor"], Compressor(plant.lm)
    for layer in (0, plant.lm.num_layers - 1):
        one = made.model(method, (layer,))
        assert result.attributions[0].perplexity_alone[layer] == pytest.approx(
            so.perplexity(one, tokens).value, rel=1e-9
        )
        errors = hidden_errors(plant.lm, one, tokens)
        assert (errors.relative[:layer] == 0).all()
        assert errors.relative[layer] == pytest.approx(
            result.attributions[0].own.relative[layer], rel=1e-5
        )


def test_errors_equal_their_definition():
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    lm, rng = random_model("gpt2", seed), np.random.default_rng(seed)
    tokens = rng.integers(0, lm.config.vocab_size, (3, 9))
    other = Compressor(lm).model(METHODS["w4_tensor"])
    marked, dims = rng.random((3, 9)) < 0.3, (1, 7)
    found = hidden_errors(
        lm.with_passes(batch_size=2), other.with_passes(batch_size=2), tokens, dims, marked
    )
    h, h2 = (so.capture(m, tokens, names=("h",))[1]["h"].astype(np.float64) for m in (lm, other))
    squared = (h2 - h) ** 2
    relative = np.sqrt(squared.sum(-1)) / np.sqrt((h**2).sum(-1))
    total = squared.sum((1, 2, 3))
    np.testing.assert_allclose(found.relative, relative.mean((1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        found.dims_share, squared[..., dims].sum((1, 2, 3)) / total, rtol=1e-4
    )
    np.testing.assert_allclose(
        found.tokens_share, squared[:, marked].sum((1, 2)) / total, rtol=1e-4
    )


def test_batches_and_repetition_change_nothing():
    lm = random_model("llama-gqa", 5)
    tokens = np.random.default_rng(5).integers(0, lm.config.vocab_size, (4, 20))
    arguments = {
        "methods": ("w8a8_static", "w8a8_token", "prune_model"),
    }
    results = [
        so.compression(lm.with_passes(batch_size=size), tokens, **arguments) for size in (1, 4)
    ]
    assert json.dumps(results[0].to_dict()) == json.dumps(results[1].to_dict())


def test_gpt2_has_no_smoothed_down_projection_and_calibration_is_named():
    lm = random_model("gpt2", 1)
    tokens = np.random.default_rng(1).integers(0, lm.config.vocab_size, (2, 12))
    result = so.compression(
        lm, tokens, methods=("smooth_down", "smooth_token"), calibration_tokens=tokens[:1]
    )
    assert [o.method for o in result.outcomes] == ["full", "smooth_token"]
    assert "GELU" in result.notes[0]
    assert result.calibration == "1 window of 12 tokens, the analysed windows themselves"


def test_parameters_as_the_paper_counts_them():
    """GPT-2 in nanoGPT's convention without position embeddings: 123.59 million."""
    shapes = parameter_shapes(MODEL_SIZES["gpt2-nanogpt"])
    assert parameter_count(shapes, positions=False) / 1e6 == pytest.approx(123.59, abs=0.005)


def test_weights_that_are_not_finite_give_no_number_and_no_crash():
    lm = random_model("llama-mqa", 2)
    params = jax.tree.map(lambda x: np.full(x.shape, np.nan, np.float32), lm.params)
    broken = so.LanguageModel(lm.config, InMemory(params))
    tokens = np.zeros((2, 8), int)
    result = so.compression(
        broken,
        tokens,
        methods=("w8_tensor", "w8a8_static", "prune_model"),
        attribute=("w8_tensor",),
    )
    assert all(np.isnan(o.perplexity.value) for o in result.outcomes)
    assert result.outliers is None and "no outlier" in result.notes[0]
    assert not result.attributions[0].kept
    assert json.dumps(result.to_dict(), allow_nan=False)


@pytest.mark.parametrize("worst", [1.004, 1.6, 30.0, 141_327.0])
def test_labels_of_the_figure_stay_apart(worst):
    """However bad the worst method is: numbers along both axes do not touch, and no word leaves the figure."""

    def outcome(ratio: float, error: float) -> Outcome:
        interval = Interval(ratio, ratio, ratio, (ratio,))
        return Outcome("w4_tensor", f"W4 so {error}", None, interval, interval, error, 0)

    outcomes = (outcome(1.0, 0.0), outcome(1.001, 0.03), outcome(worst, 1.6))
    figure = figures.perplexity([SimpleNamespace(model="some-model", outcomes=outcomes)])
    figure.draw_without_rendering()
    for axes in figure.axes:
        assert figure.bbox.x0 <= axes.xaxis.label.get_window_extent().x0
        assert axes.xaxis.label.get_window_extent().x1 <= figure.bbox.x1
        low, high = sorted(axes.get_xlim())
        ticks = zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        boxes = [label.get_window_extent() for at, label in ticks if low <= at <= high]
        assert len(boxes) > 1
        assert all(one.x1 + 2 < two.x0 for one, two in itertools.pairwise(boxes))


def test_draws_that_differ_by_orders_of_magnitude_are_told_by_median_and_range():
    draws = (5_315.4, 1_217_876.0, 9_000.0)
    several = Interval(float(np.mean(draws)), np.nan, np.nan, draws)
    assert figures.draws(several) == "9,000 (5,315.4–1,217,876)"
    assert figures.draws(Interval(31.25, np.nan, np.nan, (31.25,))) == "31.25"
    assert "NaN" in figures.draws(Interval(np.nan, np.nan, np.nan, (np.nan, 1.0)))


def test_names_of_published_values(planted):
    _, _, result = planted
    found = measured_by_compression(result)
    by = {(o.method, o.sparsity): o.perplexity.value for o in result.outcomes}
    assert found["perplexity on WikiText-2"] == by["full", None]
    assert found["perplexity on WikiText-2, AbsMax W8"] == by["w8_tensor", None]
    assert (
        "perplexity on WikiText-2, 50 % pruned" not in found
    )  # of all matrices together: another method
    assert Settings().sparsity == 0.5
