"""What outliers look like (paper Figures 1 and 13–22): x_down, W_down and h as landscapes, attention as a heat map."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from matplotlib.transforms import Bbox
from mpl_toolkits.mplot3d.axes3d import Axes3D
from mpl_toolkits.mplot3d.proj3d import proj_transform

from sysout_jax.analyses.existence.measure import Existence, Surface
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import joined, number, percent

MAX_NAMED = 3  # channels named in a landscape
NAME = "name of a token"  # marks texts that may be hidden
SURFACES = {"x_down": "x_down", "w_down": "W_down", "h": "h"}


def surfaces(report: Existence) -> dict[str, Surface]:
    """The three landscapes under their names."""
    return {title: getattr(report, name) for name, title in SURFACES.items()}


def remark(report: Existence, names: tuple[str, ...] = tuple(SURFACES)) -> str:
    """Says so where what is highlighted in these places are no outliers."""
    calm = [SURFACES[name] for name in names if not getattr(report, name).found]
    if not calm:
        return ""
    return f"no outlier at τ = {report.tau:g} in {joined(calm)}: strongest candidates, shown for orientation"


@style.styled
def overview(report: Existence, token_text: TokenText) -> Figure:
    """The four places at one glance, as in the paper's Figure 1."""
    figure = style.new_figure(8.6, remark(report))
    parts = figure.subfigures(2, 2, squeeze=False).ravel()
    for part, name in zip(parts, SURFACES, strict=False):
        landscape(part, report, name, token_text, small=True)
    _attention(parts[3], report, token_text)
    keep_names_apart(figure)
    return figure


def _single(name: str) -> Any:
    @style.styled
    def draw(report: Existence, token_text: TokenText) -> Figure:
        figure = style.new_figure(6.4, remark(report, (name,)))
        landscape(figure.subfigures(), report, name, token_text, small=False)
        keep_names_apart(figure)
        return figure

    return draw


def _labels(report: Existence, token_text: TokenText, limit: int) -> list[str]:
    return [
        f"{style.label_text(token_text(report.sequence, int(t)), limit)} {t}" for t in report.shown
    ]


def landscape(
    part: Any, report: Existence, name: str, token_text: TokenText, small: bool, title: str = ""
) -> Any:
    """One of the three surfaces in 3-D on a (sub)figure, `title` before its own; returns its axes."""
    surface, tokens = getattr(report, name), name != "w_down"
    pooled, marked = surface.pooled, {e.line for e in surface.elements}
    axes: Any = part.add_subplot(projection="3d", computed_zorder=False)
    y = np.arange(len(pooled.lines)) if tokens else pooled.lines
    for i in reversed(range(len(y))):  # from the back to the front
        strong = tokens and int(pooled.lines[i]) in marked
        axes.plot(
            pooled.channels[i],
            np.full(pooled.channels.shape[1], y[i]),
            pooled.values[i],
            color=style.ORANGE if strong else style.GREY,
            lw=1.1 if strong else 0.6 if tokens else 0.35,
            zorder=2 * (len(y) - i),
        )
    position = dict(zip((int(line) for line in pooled.lines), y, strict=True))
    _highlight(axes, surface, position if tokens else None)
    if not finite_or(pooled.values).any():
        axes.text2D(0.5, 0.5, style.NOTHING, transform=axes.transAxes, ha="center")
    right = max(surface.channels - 1, 1)
    axes.set_xlim(0, right)
    axes.set_ylim(0, max(y.max(), 1) if tokens else max(surface.lines - 1, 1))
    axes.set_zlim(0, 1.12 * max(float(finite_or(pooled.values).max()), 1e-12))
    axes.view_init(elev=30, azim=-50)
    axes.set_box_aspect((1.1, 1.4, 0.85), zoom=0.98 if small else 1.02)
    axes.tick_params(labelsize=7 if small else 8, pad=-2 if small else 0)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor("white")
        axis._axinfo["grid"].update(color="#dddddd", linewidth=0.5)
        axis.set_major_locator(MaxNLocator(4))
    axes.zaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axes.zaxis.set_tick_params(pad=1 if small else 2)
    if tokens:  # the name of the last token stands where 0 would
        axes.zaxis.set_major_locator(MaxNLocator(4, prune="lower"))
    axes.set_xlabel(_X_LABEL[name], fontsize=9, labelpad=-4 if small else 0)
    if tokens:
        axes.set_yticks(y, [])
        # marked tokens first, strongest first: where there is no room for all names, theirs stay
        order = [*dict.fromkeys(e.line for e in surface.elements), *map(int, pooled.lines)]
        names = dict(
            zip(report.shown, _labels(report, token_text, 9 if small else 14), strict=True)
        )
        for line in dict.fromkeys(order):
            axes.text(
                1.05 * right,
                position[line],
                0,
                names[line],
                gid=NAME,
                va="center",
                fontsize=6 if small else 8,
                color=style.ORANGE if line in marked else style.BLACK,
                fontweight="bold" if line in marked else "normal",
            )
    else:
        axes.set_ylabel("row (dim of h)", fontsize=9, labelpad=-2 if small else 2)
    axes.set_title(
        f"{title}|{SURFACES[name]}|, layer {surface.layer + 1}",
        loc="center",
        y=0.98 if small else 1.03,
    )
    return axes


def keep_names_apart(figure: Figure) -> None:
    """Hide names of tokens in landscapes that would touch one drawn before them; to be called when all of the figure is there."""
    figure.draw_without_rendering()  # lays it out
    landscapes: list[Any] = [axes for axes in figure.axes if isinstance(axes, Axes3D)]
    for axes in landscapes:
        kept: list[Bbox] = []
        for name in axes.texts:
            if name.get_gid() != NAME:
                continue
            size = name.get_window_extent()
            at = proj_transform(*name.get_position_3d(), axes.get_proj())[:2]
            left, middle = axes.transData.transform(at)
            box = Bbox.from_bounds(left, middle - size.height / 2, size.width, size.height)
            if box.count_overlaps(kept):
                name.set_visible(False)
            else:
                # “8” and “_ 9” need not overlap to run together
                kept.append(box.padded(0.3 * size.height))


_X_LABEL = {"x_down": "channel", "w_down": "column (channel)", "h": "dim"}


def _highlight(axes: Axes3D, surface: Surface, position: dict[int, float] | None) -> None:
    """A dot on every outlier, the name of its channel on the strongest of the first few channels."""
    top = 1.12 * max(float(finite_or(surface.pooled.values).max()), 1e-12)
    named: list[int] = []
    for element in surface.elements:
        y = element.line if position is None else position[element.line]
        axes.plot(
            [element.channel] * 2, [y] * 2, [0, abs(element.value)], color=style.ORANGE, lw=1.4, zorder=500
        )  # fmt: skip
        axes.plot(
            [element.channel], [y], [abs(element.value)], "o", color=style.ORANGE, mec=style.BLACK, ms=4, zorder=501
        )  # fmt: skip
        near = any(abs(element.channel - c) < 0.12 * surface.channels for c in named)
        if element.channel not in named and not near and len(named) < MAX_NAMED:
            beside = [c for c in named if abs(element.channel - c) < 0.24 * surface.channels]
            away = "left" if beside and element.channel > beside[0] else "right"
            named.append(element.channel)
            axes.text(
                element.channel,
                y,
                abs(element.value) + 0.03 * top,
                element.label,
                ha=away if beside else "center",
                va="bottom",
                fontsize=8.5,
                fontweight="bold",
                zorder=502,
                bbox={"color": "white", "pad": 0.4, "alpha": 0.75, "lw": 0},
            )


def _attention(part: Any, report: Existence, token_text: TokenText) -> None:
    axes = part.subplots()
    labels = _labels(report, token_text, 9)
    values = np.where(np.tri(len(labels), dtype=bool), report.attention.map, np.nan)
    title = f"attention, head mean, layer {report.attention.layer + 1}"
    style.token_map(axes, values, title, labels, report.outliers, least=0.0)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylabel("query")
    axes.set_xlabel(f"key: {len(labels)} of {report.length:,} tokens are drawn")
    axes.tick_params(labelsize=7.5)


def overview_sentence(report: Existence, token_text: TokenText) -> str:
    """Which layers were chosen."""
    layers = [
        f"{title} in layer {surface.layer + 1}" for title, surface in surfaces(report).items()
    ]
    most = int(report.attention.received.argmax())
    return (
        f"Drawn are {joined(layers)}: of h and x_down the layer of the largest ratio, of W_down the layer of the birth. The attention of layer {report.attention.layer + 1} gathers most on "
        f"one token, of those drawn {percent(float(report.attention.received[most]))} on token {report.shown[most]} "
        f"“{token_text(report.sequence, int(report.shown[most]))}”."
    )


def _sentence(name: str) -> Any:
    def sentence(report: Existence, token_text: TokenText) -> str:
        surface = getattr(report, name)
        if not surface.elements:
            return "All values are zero or not finite: there is nothing to highlight."
        first, what = surface.elements[0], "outlier" if surface.found else "candidate, no outlier"
        where = (
            f"row {first.line}, column {first.label}"
            if name == "w_down"
            else f"token {first.line} “{token_text(report.sequence, first.line)}”, {'dim' if name == 'h' else 'channel'} {first.label}"
        )
        mean = "the mean of its sequence"
        if name == "w_down":
            mean = "the mean of its row" if surface.found else "the mean of its column"
        drawn = surface.pooled.values.shape[1]
        pooled = f" Of {surface.channels:,} channels {drawn:,} are drawn, each the largest of its neighbours, so that no peak is lost." if drawn < surface.channels else ""  # fmt: skip
        return f"The largest {what}: {number(first.value)} at {where}, {number(first.ratio)} times {mean}.{pooled}"

    return sentence


#: Every figure of the analysis.
EXISTENCE: dict[str, FigureSpec[Existence]] = {
    "overview": FigureSpec(overview, "At one glance", overview_sentence),
    **{
        name.replace("_", "-"): FigureSpec(_single(name), title, _sentence(name))
        for name, title in SURFACES.items()
    },
}
