"""What excites the birth channel (paper Figure 7): its rows of W_gate and W_up beside the normalised input that they meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.followed import followed, subtitle, traced
from sysout_jax.analyses.lifecycle.figures.mlp import strongest_element
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.figures import style
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import listed, number, percent

MAX_BARS = 5  # dims in a bar panel
CLEAR = 3  # times a cosine by chance: what is called a direction
NAMED_SHARE = 0.1  # of what a row sums to: dims that give more are highlighted and named


@dataclass(frozen=True)
class _Shown:
    """The strongest birth channel c*, and the token at which it is drawn."""

    layer: int
    channel: str
    place: tuple[int, int]  # sequence and position
    x: np.ndarray  # (D,) input of the MLP after the norm
    rows: dict[str, np.ndarray]  # name of the matrix → (D,) row of channel c*
    #: name of the matrix → the row's products with the input at other tokens of the sequence
    elsewhere: dict[str, np.ndarray]

    def parts(self, name: str) -> np.ndarray:
        """(D,) what each dim gives to the row's product with the input."""
        return finite_or(self.rows[name] * self.x)

    def cosine(self, name: str) -> float:
        """Of the row and the input; NaN where one of them is all zero."""
        row, x = finite_or(self.rows[name]), finite_or(self.x)
        lengths = float(np.linalg.norm(row) * np.linalg.norm(x))
        return float(row @ x) / lengths if lengths > 0 else float("nan")

    def main_dims(self, name: str) -> np.ndarray:
        """Dims that give most, largest first; at most `MAX_BARS`, and only those over `NAMED_SHARE` of all magnitudes."""
        parts = np.abs(self.parts(name))
        order = np.argsort(-parts, kind="stable")[:MAX_BARS]
        return order[parts[order] > NAMED_SHARE * max(float(parts.sum()), 1e-30)]


def has_rows(report: Lifecycle) -> bool:
    """Does a channel carry the first birth, and were its rows kept?"""
    life = followed(report)
    if life is None or life.trace is None:
        return False
    event, rows = life.birth.events[0], life.trace.rows
    return (
        event.layer == rows.layer
        and bool(event.channels)
        and event.channels[0].index in rows.indices
    )


def _shown(report: Lifecycle) -> _Shown:
    life, trace = traced(report)
    event, rows = life.birth.events[0], trace.rows
    channel = event.channels[0]
    (r,) = np.flatnonzero(rows.indices == channel.index)
    e, m, _ = strongest_element(trace, trace.h[event.layer], event.dims)
    place = int(trace.targets.sequences[e]), int(trace.targets.tokens[e, m])
    matrices = {"W_gate": rows.gate, "W_up": rows.up}
    chosen = {name: matrix[r] for name, matrix in matrices.items() if matrix is not None}
    others = {"W_gate": rows.gate_elsewhere, "W_up": rows.up_elsewhere}
    elsewhere = {name: values[e, :, r] for name, values in others.items() if values is not None}
    elsewhere = {name: values[np.isfinite(values)] for name, values in elsewhere.items()}
    return _Shown(event.layer, channel.label, place, rows.x[e, m], chosen, elsewhere)


@style.styled
def excitation(report: Lifecycle, token_text: TokenText) -> Figure:
    """The MLP's normalised input at one token; the channel's rows of W_gate and W_up, which dims give their products, and the
    products at other tokens."""
    shown = _shown(report)
    figure = style.new_figure(2.2 * (1 + len(shown.rows)) + 0.4, subtitle(report))
    grid = figure.add_gridspec(1 + len(shown.rows), 3, width_ratios=[2.0, 1, 1])
    named = {name: shown.main_dims(name) for name in shown.rows}
    every = np.unique(np.concatenate(list(named.values())))
    first = figure.add_subplot(grid[0, :])
    _line(first, shown.x, every)
    text = style.label_text(token_text(*shown.place), 10)
    first.set_title(
        f"what enters the MLP of layer {shown.layer + 1} at token {shown.place[1]} “{text}”: h, normalised"
    )
    first.set_ylabel("signed value")
    first.set_xlabel("dim of h")
    for i, (name, row) in enumerate(shown.rows.items(), start=1):
        left = figure.add_subplot(grid[i, 0])
        _line(left, row, named[name])
        left.set_title(f"{name}, row of channel c* = {shown.channel}")
        left.set_ylabel("weight")
        left.set_xlabel("dim of h")
        middle = figure.add_subplot(grid[i, 1])
        _bars(middle, shown, name)
        product = number(float(shown.parts(name).sum()))
        middle.set_title(f"row · input = {product}\ncosine {_cosine(shown.cosine(name))}")
        right = figure.add_subplot(grid[i, 2])
        _others(right, shown, name)
        right.set_title(f"{len(shown.elsewhere[name])} of the\nother tokens")
    return figure


def _cosine(value: float) -> str:
    return "n/a" if np.isnan(value) else f"{value:.2f}".replace("-", "−")


def _line(axes: Axes, values_D: np.ndarray, marked: np.ndarray) -> None:
    values, dims = finite_or(values_D), np.arange(len(values_D))
    axes.vlines(dims, 0, values, color=style.GREY, lw=1, rasterized=len(dims) > 2000)
    axes.vlines(marked, 0, values[marked], color=style.ORANGE, lw=2)
    axes.plot(marked, values[marked], "o", color=style.ORANGE, mec=style.BLACK, zorder=3)
    for dim in marked:
        axes.annotate(
            str(dim),
            (dim, values[dim]),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.axhline(0, color=style.BLACK, lw=0.8)
    axes.set_xlim(-0.02 * len(dims) - 0.5, 1.06 * len(dims))
    axes.margins(y=0.14)
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", nbins=8, integer=True)


def _bars(axes: Axes, shown: _Shown, name: str) -> None:
    parts, special = shown.parts(name), set(shown.main_dims(name).tolist())
    order = np.argsort(-np.abs(parts), kind="stable")[:MAX_BARS]
    for row, dim in enumerate(order):
        axes.barh(
            row,
            parts[dim],
            color=style.ORANGE if int(dim) in special else style.GREY,
            hatch="" if int(dim) in special else "//",
            edgecolor=style.BLACK,
            lw=0.8,
        )
    axes.set_yticks(range(len(order)), [str(dim) for dim in order])
    axes.invert_yaxis()
    axes.axvline(0, color=style.BLACK, lw=0.8)
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=4)
    axes.set_ylabel("dim of h")
    axes.set_xlabel("weight · input")


def _others(axes: Axes, shown: _Shown, name: str) -> None:
    """How often the product takes which value; the drawn token's is a line."""
    product = float(shown.parts(name).sum())
    values = np.append(shown.elsewhere[name], product)
    bins = np.linspace(values.min(), values.max(), 25).tolist() if np.ptp(values) else 1
    axes.hist(values[:-1], bins=bins, color=style.GREY, edgecolor=style.BLACK, lw=0.6)
    axes.axvline(product, color=style.ORANGE, lw=2.5, label=f"token {shown.place[1]}")
    axes.legend(loc="upper center", fontsize=9)
    axes.margins(y=0.35)
    axes.locator_params(axis="x", nbins=4)
    axes.locator_params(axis="y", nbins=4, integer=True)
    axes.set_ylabel("tokens")
    axes.set_xlabel("row · input")


def excitation_sentence(report: Lifecycle, token_text: TokenText) -> str:
    """Which dims of the input excite the channel, through which rows."""
    shown = _shown(report)
    words = []
    for name in shown.rows:
        parts, dims = shown.parts(name), shown.main_dims(name)
        total = float(parts.sum())
        if not len(dims):
            chance = 1 / np.sqrt(len(shown.x))  # of random directions, root mean square
            words.append(
                f"{name}'s row as a whole points along the input (cosine {_cosine(shown.cosine(name))}, by chance ±{_cosine(chance)}) and gives "
                f"{number(total)}, no single dim much of it"
                if abs(shown.cosine(name)) > CLEAR * chance
                else f"no single dim of the input gives much of {name}'s {number(total)}"
            )
            continue
        share = percent(float(parts[dims].sum()) / total) if total else "n/a"
        words.append(
            f"dim{'s' * (len(dims) > 1)} {listed(dims, MAX_BARS)} give{'s' * (len(dims) == 1)} {share} of {name}'s {number(total)}"
        )
    sequence, position = shown.place
    elsewhere = [
        f"{name} {number(float(values.min()))} to {number(float(values.max()))}"
        for name, values in shown.elsewhere.items()
        if len(values)
    ]
    if elsewhere:
        count = max(len(values) for values in shown.elsewhere.values())
        words.append(
            f"at {count} other tokens of that sequence the products are {', '.join(elsewhere)}"
        )
    return (
        f"Channel {shown.channel} of layer {shown.layer + 1} is excited by the input that its rows meet: {'; '.join(words)} "
        f"(drawn: token {position} of sequence {sequence}; biases left out)."
    )
