"""Waves: every life of large elements over the layers, what attention gives it, and how many there are at which threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.analyses.lifecycle.story import course_of
from sysout_jax.analyses.lifecycle.waves import Wave
from sysout_jax.figures import style
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import named, number, plural

MOST = 4  # strongest waves drawn
_STYLES: Any = (
    {"color": style.ORANGE, "ls": "-"},
    {"color": style.BLUE, "ls": "--"},
    {"color": style.GREEN, "ls": "-."},
    {"color": style.PINK, "ls": ":"},
)
_COUNTS: Any = (
    ("waves", {"color": style.BLACK, "ls": "-", "marker": "o", "ms": 9}),
    ("layers of birth", {"color": style.ORANGE, "ls": "--", "marker": "^", "mfc": "white"}),
    ("layers of death", {"color": style.BLUE, "ls": "-.", "marker": "v", "mfc": "white"}),
)


def drawn(report: Lifecycle) -> list[tuple[int, Wave]]:
    """The strongest waves with their numbers, which count from 1 in the order of birth."""
    numbered = list(enumerate(report.waves.waves, start=1))
    strongest = sorted(numbered, key=lambda counted: -counted[1].ratio)[:MOST]
    return sorted(strongest)


@style.styled
def waves(report: Lifecycle, token_text: TokenText) -> Figure:
    """The strength of each wave per layer, thick where it lives; attention on its live tokens; and how many waves exceed a threshold."""
    figure = style.new_figure(7.2)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(2.2, 1, 1))
    x = style.layers_from_one(report.num_layers)
    for (count, wave), look in zip(drawn(report), _STYLES, strict=False):
        top.plot(x, wave.course, lw=0.8, **look)
        top.plot(
            x, wave.living, lw=2.8, label=f"wave {count}: {named('dim', wave.dims, 2)}", **look
        )
        heights = np.where(np.isnan(wave.living), wave.course, wave.living)
        for layers, marker in ((wave.born, "^"), (wave.ended, "v")):
            at = list(layers)
            top.plot(x[at], heights[at], ls="", marker=marker, ms=8, mec="white", color=look["color"])  # fmt: skip
    top.set_ylabel("largest |h| over its sequence\u2019s mean")
    style.log_axis(top)
    low, high = top.get_ylim()
    for tau in (t for t in dict.fromkeys((*TAUS, report.tau)) if low < t < high):
        asked = tau == report.tau
        top.axhline(
            tau, color=style.BLACK if asked else style.GREY, lw=1.0 if asked else 0.6, zorder=0
        )
    style.layer_axis(top, report.num_layers, label=False)
    style.legend_above(top, 2)
    _attention(middle, report)
    taus = list(report.waves.sweep)
    for i, (name, look) in enumerate(_COUNTS):
        bottom.plot(taus, [report.waves.sweep[tau][i] for tau in taus], label=name, **look)
    style.log_axis(bottom, "x")
    bottom.set_xticks(taus, [f"{tau:,.0f}" for tau in taus])
    bottom.set_xlabel("threshold τ")
    bottom.set_ylabel("number")
    bottom.margins(y=0.15)
    bottom.set_ylim(bottom=-0.2)
    bottom.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    style.legend_above(bottom, 3)
    return figure


def _attention(axes: Axes, report: Lifecycle) -> None:
    """Mean of heads, in the layers that tokens of the wave enter alive."""
    largest = 0.0
    for (_, wave), look in zip(drawn(report), _STYLES, strict=False):
        if wave.spread is not None and wave.spread.layers:
            mass = np.full(report.num_layers, np.nan)
            mass[list(wave.spread.layers)] = wave.spread.mass.mean(axis=1)
            axes.plot(style.layers_from_one(report.num_layers), mass, lw=2.8, marker="." if np.isfinite(mass).sum() == 1 else "", **look)  # fmt: skip
            largest = max(largest, np.nanmax(mass, initial=0.0))
    axes.set_ylim(0, 1.1 * largest or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylabel("attention on\nits tokens")
    style.layer_axis(axes, report.num_layers)


def waves_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """How many there are, where the strongest lives, and what the marks mean."""
    followed = report.waves
    strongest = max(followed.waves, key=lambda wave: wave.ratio)
    above = [i for i, wave in enumerate(followed.waves, start=1) if wave.above]
    said = (
        f"of which {named('wave', above)} {'exceeds' if len(above) == 1 else 'exceed'}"
        if above
        else "of which none exceeds"
    )
    left = f" The {MOST} strongest are drawn." if len(followed.waves) > MOST else ""
    return (
        f"{plural(len(followed.waves), 'wave')} over {number(followed.level)} times the mean, {said} τ = {report.tau:g}; the strongest, "
        f"{number(strongest.ratio)} times, is {course_of(strongest)}. A line is thick where the wave lives, and then shows what is alive; thin, all of its elements; ▲ a layer that writes it, "
        f"▼ one that takes it back; horizontal lines are thresholds, the black one is τ. In the middle, the share of attention, mean of heads, on those of its tokens that enter the layer alive.{left}"
    )


def has_waves(report: Lifecycle) -> bool:
    """Whether there is any."""
    return bool(report.waves.waves)
