"""Trained models side by side (paper Figures 10 to 12, 23 and 24, Appendix C)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.analyses.existence.figures import keep_names_apart, landscape
from sysout_jax.analyses.lifecycle.figures.layers import magnitudes
from sysout_jax.analyses.variants.curves import (
    has_monitor,
    has_record,
    loss,
    loss_sentence,
    monitor,
    monitor_sentence,
)
from sysout_jax.analyses.variants.measure import Scale, VariantProfile
from sysout_jax.analyses.variants.side_by_side import SideBySide, grid
from sysout_jax.figures import style
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import joined, number

#: The mean scale at sink tokens, beside what other tokens have.
AT_SINKS: Any = {"color": style.BLUE, "marker": "D", "mfc": "white", "ls": ""}


def _title(name: str, profile: VariantProfile) -> str:
    told = profile.attention in name
    return style.label_text(name, 30) + ("" if told else f" ({profile.attention})")


@style.styled
def landscapes(report: SideBySide, token_text: TokenText) -> Figure:
    """|h| of each model in the layer where it is largest against its mean."""
    count = len(report.profiles)
    columns = min(count, 2)
    rows = -(-count // columns)
    figure = style.new_figure(4.3 * rows if columns > 1 else 5.6)
    parts = figure.subfigures(rows, columns, squeeze=False).ravel()
    for part, name, profile, text in zip(
        parts, report.names, report.profiles, report.texts, strict=False
    ):
        title = style.label_text(name, 22) + ": "
        axes = landscape(part, profile.existence, "h", text, small=columns > 1, title=title)
        if columns > 1:
            axes.set_box_aspect((1.1, 1.4, 0.85), zoom=0.82)  # room for the names of tokens
    keep_names_apart(figure)
    return figure


def landscapes_sentence(report: SideBySide, token_text: TokenText) -> str:
    """The largest ratio of each model."""
    parts = []
    for name, profile in zip(report.names, report.profiles, strict=True):
        ratio = profile.stats.h.ratio
        layer = int(ratio.argmax())
        kind = "an outlier" if ratio[layer] > profile.tau else "no outlier"
        parts.append(f"{name} {number(float(ratio[layer]))} times its mean in layer {layer + 1} ({kind} at τ = {profile.tau:g})")  # fmt: skip
    return f"The largest |h|: {joined(parts)}. Scales differ from panel to panel."


@style.styled
def layers(report: SideBySide, token_text: TokenText) -> Figure:
    """Top-3 and median of |h| per layer, one panel per model on one scale."""
    count = len(report.profiles)
    figure = style.new_figure(0.9 + 2.6 * -(-count // 2))
    panels = grid(figure, count, sharey=True)
    for i, (axes, name, profile) in enumerate(
        zip(panels, report.names, report.profiles, strict=True)
    ):
        magnitudes(axes, profile, "h")
        style.layer_axis(axes, profile.num_layers)
        axes.set_title(_title(name, profile), pad=6)
        if i % 2:
            axes.set_ylabel("")
            axes.tick_params(labelleft=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6, columnspacing=1.2)
    return figure


def layers_sentence(report: SideBySide, token_text: TokenText) -> str:
    """Top over median, per model."""
    parts = []
    for name, profile in zip(report.names, report.profiles, strict=True):
        h = profile.stats.h
        top = h.sequence_top[..., 0].mean(axis=1)
        ratio = top / np.where(h.median > 0, h.median, np.nan)
        if np.isfinite(ratio).any():
            layer = int(np.nanargmax(ratio))
            parts.append(f"{number(float(ratio[layer]))} in {name} (layer {layer + 1})")
    return f"The largest |h| reaches this many times the median: {joined(parts) or 'nothing finite'}. Means over sequences."


def _scale(profile: VariantProfile) -> list[tuple[str, Scale]]:
    scales = [("implicit", profile.implicit)]
    return scales + ([("explicit", profile.explicit)] if profile.explicit is not None else [])


@style.styled
def scale(report: SideBySide, token_text: TokenText) -> Figure:
    """Explicit and implicit scale of each model on one axis: median and 5 to 95 % range over queries and heads."""
    count = len(report.profiles)
    figure = style.new_figure(0.9 + 2.5 * -(-count // 2))
    panels = grid(figure, count, sharey=True)
    top = max(
        float(np.nanmax([1.0, *scale.quantiles.ravel(), *scale.at_sinks.mean(axis=1)]))
        for p in report.profiles
        for _, scale in _scale(p)
    )
    looks = {"implicit": (style.BLACK, "o", "-"), "explicit": (style.ORANGE, "s", "--")}
    for i, (axes, name, profile) in enumerate(
        zip(panels, report.names, report.profiles, strict=True)
    ):
        scales = _scale(profile)
        for kind, scale in scales:
            colour, marker, line = looks[kind]
            shift = 0.0 if len(scales) == 1 else {"implicit": -0.12, "explicit": 0.12}[kind]
            x = style.layers_from_one(profile.num_layers) + shift
            low, middle, high = scale.quantiles.T
            axes.vlines(x, low, high, color=colour, lw=2.2, alpha=0.45)
            axes.plot(x, middle, color=colour, marker=marker, ls=line, lw=1)
            if kind == "explicit":  # the implicit one is 0 at the first token by definition
                axes.plot(x, scale.at_sinks.mean(axis=1), **AT_SINKS)
        style.layer_axis(axes, profile.num_layers)
        axes.axhline(1, color=style.GREY, lw=0.8, ls=":")
        axes.set_ylim(0, 1.06 * top)
        axes.set_title(_title(name, profile))
        if i % 2 == 0:
            axes.set_ylabel("scale on attention")
        else:
            axes.tick_params(labelleft=True)
    labels = {
        "implicit": "implicit: attention left by sinks",
        "explicit": "explicit: the variant's own",
    }
    drawn = {kind for profile in report.profiles for kind, _ in _scale(profile)}
    handles = [
        panels[0].plot([], [], color=colour, marker=marker, ls=line, label=labels[kind])[0]
        for kind, (colour, marker, line) in looks.items()
        if kind in drawn
    ]
    if any(profile.explicit is not None for profile in report.profiles):
        handles += panels[0].plot([], [], **AT_SINKS, label="explicit at sink tokens, mean")
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
    return figure


def scale_sentence(report: SideBySide, token_text: TokenText) -> str:
    """How far from 1 attention is scaled, and by what."""
    parts = []
    for name, profile in zip(report.names, report.profiles, strict=True):
        kinds = [
            f"{kind} {number(float(np.nanmean(scale.heads)))}"
            for kind, scale in _scale(profile)
            if np.isfinite(scale.heads).any()
        ]
        parts.append(f"{name}: {', '.join(kinds) or 'no query that is no sink'}")
    attentions = dict.fromkeys(profile.attention for profile in report.profiles)
    adding = [name for name in attentions if name in ("fixed_bias", "context_bias")]
    no_scale = f" In {joined(adding)} a vector is added and nothing is scaled." if adding else ""
    return f"Mean scale, {'; '.join(parts)}. Dots are medians over queries and heads, bars reach from 5 to 95 %.{no_scale}"


#: Every figure of the comparison.
VARIANTS: dict[str, FigureSpec[SideBySide]] = {
    "landscapes": FigureSpec(landscapes, "h where it is largest", landscapes_sentence),
    "layers": FigureSpec(layers, "Layer by layer", layers_sentence),
    "scale": FigureSpec(scale, "Explicit and implicit scale", scale_sentence),
    "loss": FigureSpec(loss, "Loss during training", loss_sentence, has_record),
    "monitor": FigureSpec(monitor, "The monitor during training", monitor_sentence, has_monitor),
}
