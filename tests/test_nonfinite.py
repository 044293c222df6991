"""NaN and inf in weights and activations are counted where they are, told from what a cast made, and said in one line."""

from __future__ import annotations

import copy
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.existence.figures import EXISTENCE
from sysout_jax.analyses.length.figures import LENGTH
from sysout_jax.analyses.lifecycle.figures import FIGURES
from sysout_jax.analyses.positions.figures import POSITIONS
from sysout_jax.checkpoints import checkpoint
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.figures import style
from sysout_jax.figures.spec import draw_figures
from sysout_jax.interventions.effects import Unedited
from sysout_jax.interventions.weights import edit_down_weights
from sysout_jax.nonfinite import Counts, Damaged, Element, Nonfinite, pooled, suspicious
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.weights import InMemory, groups
from tests.random_models import random_model

TOKENS = np.random.default_rng(3).integers(0, 61, (5, 9))


def damaged_model(name: str, places: dict[str, float], dtype: str = "float32", **changes):
    """A random model with single weights replaced: path → value, at the tensor's last element."""
    lm = random_model(name, seed=4, **changes)
    params = jax.tree.map(np.array, lm.params)
    for path, value in places.items():
        *above, last = path.split("/")
        node = params
        for key in above:
            node = node[key]
        node[last].reshape(-1)[-1] = value
    return so.LanguageModel(lm.config, InMemory(params), dtype=dtype, name=name)


def run(lm, tokens=TOKENS, batch_size=None) -> Stream:
    stream = Stream(lm.with_passes(batch_size=batch_size), tokens)
    for _ in stream.layers(observe_nothing):
        pass
    return stream


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_value_is_seen_in_any_dtype(dtype, value):
    largest = float(jnp.finfo(dtype).max)
    params = {"a": jnp.full((3, 700), largest, dtype), "b": {"c": jnp.zeros(5, dtype)}}
    params["b"]["d"] = jnp.ones(4, bool)  # what is no number is no matter
    assert not suspicious(params)
    params["b"]["c"] = params["b"]["c"].at[4].set(value)
    assert suspicious(params)


def test_a_sound_model_has_none():
    found = run(random_model("llama-gqa", seed=4)).nonfinite()
    assert not found.any and not found.everything and not found.overflowed
    assert found.h.first is None and found.h.share == 0 and remarks(found) == []


@pytest.mark.parametrize("group", groups(random_model("llama-mha", seed=4).config))
def test_weights_of_every_group_are_checked(group):
    """Also of those that a pass does not read."""
    tensor = {"embed": "embedding", "final_norm": "scale", "lm_head": "kernel"}.get(
        group, "mlp/down_proj/kernel"
    )
    lm = damaged_model("llama-mha", {f"{group}/{tensor}": np.nan})
    seen = run(lm).nonfinite()
    (found,) = seen.weights
    assert (found.group, found.tensor) == (group, tensor)
    assert (found.nan, found.inf, found.cast) == (1, 0, 0)
    line = " ".join(remarks(seen))
    assert "1 stored weight in " in line and "NaN or inf" in line


@pytest.mark.parametrize("batch_size", [2])
@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_h_is_counted_as_captured(name, batch_size):
    """Every NaN and every inf, and the first of them; not those of rows that only fill up a batch."""
    lm = damaged_model(name, {"layer_1/mlp/down_proj/kernel": np.inf})
    _, taps = so.capture(lm, TOKENS, ("h", "x_down"))
    found = run(lm, batch_size=batch_size).nonfinite()
    for place in ("h", "x_down"):
        values, counts = np.asarray(taps[place]), getattr(found, place)
        np.testing.assert_array_equal(counts.nan, np.isnan(values).sum((1, 2, 3)))
        np.testing.assert_array_equal(counts.inf, np.isinf(values).sum((1, 2, 3)))
        assert counts.size == values[0].size
        layer, *rest = (int(i) for i in np.argwhere(~np.isfinite(values))[0])
        assert counts.first == Element(layer, *rest)
    bad = ~np.isfinite(np.asarray(taps["h"]))
    assert found.h.first.layer == 1 and found.h.share == pytest.approx(bad[1:].mean())
    assert not found.everything and not found.overflowed


def test_a_cast_that_overflows_is_told_from_what_is_stored():
    places = {
        "layer_1/mlp/down_proj/kernel": 1e6,
        "layer_2/attn/o_proj/kernel": np.nan,
        "lm_head/kernel": -np.inf,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = run(damaged_model("llama-mha", places, "float16")).nonfinite()
    counts = {w.group: (w.nan, w.inf, w.cast) for w in found.weights}
    assert counts == {"layer_1": (0, 0, 1), "layer_2": (1, 0, 0), "lm_head": (0, 1, 0)}
    (line,) = remarks(found)
    assert "NaN or inf: 2 stored weights in 2 tensors, first in layer 3 attn/o_proj" in line
    assert "float16 overflow: 1 weight in layer 2 mlp/down_proj" in line
    # the same in float32 is sound but for what is stored
    found = run(damaged_model("llama-mha", places)).nonfinite()
    assert sorted(w.group for w in found.weights) == ["layer_2", "lm_head"]


def test_a_cast_on_the_way_from_a_converted_directory(tmp_path):
    lm = damaged_model("gpt2", {"positions/embedding": 1e5, "layer_0/mlp/up_proj/bias": np.inf})
    checkpoint.save(tmp_path / "saved", lm.config, lm.source, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = so.load(tmp_path / "saved", "float16").damaged()
    assert [(w.group, w.tensor, w.nan, w.inf, w.cast) for w in found] == [
        ("positions", "embedding", 0, 0, 1),
        ("layer_0", "mlp/up_proj/bias", 0, 1, 0),
    ]


def test_activations_that_overflow_on_their_own():
    lm = damaged_model("llama-mha", {}, "float16")
    big = {"layer_1": lambda p: p | {"mlp": jax.tree.map(lambda x: np.asarray(x) * 40, p["mlp"])}}
    found = run(lm.with_edits(big)).nonfinite()
    assert not found.weights and found.h.first.layer == 1 and found.overflowed
    (line,) = remarks(found)
    assert line.startswith("float16 overflow: ") and "of h from layer 2" in line


def test_likelihoods_that_are_not_finite_are_counted_and_nan():
    stream = run(damaged_model("llama-mha", {"final_norm/scale": np.nan}))
    nll = stream.nll()
    found = stream.nonfinite()
    assert np.isnan(nll).all() and found.unpredicted == found.predicted == nll.size
    assert found.h.total == 0
    (line,) = remarks(found)
    assert "1 stored weight in the final norm" in line
    assert f"the likelihood of {nll.size} of {nll.size} next tokens" in line
    # logits beyond the dtype are no better than NaN
    lm = damaged_model("llama-mha", {}, "float16")
    scaled = {"lm_head": lambda p: {"kernel": np.asarray(p["kernel"]) * 60000}}
    stream = run(lm.with_edits(scaled))
    nll = stream.nll()
    assert not np.isinf(nll).any() and np.isnan(nll).any()
    assert remarks(stream.nonfinite())[0].startswith("float16 overflow: the likelihood of")


def test_a_branch_of_a_stream_leaves_its_counts_alone():
    lm = random_model("llama-gqa", seed=4)
    stream = Stream(lm, TOKENS)
    layers = stream.layers(observe_nothing)
    next(layers)
    branch = copy.copy(stream)
    branch.hidden = [x * np.nan for x in stream.hidden]
    for _ in branch.layers(observe_nothing, first=1):
        pass
    for _ in layers:
        pass
    assert branch.nonfinite().h.first.layer == 1
    assert not stream.nonfinite().any


class Counting:
    """A source that counts how often a group is read."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def read(self, group, dtype):
        self.reads.append((group, dtype))
        return self.source.read(group, dtype)


def test_sound_weights_are_read_no_more_often_than_they_are_used():
    lm = random_model("llama-mha", seed=4)
    lm.source = source = Counting(lm.source)
    names = groups(lm.config)
    for _ in range(2):
        source.reads.clear()
        stream = run(lm)
        stream.nll()
        stream.nonfinite()
        assert source.reads == [(name, "float32") for name in names]


def test_an_edit_is_checked_and_its_model_is_not_blamed():
    lm = random_model("llama-mha", seed=4)
    marked = np.zeros((lm.num_layers, *TOKENS.shape), bool)
    unedited = Unedited.run(lm, TOKENS, marked, 3.0, [0])
    before = unedited.measured
    entries = {1: (np.array([3]), np.array([0]))}
    edited = edit_down_weights(lm, entries, lambda layer, kernel: np.full((1, 1), np.nan))
    after = unedited.edited(edited)
    assert not before.nonfinite.any and np.isfinite(before.perplexity)
    assert [w.group for w in after.nonfinite.weights] == ["layer_1"]
    assert after.nonfinite.h.first.layer == 1 and np.isnan(after.perplexity)
    assert not Unedited.run(lm, TOKENS, marked, 3.0, [1]).measured.nonfinite.any


def nothing(dtype="float32", layers=3, **changes) -> Nonfinite:
    zero = Counts((0,) * layers, (0,) * layers, 1000, None)
    fields = {"weights": (), "h": zero, "x_down": zero, "predicted": 0, "unpredicted": 0}
    return Nonfinite(dtype, **(fields | changes))


@pytest.mark.parametrize(
    ("nan", "share"),
    [([0, 2, 1], "0.15%"), ([0, 1000, 1000], "all"), ([0, 1000, 999], "over 99%"), ([0, 0, 1], "0.1%")],
)  # fmt: skip
def test_the_share_of_h_in_words(nan, share):
    at = Element(int(np.flatnonzero(nan)[0]), 4, 5, 6)
    h = Counts(tuple(nan), (0, 0, 0), 1000, at)
    (line,) = remarks(nothing(h=h))
    where = f"from layer {at.layer + 1} (first at sequence 4, token 5, dim 6)"
    assert line == f"float32 overflow: {share} of h {where}. Statistics leave them out."


def test_texts_of_one_model_pool():
    at = Element(2, 0, 1, 0)
    one = nothing(h=Counts((0, 0, 7), (0, 0, 1), 10, at), unpredicted=2)
    weights = (Damaged("embed", "embedding", 9, 1, 0, 0),)
    found = pooled([nothing(weights=weights), one, one])
    assert found.weights == weights and found.unpredicted == 4
    assert found.h.nan == (0, 0, 14) and found.h.inf == (0, 0, 2) and found.h.size == 1020
    assert found.h.first == at


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.slow
def test_figures_of_a_model_that_is_all_nan_say_that_there_is_nothing():
    lm = random_model("llama-mha", seed=4, vocab_size=300)
    lm = so.LanguageModel(
        lm.config, InMemory(jax.tree.map(lambda x: x * np.nan, lm.params)), byte_tokenizer()
    )
    tokens = TOKENS[:2]
    life, shape = so.lifecycle(lm, tokens), so.existence(lm, tokens)
    reading = so.by_length(lm, tokens, sentences=(), lengths=(8,))
    drawn = {
        name: FIGURES[name].draw(life, lambda n, t: "x")
        for name in ("activations", "weights", "attention")
    }
    drawn |= draw_figures(EXISTENCE, shape, lambda n, t: "x")
    places = so.positions(lm, tokens)
    drawn |= {name: POSITIONS[name].draw(places, lambda n, t: "x") for name in ("matrices", "keys")}
    drawn |= draw_figures(LENGTH, reading, lambda n, t: "x")
    for name, figure in drawn.items():
        figure.draw_without_rendering()
        assert style.NOTHING in texts(figure), name
