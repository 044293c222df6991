"""Every place that a figure stars or marks is the one that it names."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sysout_jax.analyses.lifecycle.figures import FIGURES
from sysout_jax.analyses.lifecycle.figures.excitation import _shown
from sysout_jax.analyses.lifecycle.figures.where import MOST_BIRTHS, rows
from sysout_jax.analyses.positions.figures import POSITIONS, _marked
from tests.figures.test_figures import report_of, text
from tests.figures.test_paper_figures import report_of as paper_report_of

pytestmark = pytest.mark.slow


def test_where_names_the_channels_of_every_star():
    report = report_of("planted")
    (event,) = report.birth.events
    labels = [channel.label for channel in event.channels]
    w_down = rows(report)[1]
    assert w_down.note == f"☆ columns {', '.join(labels[:2])}" and w_down.carriers == (event.layer,)
    other = dataclasses.replace(event, layer=event.layer + 1, channels=event.channels[:1])
    twice = dataclasses.replace(report, birth=dataclasses.replace(report.birth, events=(event, other)))  # fmt: skip
    note = rows(twice)[2].note.split("\n")
    assert note[0].endswith(f"(layer {event.layer + 1})") and labels[0] in note[0]
    assert note[1] == f"☆ channel {labels[0]} (layer {event.layer + 2})"
    assert len(rows(twice)[2].carriers) == len(note) == MOST_BIRTHS
    thrice = dataclasses.replace(report, birth=dataclasses.replace(report.birth, events=(event, other, other)))  # fmt: skip
    assert rows(thrice)[1].note.endswith(", 1 birth more")


def test_the_cosine_is_that_of_the_row_and_the_input():
    report = report_of("planted")
    shown = _shown(report)
    row, x = shown.rows["W_gate"].astype(float), shown.x.astype(float)
    cosine = row @ x / np.linalg.norm(row) / np.linalg.norm(x)
    assert shown.cosine("W_gate") == pytest.approx(cosine, abs=1e-6)
    titles = [axes.get_title("left") for axes in FIGURES["excitation"].draw(report, text).axes]
    assert f"cosine {cosine:.2f}" in titles[2].replace("−", "-")
    nothing = dataclasses.replace(shown, x=np.zeros_like(shown.x))
    assert np.isnan(nothing.cosine("W_gate"))


def test_columns_that_outliers_pass_through_are_marked():
    report = paper_report_of("positions", "planted")
    for matrix in report.matrices:
        marked = _marked(report, matrix)
        assert marked[0] == matrix.column and len(set(marked.tolist())) == len(marked)
        if matrix.module != "down":
            assert len(marked) == 1
        else:
            carriers = set(np.flatnonzero(report.x_down.channels[matrix.layer]).tolist())
            assert set(marked[1:].tolist()) <= carriers
            assert not carriers or carriers & set(marked.tolist())
    assert any(matrix.module == "down" for matrix in report.matrices)
    assert "pass through" in POSITIONS["matrices"].sentence(report, text)
