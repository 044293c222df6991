"""Which tokens (paper Figures 3b and 6b): classes of the tokens that carry outliers, beside those of the whole text."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.positions.measure import Positions, TokenCounts
from sysout_jax.figures import style
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import joined, listed, percent, plural

_LOOKS = (
    (style.BLACK, ""),
    (style.ORANGE, "//"),
    (style.SKY, "xx"),
    (style.BAND, ""),
    (style.GREEN, "\\\\"),
    (style.PINK, ".."),
    (style.YELLOW, "++"),
)
RULES = {
    "paper": "column sum over τ times the mean",
    "code": "head mean of the column sums at least T / 10",
    "candidate": "largest column sums; no rule flags a key",
}


def groups(report: Positions) -> dict[str, TokenCounts]:
    """The three kinds of outlier tokens."""
    return {
        "h": report.h.tokens,
        "x_down": report.x_down.tokens,
        "attention keys": report.keys.tokens,
    }


@style.styled
def tokens(report: Positions, token_text: TokenText) -> Figure:
    """Shares of the classes over all layers, and how many outlier tokens of each class every layer has."""
    figure = style.new_figure(6.6 + 0.25 * max(len(report.classes) - 4, 0))
    panels = figure.subplots(3, 2, width_ratios=[2, 3], squeeze=False, sharex="col")
    for row, (name, counts) in zip(panels, groups(report).items(), strict=True):
        _shares(row[0], report, counts)
        _layers(row[1], report, counts)
        row[0].set_title(name, pad=6)
    panels[-1, 0].set_xlabel("share of the tokens (%)\nstroke: share of all tokens of the text")
    style.layer_axis(panels[-1, 1], report.num_layers)
    style.legend_above(panels[0, 1], 2 if len(report.classes) < 5 else 3, handletextpad=0.5)
    return figure


def class_look(i: int) -> tuple[str, str]:
    """Colour and hatch of a class."""
    return _LOOKS[i % len(_LOOKS)]


def _shares(axes: Axes, report: Positions, counts: TokenCounts) -> None:
    y = np.arange(len(report.classes))
    share = 100 * counts.once / max(counts.once.sum(), 1)
    for i, value in enumerate(share):
        colour, hatch = class_look(i)
        axes.barh(i, value, 0.7, color=colour, hatch=hatch, edgecolor=style.BLACK, lw=0.8)
        count = plural(int(counts.once[i]), "token")
        axes.text(150, i, count, ha="right", va="center", fontsize=8)
    axes.plot(
        100 * report.all_tokens / report.all_tokens.sum(), y, "|", color=style.GREY, ms=13, mew=2.4
    )
    axes.set_yticks(y, [style.label_text(name, 18) for name in report.classes])
    axes.set_xlim(0, 150)
    axes.set_xticks(range(0, 101, 25))
    axes.set_ylim(len(y) - 0.4, -0.6)


def _layers(axes: Axes, report: Positions, counts: TokenCounts) -> None:
    x, below = style.layers_from_one(report.num_layers), np.zeros(report.num_layers)
    few = report.num_layers <= 40
    for i, name in enumerate(report.classes):
        colour, hatch = class_look(i)
        axes.bar(
            x,
            counts.per_layer[:, i],
            0.8 if few else 1.0,
            bottom=below,
            color=colour,
            hatch=hatch,
            edgecolor=style.BLACK,
            lw=0.6 if few else 0.2,
            label=style.label_text(name, 24),
        )
        below = below + counts.per_layer[:, i]
    axes.set_ylim(0, 1.1 * max(below.max(), 1))
    axes.locator_params(axis="y", integer=True, nbins=5)
    axes.set_ylabel("tokens")
    axes.grid(axis="y")
    style.layer_axis(axes, report.num_layers, label=False)


def tokens_sentence(report: Positions, token_text: TokenText) -> str:
    """What share is initial, delimiter, weak or other, and which texts they are."""
    counts = report.h.tokens
    total = int(counts.once.sum())
    if not total:
        return "All activations are zero or not finite: there is nothing to count."
    parts = [
        f"{percent(count / total)} {name}"
        for name, count in zip(report.classes, counts.once, strict=True)
        if count
    ]
    texts = listed((f"“{text}” ×{count}" for text, _, count in counts.texts), 4)
    what = "outlier" if report.h.found else "candidate"
    return (
        f"{plural(total, 'token')} {'carries' if total == 1 else 'carry'} {what}s of h in some layer: {joined(parts)} "
        f"({texts}); the keys are those by the rule “{RULES[report.keys.rule]}”."
    )
