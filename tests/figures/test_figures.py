"""Figures: drawn for every kind of report, layers counted from 1, numbers as the report has them."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from functools import cache

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import sysout_jax as so
from sysout_jax.analyses.lifecycle.figures import FIGURES, lifecycle_figures
from sysout_jax.analyses.lifecycle.results import Opposition
from sysout_jax.analyses.lifecycle.waves import Wave
from sysout_jax.figures.saving import save_figures
from sysout_jax.figures.style import label_text, layer_ticks
from sysout_jax.models import parameter_shapes
from sysout_jax.testing import Birth, Planted, planted_llama
from sysout_jax.weights import InMemory
from sysout_jax.words import layer_ranges, listed, number, percent
from tests.random_models import RANDOM

pytestmark = pytest.mark.slow

FOLLOWED = {"birth", "spread", "death"}
TEXT = "a$b_{<script>}\n\u4e2d\x00"


def text(sequence: int, position: int) -> str:
    return TEXT


def tokens(shape=(2, 24)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 61, shape)


@cache
def plant() -> Planted:
    return planted_llama(births=(Birth(layer=1, dims=2, channels=2),), death_layer=-2)


def planted(tau: float = 1000.0) -> so.Lifecycle:
    return so.lifecycle(plant().lm, plant().tokens(2, 64), tau)


def all_nan() -> so.Lifecycle:
    lm = plant().lm
    params = jax.tree.map(lambda x: np.full_like(x, np.nan), lm.params)
    return so.lifecycle(
        so.LanguageModel(lm.config, InMemory(params), name="nan"), plant().tokens(2, 64)
    )


def random(name: str, shape: tuple[int, int], tau: float, **changes) -> so.Lifecycle:
    """A report on a model of `RANDOM` whose weights are drawn without tracing its initialisation."""
    config = dataclasses.replace(RANDOM[name], **changes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), parameter_shapes(config)
    )
    lm = so.LanguageModel(config, InMemory(params), name=name)
    return so.lifecycle(lm, rng.integers(0, config.vocab_size, shape), tau, cause=False)


def deep(value=None):
    """The planted report with every layer ten times; 60 layers."""
    value = report_of("planted") if value is None else value
    if dataclasses.is_dataclass(value):
        old = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        new = {
            name: deep(x)
            for name, x in old.items()
            if x is not None and name not in ("birth", "death")
        }
        return dataclasses.replace(value, **new)
    if isinstance(value, np.ndarray) and len(value) == 6:
        return np.repeat(value, 10, axis=0)
    if isinstance(value, tuple) and value and isinstance(value[0], Wave):
        return tuple(map(deep, value))
    if isinstance(value, dict):
        return {key: deep(x) for key, x in value.items()}
    if isinstance(value, (tuple, list)) and len(value) == 6:
        return type(value)(x for x in value for _ in range(10))
    return 60 if isinstance(value, int) and value == 6 else value


def infinite() -> so.Lifecycle:
    report = report_of("planted")
    element = report.cause.edits["element"]
    worse = dataclasses.replace(element.effect, perplexity=np.inf, mass=np.nan)
    edits = report.cause.edits | {"element": dataclasses.replace(element, effect=worse)}
    return dataclasses.replace(report, cause=dataclasses.replace(report.cause, edits=edits))


CASES: dict[str, Callable[[], so.Lifecycle]] = {
    "planted": planted,
    "candidate": lambda: planted(1e5),
    "gpt2": lambda: random("gpt2", (2, 24), 3.0),
    "one layer, head and token": lambda: random(
        "llama-mha", (2, 1), 2.0, num_layers=1, num_heads=1, num_kv_heads=1
    ),
    "60 layers": deep,
    "all NaN": all_nan,
    "no trace": lambda: dataclasses.replace(report_of("candidate"), candidate=None),
    "infinite perplexity": infinite,
}


@cache
def report_of(case: str) -> so.Lifecycle:
    return CASES[case]()


@cache
def figures_of(case: str) -> dict[str, Figure]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return lifecycle_figures(report_of(case), text)


def titles_out_of(figure: Figure) -> list[str]:
    """Titles of panels that the edge of a drawn figure cuts."""
    titles = [
        title for axes in figure.axes for title in (axes.title, axes._left_title, axes._right_title)
    ]
    boxes = [(title.get_text(), title.get_window_extent()) for title in titles if title.get_text()]
    return [words for words, box in boxes if box.x0 < -1 or box.x1 > figure.bbox.x1 + 1]


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_drawn_and_says_one_sentence(case):
    report = report_of(case)
    only = {"no trace": (), "infinite perplexity": ("cause",)}.get(case, tuple(FIGURES))
    for name, spec in FIGURES.items():
        if name in only and spec.applies(report):
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # a missing glyph or a collapsed layout is a warning
                figures_of(case)[name].draw_without_rendering()
            assert titles_out_of(figures_of(case)[name]) == []
        if spec.applies(report):
            sentence = spec.sentence(report, text)
            assert sentence.endswith(".") and "nan" not in sentence and "None" not in sentence
    names = {name for name, spec in FIGURES.items() if spec.applies(report)}
    assert names & FOLLOWED == (FOLLOWED if report.found or report.candidate else set())
    assert ("cause" in names) == (report.cause is not None)
    assert {"where", "activations", "weights", "attention"} <= names


def test_the_cases_are_what_they_claim():
    assert report_of("planted").found and report_of("planted").cause is not None
    assert not report_of("candidate").found and report_of("candidate").candidate is not None
    assert report_of("gpt2").found and report_of("gpt2").trace.channels[0].gate is None
    assert report_of("one layer, head and token").found
    assert report_of("60 layers").stats.h.mean.shape == (60,)
    assert not report_of("all NaN").found and report_of("all NaN").candidate is None


@pytest.mark.parametrize("case, short", [("planted", False), ("gpt2", True)])
def test_the_codes_rule_is_no_finding_in_short_texts(case, short):
    """T is 64 and 24: of 24 tokens even attention gives the first one over T / 10."""
    sentence = FIGURES["where"].sentence(report_of(case), text)
    assert ("even attention gives the first key T / 10 too" in sentence) == short


@pytest.mark.parametrize("case", ["planted", "one layer, head and token", "60 layers"])
def test_layer_axes_count_from_1(case):
    report = report_of(case)
    axes = [
        axes
        for figure in figures_of(case).values()
        for axes in figure.axes
        if axes.get_xlabel() == "layer"
    ]
    # where, waves, activations, weights, attention, death, and cause where it was looked for
    assert len(axes) == 6 + (report.cause is not None)
    for panel in axes:
        assert panel.get_xlim() == (0.5, report.num_layers + 0.5)
        ticks = [int(tick) for tick in panel.get_xticks()]
        assert ticks[0] == 1 and ticks[-1] <= report.num_layers
        labels = [label.get_text() for label in panel.get_xticklabels()]
        assert labels == [str(tick) for tick in ticks]


def test_lines_stand_at_their_layer():
    """The data of layer l (from 0) is drawn at l + 1."""
    report = report_of("planted")
    upper = figures_of("planted")["activations"].axes[0]
    largest = next(line for line in upper.get_lines() if line.get_label() == "largest")
    x, y = largest.get_data()
    np.testing.assert_array_equal(x, np.arange(1, 7))
    assert x[np.argmax(y > 0.5 * y.max())] == report.birth.layer + 1


def test_candidates_are_called_candidates():
    report = report_of("candidate")
    for name in FOLLOWED | {"end"}:
        title = figures_of("candidate")[name].get_suptitle()
        assert title.startswith("no outlier at τ = 100000; strongest candidate, ratio ")
        assert "outlier" not in FIGURES[name].sentence(report, text)
        assert figures_of("planted")[name].get_suptitle() == ""


def test_sentences_tell_the_planted_truth():
    report = report_of("planted")
    event = report.birth.events[0]
    sentences = {name: spec.sentence(report, text) for name, spec in FIGURES.items()}
    assert f"In layer {event.layer + 1} " in sentences["birth"]
    assert str(event.channels[0].index) in sentences["birth"]
    assert f"After layer {report.death.layer + 1} no outlier is left" in sentences["death"]
    assert f"born in layer {event.layer + 1}," in sentences["where"]
    assert f"{len(report.spread.heads)} later heads" in sentences["where"]
    assert "at zero" in sentences["cause"] and "times the mean" in sentences["cause"]
    head = report.trace.close_up
    assert sentences["spread"].startswith(f"Head {head.head} of layer {head.layer + 1} gives 100%")


def test_the_end_shows_what_cancels_the_outlier():
    report = report_of("planted")
    truth = plant().truth
    sentence = FIGURES["end"].sentence(report, text)
    assert sentence.startswith(f"In layer {truth.death_layer + 1} dim ")
    assert f"from channel {truth.death_channels[0]}," in sentence
    bars = figures_of("planted")["end"].axes[-1].patches
    assert len(bars) == 4 * len(truth.dims)
    for dim in range(len(truth.dims)):
        before, attention, mlp, after = (bar.get_height() for bar in bars[4 * dim : 4 * dim + 4])
        assert before + attention + mlp == pytest.approx(after, abs=1e-3 * abs(before))
        assert abs(after) < 0.01 * abs(before) and before * mlp < 0
    survives = planted_llama(death_layer=None, sinks=1)
    alive = so.lifecycle(survives.lm, survives.tokens(2, 64), cause=False)
    assert "end" not in {name for name, spec in FIGURES.items() if spec.applies(alive)}


def test_what_takes_back_many_wide_dims_is_told_in_columns_that_stay_apart():
    """Three dims and “and 1 more” ran into the channels."""
    report = planted()
    channels = tuple(
        dataclasses.replace(report.birth.events[0].channels[0], label=str(label), share=0.12)
        for label in range(11008, 11048)
    )
    parts = tuple(
        Opposition(layer, "attention" if layer % 2 else "mlp", 0.612, tuple(range(4000, 4096)), channels)
        for layer in range(6)
    )  # fmt: skip
    death = dataclasses.replace(report.death, oppositions=parts)
    figure = lifecycle_figures(dataclasses.replace(report, death=death), text)["death"]
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in figure.axes[2].texts]
    assert len(boxes) == 31  # five rows under a head, and that these are five of six
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    assert max(box.x1 for box in boxes) <= figure.bbox.x1


def test_the_life_of_a_dim_is_drawn_at_the_tokens_that_hold_it():
    """At a low τ the mean was over all tokens that are outliers in any dim, and the planted one looked small."""
    report = planted(tau=3.0)
    assert report.trace is not None
    targets, truth = report.trace.targets, plant().mask(plant().tokens(2, 64))
    held = np.take_along_axis(truth[targets.sequences], targets.tokens, axis=1) & targets.valid
    assert held.any() and (targets.valid & ~held).any()
    upper = lifecycle_figures(report, text)["death"].axes[0]
    for line in upper.lines:
        if not str(line.get_label()).startswith("dim "):
            continue
        dim = int(str(line.get_label()).removeprefix("dim "))
        if dim not in plant().truth.births[0].dims:
            continue
        values = report.trace.h[..., targets.dims.tolist().index(dim)]
        np.testing.assert_allclose(line.get_ydata(), values[:, held].mean(axis=1), rtol=1e-6)
        break
    else:
        pytest.fail("no planted dim is drawn")


def test_signed_queries_keys_and_values_are_those_of_the_head():
    report = report_of("planted")
    head, traced = report.trace.close_up, report.trace
    mask = traced.targets.mask[
        head.layer, traced.targets.sequences[0], head.start : head.start + len(head.q)
    ]
    panels = figures_of("planted")["spread"].axes[1:4]
    assert [panel.get_title("left")[0] for panel in panels] == ["q", "k", "v"]
    for panel, values in zip(panels, (head.q, head.k, head.v), strict=True):
        others, outliers = [line for line in panel.get_lines() if len(line.get_xdata()) > 2]
        np.testing.assert_allclose(others.get_ydata(), values[~mask].mean(0), rtol=1e-6)
        np.testing.assert_allclose(outliers.get_ydata(), values[mask].mean(0), rtol=1e-6)


def test_the_normalised_input_is_drawn_and_its_outlier_dims_named():
    report = report_of("planted")
    head, traced = report.trace.close_up, report.trace
    mask = traced.targets.mask[
        head.layer, traced.targets.sequences[0], head.start : head.start + len(head.x)
    ]
    panel = figures_of("planted")["spread"].axes[0]
    assert f"layer {head.layer + 1}" in panel.get_title("left")
    (outliers,) = [line for line in panel.get_lines() if "outlier" in line.get_label()]
    np.testing.assert_allclose(outliers.get_ydata(), head.x[mask].mean(0), rtol=1e-6)
    assert {text.get_text() for text in panel.texts} == {str(d) for d in plant().truth.dims}


def test_what_excites_the_planted_channel():
    report, birth = report_of("planted"), plant().truth.births[0]
    trigger = int(np.abs(plant().lm.params["embed"]["embedding"][0]).argmax())
    sentence = FIGURES["excitation"].sentence(report, text)
    channel = report.birth.events[0].channels[0].index
    assert channel in birth.channels
    assert sentence.startswith(f"Channel {channel} of layer {birth.layer + 1} is excited")
    assert f"dim {trigger} gives 100% of W_gate's" in sentence
    panels = figures_of("planted")["excitation"].axes
    assert len(panels) == 7 and f"c* = {channel}" in panels[1].get_title("left")
    (r,) = np.flatnonzero(report.trace.rows.indices == channel)
    gate = panels[1].collections[0].get_segments()
    np.testing.assert_allclose([s[1][1] for s in gate], report.trace.rows.gate[r], rtol=1e-6)
    assert len(figures_of("gpt2")["excitation"].axes) == 4  # no gate


def test_what_other_tokens_give_the_planted_channel():
    """Written out: the row times what enters the MLP at the same positions, but at those that hold an outlier."""
    report, rows = report_of("planted"), report_of("planted").trace.rows
    targets = report.trace.targets
    _, taps = so.capture(plant().lm, report.stats.tokens, ("mlp_in",))
    at = np.unique(np.linspace(0, report.length - 1, 64).astype(int))
    inputs = taps["mlp_in"][rows.layer][targets.sequences][:, at]
    held = targets.mask.any(axis=0)[targets.sequences][:, at]
    assert held.any() and not held.all()
    for found, matrix in ((rows.gate_elsewhere, rows.gate), (rows.up_elsewhere, rows.up)):
        assert (np.isnan(found) == held[..., None]).all()
        np.testing.assert_allclose(found[~held], (inputs @ matrix.T)[~held], rtol=1e-4, atol=1e-4)
    sentence = FIGURES["excitation"].sentence(report, text)
    assert "other tokens of that sequence the products are W_gate " in sentence


def test_figures_leave_the_readers_settings_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_figures({"where": FIGURES["where"].draw(report_of("planted"), text)}, tmp_path)
    assert dict(matplotlib.rcParams) == before
    assert (tmp_path / "where.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("num_layers", [1, 2, 16, 17, 24, 32, 40, 48, 61, 80, 126, 400])
def test_layer_ticks(num_layers):
    ticks = layer_ticks(num_layers)
    assert ticks[0] == 1 and len(ticks) <= 16
    assert all(1 <= tick <= num_layers for tick in ticks) and ticks == sorted(set(ticks))


def test_labels_hold_no_mathematics_and_no_missing_glyph():
    shown = label_text(TEXT, 40)
    assert "\n" not in shown and "\u4e2d" not in shown and r"a\$b" in shown
    assert label_text("x" * 30, 10) == "x" * 9 + "…"
    assert label_text("\ud800") == "\N{WHITE SQUARE}"


def test_words():
    assert layer_ranges([1, 2, 3, 8]) == "2–4, 9"
    assert listed(range(6), 4) == "0, 1, 2, 3 and 2 more"
    assert number(float("nan")) == "n/a" and number(float("inf")) == "∞"
    assert number(-1234.5) == "−1,234" and number(0.04567) == "0.0457"
    assert percent(0.0073, 1) == "0.7%" and percent(-0.0001, 1) == "0.0%"
    assert percent(-0.001) == "0%" and percent(0.97) == "97%" and percent(float("nan")) == "n/a"
