"""How models were trained, side by side: loss and what the monitor saw (paper Figure 12, Appendix C)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.analyses.variants.side_by_side import SideBySide, grid, look
from sysout_jax.figures import style
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.training.record import Record
from sysout_jax.words import joined, nats, number, percent


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
        drawn = look(i)
        axes.plot(record.steps, record.loss, color=drawn["color"], ls=drawn["ls"], lw=1, alpha=0.65)
        axes.plot(
            record.val_steps, record.val_loss, **drawn, label=f"{style.label_text(name, 26)}, validation"
        )  # fmt: skip
    axes.plot([], [], color=style.GREY, lw=1, label="the same without markers: training")
    axes.set_ylabel("loss (nats per token)")
    axes.legend()
    for i, steps, values in differences:
        panels[1].plot(steps, values, **look(i))
    if differences:
        panels[1].axhline(0, color=style.GREY, lw=0.8)
        first = style.label_text(report.recorded[0][1], 26)
        panels[1].set_ylabel(f"validation loss\nminus {first}")
    for axes in panels:
        axes.grid(axis="y")
    panels[-1].set_xlabel("step")
    return figure


def _differences(report: SideBySide) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Place, steps and validation loss minus the first record's, at the steps that both have."""
    differences = []
    for i, _, record in report.recorded[1:]:
        first = report.recorded[0][2]
        steps, here, there = np.intersect1d(record.val_steps, first.val_steps, return_indices=True)
        if len(steps):
            differences.append((i, steps, record.val_loss[here] - first.val_loss[there]))
    return differences


def loss_sentence(report: SideBySide, token_text: TokenText) -> str:
    """Last validation losses."""
    parts = [
        f"{name} {nats(record.val_loss[-1])} after {int(record.val_steps[-1]):,} steps"
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
    ("sink_mass", "attention on extra keys or a sink logit, mean", lambda x: x.mean(axis=1)),
)


def _curves(record: Record, key: str) -> np.ndarray | None:
    if key == "ratio":
        if not {"h_top1", "h_mean"} <= set(record.monitor):
            return None
        top, mean = (finite_or(record.monitor[name], np.nan) for name in ("h_top1", "h_mean"))
        return np.asarray(top / np.maximum(mean, 1e-30))
    values = record.monitor.get(key)
    return None if values is None else finite_or(values, np.nan)


def _monitored(report: SideBySide) -> list[tuple[str, str, Callable[[np.ndarray], np.ndarray]]]:
    return [
        row for row in MONITORED if any(_curves(r, row[0]) is not None for _, _, r in report.recorded)
    ]  # fmt: skip


@style.styled
def monitor(report: SideBySide, token_text: TokenText) -> Figure:
    """What the outlier monitor saw during training."""
    rows = _monitored(report)
    figure = style.new_figure(0.6 + 1.75 * -(-len(rows) // 2))
    panels = grid(figure, len(rows))
    for axes, (key, title, join) in zip(panels, rows, strict=True):
        for i, name, record in report.recorded:
            values = _curves(record, key)
            if values is not None:
                axes.plot(record.monitor_steps, join(values), **look(i), label=style.label_text(name, 26))  # fmt: skip
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


def has_record(report: SideBySide) -> bool:
    """Whether any model's training losses are there."""
    return any(len(record.steps) for _, _, record in report.recorded)


def has_monitor(report: SideBySide) -> bool:
    """Whether a monitor looked at any model."""
    return any(record.monitor for _, _, record in report.recorded)
