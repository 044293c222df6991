"""Figures of interventions: drawn for every kind of result, layers counted from 1, nothing broken by what is not a number."""

from __future__ import annotations

import dataclasses
import re
import warnings
import xml.etree.ElementTree as ET
from functools import cache

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.intervene import figures
from sysout_jax.analyses.intervene.measure import Interventions, Outcome
from sysout_jax.analyses.intervene.page import summary, write_interventions_report
from sysout_jax.numerics.intervals import Interval
from sysout_jax.testing import planted_llama

pytestmark = pytest.mark.slow


@cache
def planted(tau: float = 1000.0) -> Interventions:
    plant = planted_llama(seed=3, sinks=2)
    return so.intervene(plant.lm, plant.tokens(2, 64), tau, where=("birth", "weight"), seeds=2)


def edit(result: Interventions, **changes) -> Interventions:
    """Every outcome and the baseline changed alike."""

    def one(outcome: Outcome) -> Outcome:
        return dataclasses.replace(outcome, **changes)

    outcomes = tuple(map(one, result.outcomes))
    return dataclasses.replace(result, outcomes=outcomes, baseline=one(result.baseline))


def exploding() -> Interventions:
    result = planted()
    worse = Interval(np.inf, np.inf, np.inf, (np.inf,))
    huge = Interval(5e3, 4e3, 6e3, (4e3, 6e3))
    first, second, *rest = result.outcomes
    changed = (
        dataclasses.replace(first, perplexity=worse, ratio=worse),
        dataclasses.replace(second, perplexity=huge, ratio=huge),
    )
    return dataclasses.replace(result, outcomes=(*changed, *rest))


def many_heads() -> Interventions:
    sinks = tuple((layer, head) for layer in range(1, 6) for head in range(40))
    result = edit(planted(), mass_per_sink=np.random.default_rng(0).random(len(sinks)))
    return dataclasses.replace(result, sinks=sinks)


def nothing_measured() -> Interventions:
    nan = Interval(np.nan, np.nan, np.nan, (np.nan,))
    result = edit(planted(), perplexity=nan, ratio=nan, mass=nan, mass_per_sink=np.zeros(0))
    return dataclasses.replace(result, sinks=(), notes=("A note.",))


CASES = {
    "planted": planted,
    "candidate": lambda: planted(1e5),
    "exploding": exploding,
    "many heads": many_heads,
    "not measured": nothing_measured,
}


@pytest.mark.parametrize("case", CASES)
def test_report_of_every_kind_of_result(case, tmp_path):
    result = CASES[case]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a collapsed layout is a warning
        paths = write_interventions_report(tmp_path, result, {"command": "here"})
    assert len(paths) == (8 if result.sinks else 6)
    text = "".join(ET.fromstring((tmp_path / "report.html").read_text()).itertext())
    assert ("No outlier at τ" in text) == (case == "candidate")
    assert all(note in text for note in result.notes)
    assert not re.search(r"\b(nan|inf)\b", text)
    printed = summary(result)
    assert printed.count("\n") == 4 + len(result.outcomes) + len(result.notes)
    rows = printed.split("\n")[1 + len(result.notes) : -2]
    assert len(rows) == 2 + len(result.outcomes) and max(map(len, rows)) <= 100


def test_layers_and_heads_count_as_they_say():
    result = planted()
    drawn = figures.layers(result)
    for axes in drawn.axes:
        x, y = axes.get_lines()[0].get_data()
        np.testing.assert_array_equal(x, np.arange(1, result.num_layers + 1))
        np.testing.assert_array_equal(y, result.baseline.outliers_per_layer)
    labels = [label.get_text() for label in figures.heads(result).axes[0].get_xticklabels()]
    assert labels == [f"{layer + 1}.{head}" for layer, head in result.sinks]


def test_points_stand_at_their_values():
    result = planted()
    axes = figures.effects(result).axes
    for panel, field in zip(axes, ("outliers", "mass", "ratio"), strict=True):
        drawn = {
            float(line.get_xdata()[0]) for line in panel.get_lines() if line.get_marker() in "os"
        }
        assert drawn == {getattr(outcome, field).value for outcome in result.outcomes}
