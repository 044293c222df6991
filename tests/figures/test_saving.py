"""Figures are the same files whichever process draws them, and all are there whatever becomes of the second one."""

from __future__ import annotations

import os
import signal
import subprocess

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.ticker import FuncFormatter

from sysout_jax.figures import saving
from sysout_jax.figures.saving import save_figures
from sysout_jax.figures.style import DPI, STYLE, new_figure, styled

NAMES = [f"figure{i}" for i in range(saving.FEW + 2)]


@styled
def small(name):
    figure = new_figure(0.8, width=1.6)
    figure.subplots().set_xlabel(f"{name}, τ")
    return figure


def figures():
    return {name: small(name) for name in NAMES}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """What one process writes."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    (tmp_path / "alone").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(saving, "FEW", 100)
        save_figures(figures(), tmp_path / "alone")
    return files(tmp_path / "alone")


def test_the_second_process_writes_the_same_files(alone, tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    drawn = []
    draw_here = saving._draw
    started = subprocess.Popen

    def draw(name, figure, folder):
        drawn.append(name)
        if len(drawn) == 1:  # gives the other one time for the rest
            process.wait_until_all_is_drawn()
        draw_here(name, figure, folder)

    class Watched(started):
        def wait_until_all_is_drawn(self):
            while len(list((tmp_path / "two").glob("*.pdf"))) < len(NAMES) - 1:
                assert self.poll() is None

        def __init__(self, *args, **kwargs):
            nonlocal process
            process = self
            super().__init__(*args, **kwargs)

    process = None
    monkeypatch.setattr(saving.subprocess, "Popen", Watched)
    monkeypatch.setattr(saving, "_draw", draw)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    save_figures(figures(), tmp_path / "two")
    assert drawn == NAMES[:1]
    assert process.returncode is not None  # nothing outlives it
    assert files(tmp_path / "two") == alone


@pytest.mark.parametrize("fault", ["killed", "no process", "cannot be sent", "one core"])
def test_all_figures_are_written_without_it(fault, alone, tmp_path, monkeypatch):
    (tmp_path / "two").mkdir()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    drawing = figures()
    if fault == "killed":
        started = subprocess.Popen.__init__

        def start(self, *args, **kwargs):
            started(self, *args, **kwargs)
            self.send_signal(signal.SIGKILL)

        monkeypatch.setattr(subprocess.Popen, "__init__", start)
    elif fault == "no process":
        monkeypatch.setattr(saving.sys, "executable", str(tmp_path / "none"))
    elif fault == "cannot be sent":
        for figure in drawing.values():
            axis = figure.axes[0].yaxis
            here = axis.get_major_formatter()
            axis.set_major_formatter(FuncFormatter(lambda value, at, here=here: here(value, at)))
            here.set_axis(axis)
    else:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
    save_figures(drawing, tmp_path / "two")
    written = files(tmp_path / "two")
    assert set(written) == set(alone)
    if fault != "cannot be sent":
        assert written == alone


def test_an_error_of_a_figure_is_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    with pytest.raises(OSError):
        save_figures(figures(), tmp_path / "no such folder")


def test_the_layout_is_computed_once(tmp_path, monkeypatch):
    figure, count = small("one"), []
    execute = figure.get_layout_engine().execute
    monkeypatch.setattr(figure.get_layout_engine(), "execute", lambda f: count.append(execute(f)))
    assert isinstance(figure.canvas, FigureCanvasAgg)
    save_figures({"one": figure}, tmp_path)
    assert len(count) == 1


def test_labels_are_where_matplotlib_puts_them(tmp_path):
    @styled
    def drawn():
        figure = new_figure(4)
        left, right = figure.subplots(1, 2)
        image = left.imshow([[1e5, 0]], aspect="auto")
        figure.colorbar(image, ax=left, location="top").set_label("on top")
        right.set_ylabel("beside")
        right.plot([1e6, 2])
        right.set_xticks([0, 1], ["long and turned"] * 2, rotation=90)
        right.set_xlabel("below")
        return figure

    ours, theirs = drawn(), drawn()
    save_figures({"ours": ours}, tmp_path)
    theirs.dpi = DPI
    with matplotlib.rc_context(STYLE):
        theirs.savefig(tmp_path / "theirs.png", dpi=DPI)
        theirs.savefig(tmp_path / "theirs.png", dpi=DPI)  # the layout has settled
    labels = [
        [axis.label for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
        for figure in (ours, theirs)
    ]
    compared = 0
    for one, other in zip(*labels, strict=True):
        if one.get_text():
            boxes = [label.get_window_extent(dpi=DPI) for label in (one, other)]
            centres = [(box.p0 + box.p1) / 2 for box in boxes]
            np.testing.assert_allclose(*centres, atol=3)  # pixels
            compared += 1
    assert compared == 3
