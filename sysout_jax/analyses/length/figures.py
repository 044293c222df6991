"""How outliers depend on the text (paper D.3): the sentences token by token, and the sweep over lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure

from sysout_jax.analyses.length.measure import ByLength, Point, Sentence
from sysout_jax.analyses.positions.token_classes import class_look
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.outliers.definitions import CODE_SHARE, even_share, is_code_outlier
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import listed, number, percent

MAX_LABELS = 64  # tokens whose text is readable along an axis


def remark(report: ByLength) -> str:
    """Says so where what is marked are no outliers."""
    if report.found:
        return ""
    return f"no outlier at τ = {report.tau:g}: marked are elements over {number(report.level)} times the mean, for orientation"


@style.styled
def sentences_h(report: ByLength, token_text: TokenText) -> Figure:
    """Largest |h| of every token against the mean, layer by layer; dots mark outliers."""
    top = max(float(s.reading.ratio.max()) for s in report.sentences)
    # log colours up to the threshold at least, so that a calm model stays pale
    norm = LogNorm(1.0, max(top, report.tau, 2.0), clip=True)
    return _strips(
        report,
        lambda s: (s.reading.ratio[:, 0], s.reading.ratio[:, 0] > report.level),
        norm,
        "largest |h| / mean|h|",
        remark(report),
    )


@style.styled
def sentences_attention(report: ByLength, token_text: TokenText) -> Figure:
    """Share of all attention that every key receives, head mean; dots mark a share of at least a tenth."""
    top = max(float(s.reading.received.max()) for s in report.sentences)
    return _strips(
        report,
        lambda s: (s.reading.received[:, 0], is_code_outlier(s.reading.received[:, 0])),
        Normalize(0, top or 1.0),
        "share of attention",
    )


def _strips(
    report: ByLength,
    values: Callable[[Sentence], tuple[np.ndarray, np.ndarray]],
    norm: Normalize,
    title: str,
    remark: str = "",
) -> Figure:
    """One map of layers × tokens per sentence, all on one scale."""
    L, S = report.num_layers, len(report.sentences)
    figure = style.new_figure(S * (1.45 + min(1.2, 0.06 * L)) + 0.6, remark)
    panels = figure.subplots(S, 1, squeeze=False).ravel()
    image: Any = None
    for axes, sentence in zip(panels, report.sentences, strict=True):
        shown, marked = (np.asarray(a) for a in values(sentence))
        T = shown.shape[1]
        image = axes.imshow(
            shown,
            aspect="auto",
            cmap=style.HEAT,
            norm=norm,
            interpolation="nearest",
            origin="lower",
            extent=(-0.5, T - 0.5, 0.5, L + 0.5),
        )
        if not shown.any():
            style.nothing_to_draw(axes)
        layers, tokens = np.nonzero(marked)
        strong_T = np.isin(np.arange(T), tokens)
        axes.plot(tokens, layers + 1, "o", ms=4.5, color=style.ORANGE, mec="white", mew=0.7, ls="")
        step = -(-T // MAX_LABELS)
        labels = [style.label_text(piece, 8) for piece in sentence.pieces[::step]]
        axes.set_xticks(range(0, T, step), labels, rotation=90 if T > 16 else 0)
        axes.tick_params(axis="x", labelsize=7 if T > 30 else 8, length=2)
        for tick, strong in zip(axes.get_xticklabels(), strong_T[::step], strict=True):
            if strong:
                tick.set(color=style.ORANGE, fontweight="bold")
        ticks = style.layer_ticks(L)
        axes.set_yticks(ticks[:: -(-len(ticks) // 6)])
        axes.set_ylabel("layer")
        axes.set_title(style.label_text(sentence.text, 60))
    bar = figure.colorbar(image, ax=list(panels), pad=0.015, aspect=40)
    bar.set_label(title)
    style.thousands(bar.ax)
    return figure


def sentences_h_sentence(report: ByLength, token_text: TokenText) -> str:
    """Which tokens of each sentence carry outliers."""
    what = "outliers" if report.found else "candidates (no outliers)"
    parts = [
        f"“{s.text}”: {_named(s, s.reading.outliers(report.level)[0])}" for s in report.sentences
    ]
    return f"Tokens that carry {what} of h in some layer, a dot in each such layer. {'; '.join(parts)}."


def sentences_attention_sentence(report: ByLength, token_text: TokenText) -> str:
    """Which keys receive most, beside what the paper found."""
    parts = []
    for s in report.sentences:
        received = s.reading.received[:, 0]
        layer, token = np.unravel_index(received.argmax(), received.shape)
        parts.append(
            f"“{s.text}”: {percent(float(received[layer, token]))} on “{s.pieces[token]}” ({token}) in layer {layer + 1}"
        )
    return (
        f"The key that receives most. {'; '.join(parts)}. A dot: the key gets at least {CODE_SHARE:.0%} of all attention, the published code's rule. Even attention, too, favours early tokens of short texts. In the paper "
        "the outliers are the first token, then also the first or the last period."
    )


def _named(sentence: Sentence, mask_T: np.ndarray) -> str:
    named = (f"“{sentence.pieces[t]}” ({t})" for t in np.flatnonzero(mask_T))
    return listed(named, 6) or "none"


@style.styled
def sweep(report: ByLength, token_text: TokenText) -> Figure:
    """Largest ratios, outlier tokens and attention against the length, without and with BOS."""
    options = sorted({point.bos for point in report.sweep})
    figure = style.new_figure(8.4, remark(report))
    panels = figure.subplots(3, len(options), squeeze=False, sharex=True, sharey="row")
    for column, bos in zip(panels.T, options, strict=True):
        points = [point for point in report.sweep if point.bos == bos]
        _ratios(column[0], report, points)
        _tokens(column[1], report, points)
        _shares(column[2], report, points)
        column[0].set_title("with BOS" if bos else "without BOS", pad=36)
        column[2].set_xlabel("tokens (BOS included)" if bos else "tokens")
        column[2].set_xscale("log", base=2)
        lengths = [point.length for point in points]
        column[2].set_xticks(lengths[:: 1 + len(lengths) // 8], [str(n) for n in lengths[:: 1 + len(lengths) // 8]])  # fmt: skip
        column[2].minorticks_off()
        column[2].set_xlim(lengths[0] * 0.8, lengths[-1] * 1.25)
    for row, label in zip(panels, ("largest |x| / mean|x|", f"{'outlier' if report.found else 'candidate'} tokens of h\nper sequence", "share of attention\n(layer where largest)"), strict=True):  # fmt: skip
        row[0].set_ylabel(label)
    for axes in panels[:, 0]:
        style.legend_above(axes, 2, handletextpad=0.5)
    return figure


def _ratios(axes: Axes, report: ByLength, points: list[Point]) -> None:
    x = [point.length for point in points]
    for place, colour, line, marker, name in (
        ("ratio", style.BLACK, "-", "o", "h"),
        ("ratio_x_down", style.BLUE, "--", "s", "x_down"),
    ):
        y = [float(getattr(point.reading, place).max()) for point in points]
        axes.plot(x, y, color=colour, ls=line, marker=marker, label=name)
    if not any(np.any(line.get_ydata()) for line in axes.get_lines()):
        style.nothing_to_draw(axes)
    axes.axhline(report.tau, color=style.GREEN, lw=1, label=f"τ = {report.tau:g}")
    style.log_axis(axes)
    axes.grid(axis="y")


def _tokens(axes: Axes, report: ByLength, points: list[Point]) -> None:
    below = np.zeros(len(points))
    x = np.array([point.length for point in points], float)
    counts_PxC = np.stack([
        point.reading.by_class(point.reading.outliers(report.level), len(report.classes))
        for point in points
    ])  # fmt: skip
    for i, name in enumerate(report.classes):
        colour, hatch = class_look(i)
        axes.bar(
            x,
            counts_PxC[:, i],
            0.3 * x,
            bottom=below,
            color=colour,
            hatch=hatch,
            edgecolor=style.BLACK,
            lw=0.6,
            label=style.label_text(name, 24),
        )
        below = below + counts_PxC[:, i]
    axes.grid(axis="y")


def _shares(axes: Axes, report: ByLength, points: list[Point]) -> None:
    x = [point.length for point in points]
    for values, colour, line, marker, name in (
        ([_most(p.reading.share(report.level)) for p in points], style.ORANGE, "-", "o", "outlier tokens" if report.found else "candidates"),
        ([_most(p.reading.received[:, :, 0].mean(axis=1)) for p in points], style.BLACK, "--", "s", "first token"),
        ([_most(p.reading.received.max(axis=2).mean(axis=1)) for p in points], style.BLUE, "-.", "^", "largest key"),
        ([even_share(n) for n in x], style.GREY, ":", "x", "first token, even attention"),
    ):  # fmt: skip
        axes.plot(x, values, color=colour, ls=line, marker=marker, label=name, mfc="white")
    axes.set_ylim(0, 1.04)
    axes.grid(axis="y")


def _most(values_L: np.ndarray) -> float:
    finite = values_L[np.isfinite(values_L)]
    return float(finite.max()) if len(finite) else float("nan")


def sweep_sentence(report: ByLength, token_text: TokenText) -> str:
    """From the shortest to the longest text."""
    parts = []
    for bos in sorted({point.bos for point in report.sweep}):
        points = [point for point in report.sweep if point.bos == bos]
        first, last = points[0], points[-1]
        counts = [
            number(float(p.reading.outliers(report.level).sum() / len(p.reading.tokens)))
            for p in (first, last)
        ]
        parts.append(
            f"{'with' if bos else 'without'} BOS the largest ratio of h goes from {number(float(first.reading.ratio.max()))} at "
            f"{first.length} tokens to {number(float(last.reading.ratio.max()))} at {last.length}, the marked tokens per sequence from "
            f"{counts[0]} to {counts[1]}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _has_sentences(report: ByLength) -> bool:
    return bool(report.sentences)


#: Every figure of the analysis.
LENGTH: dict[str, FigureSpec[ByLength]] = {
    "sentences-h": FigureSpec(
        sentences_h, "Four sentences: activations", sentences_h_sentence, _has_sentences
    ),
    "sentences-attention": FigureSpec(
        sentences_attention,
        "Four sentences: attention",
        sentences_attention_sentence,
        _has_sentences,
    ),
    "sweep": FigureSpec(sweep, "Growing texts, with and without BOS", sweep_sentence),
}
