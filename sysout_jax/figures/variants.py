"""Trained models side by side (paper Figures 10 to 12, 23 and 24, Appendix C)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.figures import style
from sysout_jax.figures.existence import keep_names_apart, landscape
from sysout_jax.figures.layers import magnitudes
from sysout_jax.figures.select import TokenText, joined, number, percent
from sysout_jax.figures.spec import FigureSpec
from sysout_jax.profiles import Scale, VariantProfile
from sysout_jax.training.record import Record

#: Colour, line style and marker of the first, second … model.
LOOKS: Any = (
    (style.BLACK, "-", "o"),
    (style.ORANGE, "--", "s"),
    (style.BLUE, "-.", "^"),
    (style.GREEN, ":", "D"),
    (style.PINK, (0, (5, 1, 1, 1, 1, 1)), "v"),
    (style.SKY, (0, (1, 1)), "x"),
)


@dataclass(frozen=True)
class SideBySide:
    """Models in the order given, under the names that figures call them by, and each one's token texts."""

    profiles: tuple[VariantProfile, ...]
    names: tuple[str, ...]
    texts: tuple[TokenText, ...]

    @property
    def recorded(self) -> list[tuple[int, str, Record]]:
        """Place, name and training record of the models that have one."""
        rows = zip(self.names, self.profiles, strict=True)
        return [(i, name, p.record) for i, (name, p) in enumerate(rows) if p.record is not None]


#: The mean scale at sink tokens, beside what other tokens have.
AT_SINKS: Any = {"color": style.BLUE, "marker": "D", "mfc": "white", "ls": ""}


def _look(i: int) -> dict[str, Any]:
    colour, line, marker = LOOKS[i % len(LOOKS)]
    return {"color": colour, "ls": line, "marker": marker}


def _title(name: str, profile: VariantProfile) -> str:
    told = profile.attention in name
    return style.label_text(name, 30) + ("" if told else f" ({profile.attention})")


def _grid(figure: Figure, count: int, **more) -> list:
    columns = min(count, 2)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False, **more).ravel()
    for unused in panels[count:]:
        unused.set_visible(False)
    return list(panels[:count])


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
    panels = _grid(figure, count, sharey=True)
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


@style.styled
def loss(report: SideBySide, token_text: TokenText) -> Figure:
    """Training and validation loss over steps, and the differences to the first model."""
    differences = _differences(report)
    figure = style.new_figure(6.0 if differences else 4.2)
    panels = figure.subplots(
        1 + bool(differences), 1, sharex=True, squeeze=False, height_ratios=(2, 1)[: 1 + bool(differences)]
    )[:, 0]  # fmt: skip
    axes = panels[0]
    for i, name, record in report.recorded:
        look = _look(i)
        axes.plot(record.steps, record.loss, color=look["color"], ls=look["ls"], lw=1, alpha=0.65)
        axes.plot(
            record.val_steps, record.val_loss, **look, label=f"{style.label_text(name, 26)}, validation"
        )  # fmt: skip
    axes.plot([], [], color=style.GREY, lw=1, label="the same without markers: training")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    for i, steps, values in differences:
        panels[1].plot(steps, values, **_look(i))
    if differences:
        panels[1].axhline(0, color=style.GREY, lw=0.8)
        first = style.label_text(report.recorded[0][1], 26)
        panels[1].set_ylabel(f"validation loss\nminus {first}")
    for one in panels:
        one.grid(axis="y")
    panels[-1].set_xlabel("step")
    return figure


def _differences(report: SideBySide) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Place, steps and validation loss minus the first record's, at the steps that both have."""
    found = []
    for i, _, record in report.recorded[1:]:
        first = report.recorded[0][2]
        steps, here, there = np.intersect1d(record.val_steps, first.val_steps, return_indices=True)
        if len(steps):
            found.append((i, steps, record.val_loss[here] - first.val_loss[there]))
    return found


def loss_sentence(report: SideBySide, token_text: TokenText) -> str:
    """Last validation losses."""
    parts = [
        f"{name} {record.val_loss[-1]:.3f} after {int(record.val_steps[-1]):,} steps"
        for _, name, record in report.recorded
        if len(record.val_loss)
    ]
    return f"Validation loss: {joined(parts)}." if parts else "No validation loss was recorded."


#: Key in the record, title, how layers are joined.
MONITORED: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray]], ...] = (
    ("ratio", "largest |h| / mean |h|, max over layers", lambda x: x.max(axis=1)),
    ("h_kurtosis", "excess kurtosis of h, max over layers", lambda x: x.max(axis=1)),
    ("first_token_share", "attention on the first token, max", lambda x: x.max(axis=1)),
    ("sink_rate", "sink rate, mean over layers", lambda x: x.mean(axis=1)),
    ("logit_max", "largest attention logit", lambda x: x.max(axis=1)),
    ("near_zero_updates", "near-zero attention updates, mean", lambda x: x.mean(axis=1)),
    ("grad_norm_k", "gradient norm of W_K", lambda x: np.sqrt((x**2).sum(axis=1))),
    ("grad_norm_v", "gradient norm of W_V", lambda x: np.sqrt((x**2).sum(axis=1))),
    ("grad_norm_down", "gradient norm of W_down", lambda x: np.sqrt((x**2).sum(axis=1))),
    ("scale_mean", "explicit scale, mean over layers", lambda x: x.mean(axis=1)),
)


def _curves(record: Record, key: str) -> np.ndarray | None:
    if key == "ratio":
        if not {"h_top1", "h_mean"} <= set(record.monitor):
            return None
        return record.monitor["h_top1"] / np.maximum(record.monitor["h_mean"], 1e-30)
    return record.monitor.get(key)


def _monitored(report: SideBySide) -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    return [
        row for row in MONITORED if any(_curves(r, row[0]) is not None for _, _, r in report.recorded)
    ]  # fmt: skip


@style.styled
def monitor(report: SideBySide, token_text: TokenText) -> Figure:
    """What the outlier monitor saw during training."""
    rows = _monitored(report)
    figure = style.new_figure(0.6 + 1.75 * -(-len(rows) // 2))
    panels = _grid(figure, len(rows))
    for axes, (key, title, join) in zip(panels, rows, strict=True):
        for i, name, record in report.recorded:
            values = _curves(record, key)
            if values is not None:
                axes.plot(record.monitor_steps, join(values), **_look(i), label=style.label_text(name, 26))  # fmt: skip
        axes.set_title(title, fontsize=9.5)
        axes.grid(axis="y")
        axes.margins(y=0.12)
        if not any(line.get_ydata().any() for line in axes.get_lines()):
            axes.set_ylim(0, 1)
    for axes in panels[-2:]:
        axes.set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def monitor_sentence(report: SideBySide, token_text: TokenText) -> str:
    """First-token attention and logits at the end."""
    parts = []
    for _, name, record in report.recorded:
        if "first_token_share" in record.monitor and "logit_max" in record.monitor:
            share = float(record.monitor["first_token_share"][-1].max())
            logit = float(record.monitor["logit_max"][-1].max())
            parts.append(f"{name}: first token {percent(share)} at most, largest logit {number(logit)}")  # fmt: skip
    return f"At the last look, {'; '.join(parts)}." if parts else "What the monitor recorded."


def _scale(profile: VariantProfile) -> list[tuple[str, Scale]]:
    found = [("implicit", profile.implicit)]
    return found + ([("explicit", profile.explicit)] if profile.explicit is not None else [])


@style.styled
def scale(report: SideBySide, token_text: TokenText) -> Figure:
    """Explicit and implicit scale of each model on one axis: median and 5 to 95 % range over queries and heads."""
    count = len(report.profiles)
    figure = style.new_figure(0.9 + 2.5 * -(-count // 2))
    panels = _grid(figure, count, sharey=True)
    top = max(
        float(np.nanmax([1.0, *one.quantiles.ravel(), *one.at_sinks.mean(axis=1)]))
        for p in report.profiles
        for _, one in _scale(p)
    )
    looks = {"implicit": (style.BLACK, "o", "-"), "explicit": (style.ORANGE, "s", "--")}
    for i, (axes, name, profile) in enumerate(
        zip(panels, report.names, report.profiles, strict=True)
    ):
        found = _scale(profile)
        for kind, one in found:
            colour, marker, line = looks[kind]
            shift = 0.0 if len(found) == 1 else {"implicit": -0.12, "explicit": 0.12}[kind]
            x = style.layers_from_one(profile.num_layers) + shift
            low, middle, high = one.quantiles.T
            axes.vlines(x, low, high, color=colour, lw=2.2, alpha=0.45)
            axes.plot(x, middle, color=colour, marker=marker, ls=line, lw=1)
            if kind == "explicit":  # the implicit one is 0 at the first token by definition
                axes.plot(x, one.at_sinks.mean(axis=1), **AT_SINKS)
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
            f"{kind} {number(float(np.nanmean(one.heads)))}"
            for kind, one in _scale(profile)
            if np.isfinite(one.heads).any()
        ]
        parts.append(f"{name}: {', '.join(kinds) or 'no query that is no sink'}")
    attentions = dict.fromkeys(profile.attention for profile in report.profiles)
    adding = [name for name in attentions if name in ("fixed_bias", "context_bias")]
    no_scale = f" In {joined(adding)} a vector is added and nothing is scaled." if adding else ""
    return f"Mean scale, {'; '.join(parts)}. Dots are medians over queries and heads, bars reach from 5 to 95 %.{no_scale}"


def _has_record(report: SideBySide) -> bool:
    return any(len(record.steps) for _, _, record in report.recorded)


def _has_monitor(report: SideBySide) -> bool:
    return any(record.monitor for _, _, record in report.recorded)


#: Every figure of the comparison.
VARIANTS: dict[str, FigureSpec[SideBySide]] = {
    "landscapes": FigureSpec(landscapes, "h where it is largest", landscapes_sentence),
    "layers": FigureSpec(layers, "Layer by layer", layers_sentence),
    "scale": FigureSpec(scale, "Explicit and implicit scale", scale_sentence),
    "loss": FigureSpec(loss, "Loss during training", loss_sentence, _has_record),
    "monitor": FigureSpec(monitor, "The monitor during training", monitor_sentence, _has_monitor),
}
