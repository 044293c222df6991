"""Figures are the same whatever matplotlib has been told elsewhere."""

from __future__ import annotations

import matplotlib
import pytest

from sysout_jax.figures.saving import save_figures
from sysout_jax.figures.style import new_figure, styled


@styled
def drawing():
    figure = new_figure(2.0, "subtitle")
    axes = figure.subplots()
    axes.plot([1, 2, 4], label="a_b")
    axes.set_title(r"100% of x_1")
    axes.set_xlabel("layer −1")
    axes.legend()
    return figure


ODD = {
    "text.usetex": True,
    "font.size": 40,
    "font.sans-serif": ["No Such Font"],
    "mathtext.fontset": "cm",
    "axes.unicode_minus": False,
    "axes.facecolor": "red",
    "axes.labelcolor": "blue",
    "lines.linestyle": ":",
    "axes.prop_cycle": matplotlib.cycler(color=["k"]),
    "savefig.bbox": "tight",
    "savefig.dpi": 10,
    "savefig.facecolor": "green",
    "figure.autolayout": True,
    "path.simplify": False,
    "xtick.direction": "in",
}


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_users_settings_change_no_figure(suffix, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    save_figures({"plain": drawing()}, tmp_path)
    with matplotlib.rc_context(ODD):
        save_figures({"odd": drawing()}, tmp_path)
    plain, odd = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("plain", "odd"))
    assert plain == odd
