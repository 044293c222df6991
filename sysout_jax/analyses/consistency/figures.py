"""Do outliers coincide (paper Table 1): each row with its intervals, and layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.analyses.consistency.measure import MEASURES, ROWS, Consistency
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.published.values import published
from sysout_jax.words import joined, number, percent

_LOOKS: Any = {
    "overlap": {"color": style.BLACK, "marker": "o", "label": "overlap, |1 ∩ 2| / |1|"},
    "reverse": {"color": style.BLUE, "marker": "s", "mfc": "white", "label": "reverse, |1 ∩ 2| / |2|"},
    "iou": {"color": style.ORANGE, "marker": "^", "mfc": "white", "label": "IoU, |1 ∩ 2| / |1 ∪ 2|"},
}  # fmt: skip


#: Overlaps of the first rows in LLaMA2-7B, in %: the paper's Table 1.
PAPER = tuple(
    each.want for each in published("llama-2-7b") if each.quantity.startswith("consistency ")
)


def row_name(i: int) -> str:
    """The two types of outliers of a row."""
    return f"{ROWS[i].first} ↔ {ROWS[i].second}"


def attention_bound(report: Consistency) -> str:
    """The share of its head's attention with which a key exceeds τ times the mean column sum."""
    return f"over {report.tau / report.length:.0%} of its head's attention"


def _label(report: Consistency, i: int) -> str:
    row = ROWS[i]
    bound = row.second == "attention" and report.tau < report.length
    return (
        f"{row_name(i)}\n({row.dimension}{f'; a key {attention_bound(report)}' if bound else ''})"
    )


def remark(report: Consistency) -> str:
    """Says where what is drawn is no outlier."""
    if not report.missing:
        return ""
    shown = "their strongest elements are shown" if report.candidate else "nothing to show"
    return f"no outlier at τ = {report.tau:g} in {joined(list(report.missing))}: {shown}"


@style.styled
def table(report: Consistency, token_text: TokenText) -> Figure:
    """Every row of the table with the 95 % intervals of its three measures."""
    figure = style.new_figure(5.4, remark(report))
    part = style.body(figure)
    axes = part.subplots()
    y = np.arange(len(ROWS), dtype=float)
    y[4:] += 0.5  # room for a word
    for offset, measure in zip((-0.22, 0.0, 0.22), MEASURES, strict=True):
        averages = report.shown.averages(measure, report.seed)
        value = 100 * np.array([a.value for a in averages])
        span = 100 * np.array([[a.value - a.low, a.high - a.value] for a in averages]).T
        axes.errorbar(
            value,
            y + offset,
            xerr=finite_or(np.maximum(span, 0)),
            ls="",
            capsize=3,
            **_LOOKS[measure],
        )
    axes.vlines(PAPER, y[: len(PAPER)] - 0.42, y[: len(PAPER)] + 0.42, color="#c4c4c4", lw=5, zorder=0, label="paper, LLaMA2-7B")  # fmt: skip
    for i, average in enumerate(report.shown.averages("overlap", report.seed)):
        if not np.isfinite(average.value):
            axes.text(
                50, y[i], "no outlier of the first type", ha="center", va="center", fontsize=9
            )
    axes.set_yticks(y, [_label(report, i) for i in range(len(ROWS))])
    axes.axhline(3.55, color=style.BLACK, lw=0.8, ls=(0, (1, 2)))
    axes.annotate("beyond the paper's table", (1, 3.55), (0, -11), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize=8.5, fontstyle="italic")  # fmt: skip
    axes.set_ylim(len(ROWS), -0.5)
    axes.set_xlim(-4, 104)
    axes.set_xlabel("%, mean over layers and samples, with 95 % bootstrap intervals")
    axes.grid(axis="x")
    handles, labels = axes.get_legend_handles_labels()
    # below everything: the panel itself is too narrow for it
    part.legend(handles, labels, loc="outside lower center", ncols=4, columnspacing=1.2)
    return figure


def table_sentence(report: Consistency, token_text: TokenText) -> str:
    """The four rows of the paper in numbers."""
    averages = report.shown.averages("overlap", report.seed)
    parts = [f"{row_name(i)} {percent(averages[i].value)}" for i, row in enumerate(ROWS) if row.of_paper]  # fmt: skip
    paper = ", ".join(f"{value:g}%" for value in PAPER)
    what = f"τ = {report.tau:g}" if not report.candidate else "the candidates' thresholds"
    return f"At {what} the overlap is: {', '.join(parts)} (LLaMA2-7B in the paper: {paper}; n/a: no outlier of the first type)."


@style.styled
def layers(report: Consistency, token_text: TokenText) -> Figure:
    """Overlap of every row in every layer."""
    L = report.num_layers
    overlap_RxL = 100 * report.shown.layers("overlap")
    figure = style.new_figure(4.4, remark(report))
    axes = figure.subplots()
    image = axes.imshow(
        overlap_RxL,
        aspect="auto",
        cmap=style.HEAT.with_extremes(bad=(0, 0, 0, 0)),
        vmin=0,
        vmax=100,
        extent=(0.5, L + 0.5, len(ROWS) - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.patch.set(
        hatch="////", edgecolor="#b0b0b0", facecolor="white"
    )  # seen where there is no value
    if L <= 16:
        for i, layer in np.argwhere(np.isfinite(overlap_RxL)):
            value = overlap_RxL[i, layer]
            colour = "white" if value > 55 else style.BLACK
            axes.text(layer + 1, i, number(round(value)), ha="center", va="center", color=colour, fontsize=8.5)  # fmt: skip
    axes.set_yticks(range(len(ROWS)), [row_name(i) for i in range(len(ROWS))])
    axes.axhline(3.5, color=style.BLACK, lw=0.8)
    style.layer_axis(axes, L)
    figure.colorbar(image, ax=axes, pad=0.015, aspect=18).set_label("overlap (%)")
    return figure


def layers_sentence(report: Consistency, token_text: TokenText) -> str:
    """How many layers each row rests on."""
    defined = np.isfinite(report.shown.layers("overlap")).sum(axis=1)
    parts = [f"{row_name(i)} {defined[i]}" for i, row in enumerate(ROWS) if row.of_paper]
    return (
        f"Hatched: the layer has no outlier of the first type, so the formula has nothing to divide by. Layers with a value, of "
        f"{report.num_layers}: {', '.join(parts)}."
    )


#: Every figure of the analysis.
CONSISTENCY: dict[str, FigureSpec[Consistency]] = {
    "table": FigureSpec(table, "Do outliers coincide", table_sentence),
    "layers": FigureSpec(layers, "Layer by layer", layers_sentence),
}
