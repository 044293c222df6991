"""How all figures look: one set of matplotlib settings, layers counted from 1 on axes, and text that cannot break a label.

Figures are built without pyplot: nothing global is changed and no window system is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from sysout_jax.words import runs

WIDTH = 8.0  # inches
DPI = 160

# Okabe and Ito's colours, which colour-blind readers tell apart; every use adds a line style, marker or hatch
BLACK, ORANGE, SKY, GREEN = "#000000", "#d55e00", "#56b4e9", "#009e73"
BLUE, PINK, YELLOW, GREY = "#0072b2", "#cc79a7", "#e69f00", "#8a8a8a"
_TICK_DOWN = 3  # a marker of matplotlib's
BAND = "#e4e4e4"  # marks layers
#: Light for little, dark for much: keeps its order in greyscale.
HEAT = LinearSegmentedColormap.from_list(
    "heat", ["#ffffff", "#9ecae1", "#2b7bba", "#08264f"], bad="#eeeeee"
)

#: matplotlib's own settings, whatever a matplotlibrc says; not those of windows, which figures here never have.
DEFAULTS: Any = {
    name: value
    for name, value in dict.items(matplotlib.rcParamsDefault)
    if not name.startswith(("backend", "interactive", "webagg", "tk.", "toolbar"))
}

STYLE: Any = (
    DEFAULTS
    | {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titley": 1.0,  # at the panel; left to itself matplotlib looks for ticks above it, at each drawing
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "grid.color": "#d9d9d9",
        "grid.linewidth": 0.6,
        "axes.axisbelow": True,
        "lines.linewidth": 1.6,
        "lines.markersize": 4.5,
        "hatch.linewidth": 0.7,
        "figure.constrained_layout.h_pad": 0.08,
        "figure.constrained_layout.w_pad": 0.08,
        "figure.facecolor": "white",
        "pdf.fonttype": 42,  # text in the PDF stays text
    }
)

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run a drawing function under `STYLE`, whatever the reader's own settings are."""

    @functools.wraps(draw)
    def run(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return run


def new_figure(height: float, subtitle: str = "", width: float = WIDTH) -> Figure:
    """An empty figure, sizes in inches, that keeps its labels apart; `subtitle` is a remark on top of all panels."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    if subtitle:
        figure.suptitle(subtitle, fontsize=10, fontstyle="italic")
    return figure


def body(figure: Figure) -> SubFigure:
    """All of a figure but its remark and what it was made from: a legend at the edge of all panels belongs to it, or it would stand on them."""
    (part,) = figure.subfigures(1, 1, squeeze=False).ravel()
    return part


def layer_ticks(num_layers: int) -> list[int]:
    """Which layers, counted from 1, get a label: all of them up to 16, round numbers beyond."""
    if num_layers <= 16:
        return list(range(1, num_layers + 1))
    step = next((s for s in (5, 10, 20, 50, 100) if num_layers / s <= 12), 200)
    return [1, *range(step, num_layers + 1, step)]


def layer_axis(axes: Axes, num_layers: int, label: bool = True) -> None:
    """The x axis of a panel over layers. Draw layer `l` of the data (from 0) at `l + 1`."""
    axes.set_xlim(0.5, num_layers + 0.5)
    axes.set_xticks(layer_ticks(num_layers))
    if 16 < num_layers <= 100:
        # minor ticks as one mark: of all that is on a figure, ticks take longest to draw
        axes.plot(
            np.arange(1, num_layers + 1),
            np.zeros(num_layers),
            transform=axes.get_xaxis_transform(),
            ls="",
            marker=_TICK_DOWN,
            ms=2,
            mew=0.6,
            color=BLACK,
            clip_on=False,
        )
    axes.xaxis.set_tick_params(labelbottom=label)
    if label:
        axes.set_xlabel("layer")


def layers_from_one(num_layers: int) -> np.ndarray:
    """(L,) x positions of the layers."""
    return np.arange(1, num_layers + 1)


def mark_every(num_points: int) -> int:
    """Every how many points a line gets a marker, so that markers stay apart."""
    return max(1, num_points // 20)


def mark_layers(axes: Axes, layers, colour: str = BAND, **more) -> None:
    """Shade layers, counted from 0."""
    for first, last in runs(layers):
        axes.axvspan(first + 0.5, last + 1.5, color=colour, lw=0, zorder=0, **more)


def log_axis(axes: Axes, which: str = "y") -> None:
    """Make the x or y axis logarithmic. Labels are numbers such as 10,000 at powers of ten; between them where few are in view."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    thousands(axes, which)
    axis.set_minor_locator(NullLocator())


def thousands(axes: Axes, which: str = "y") -> None:
    """Label an axis of values with numbers such as 10,000. Channels, dims and layers are names: their axes have no separators."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))


def log_or_linear(axes: Axes, values, least_span: float = 20.0) -> None:
    """A log y axis where positive finite values span more than `least_span` times, a linear one from 0 else."""
    values = np.abs(np.asarray(values, float)).ravel()
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() / values.min() > least_span:
        log_axis(axes)
    else:
        axes.set_ylim(0, 1.12 * values.max() if len(values) else 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(5))


NOTHING = "all zero or not finite"  # words in place of data


def nothing_to_draw(axes: Axes) -> None:
    """Say so in the middle of an empty panel."""
    axes.text(0.5, 0.5, NOTHING, transform=axes.transAxes, ha="center", va="center")


def legend_above(axes: Axes, columns: int, **more) -> None:
    """A legend over the panel, where it covers no data; the panel's title moves into the figure's margin above it."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        borderaxespad=0.2,
        columnspacing=1.4,
        **more,
    )


def token_map(
    axes: Axes,
    values: np.ndarray,
    title: str,
    labels: list[str],
    mask_W,
    least: float | None = None,
) -> None:
    """A heat map over queries × keys with the keys' names below, those of `mask_W` in orange. The title names the colour bar,
    which starts at `least` where it is given."""
    image = axes.imshow(values, cmap=HEAT, interpolation="nearest", aspect="auto", vmin=least)
    if not np.isfinite(values).any():
        nothing_to_draw(axes)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, aspect=25, location="top", shrink=0.9)
    bar.set_label(title, fontweight="bold")
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_xlabel("key")
    for i in np.flatnonzero(mask_W):
        axes.get_xticklabels()[i].set_color(ORANGE)
        axes.get_xticklabels()[i].set_fontweight("bold")


def label_text(text: str, limit: int = 14) -> str:
    """Text from outside as a label: shortened, no mathematics, no character that the font lacks."""
    font = get_font(findfont(STYLE["font.family"]))
    shown = "".join(
        c if c.isprintable() and font.get_char_index(ord(c)) else "\N{WHITE SQUARE}" for c in text
    )
    if len(shown) > limit:
        shown = shown[: limit - 1] + "…"
    return shown.replace("$", r"\$")
