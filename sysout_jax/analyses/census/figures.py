"""Figures of `so.census`: what each edit does to the loss beside its controls, and what each ranking says of it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sysout_jax.analyses.census.results import Agreement, Census, Entry
from sysout_jax.figures import style
from sysout_jax.figures.edits import CONTROL_LOOKS, EDIT_LOOKS
from sysout_jax.words import number

LINEAR = 0.01  # changes of the loss below 1 % are drawn linearly
_RANKINGS = {
    "column": (style.BLUE, "s"),
    "row": (style.PINK, "D"),
    "activation": (style.ORANGE, "o"),
}


def called(entry: Entry) -> str:
    """`layer 12 [507, 1229]`: the layer from 1, row and column from 0."""
    writer = entry.writer
    return f"layer {writer.layer + 1} [{writer.row}, {writer.column}]"


@style.styled
def effects(result: Census) -> Figure:
    """A line per writer: change of the loss under each edit, intervals over sequences, controls in grey."""
    count = len(result.entries)
    figure = style.new_figure(1.8 + 0.55 * count)
    axes = figure.subplots()
    for y, entry in enumerate(result.entries):
        _entry(axes, y, entry)
        if y:
            axes.axhline(y - 0.5, color=style.BAND, lw=1)
    axes.axvline(0, color=style.BLACK, ls="--", lw=1.2)
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.5)
    axes.margins(x=0.05)
    axes.set_yticks(range(count), [called(entry) for entry in result.entries])
    axes.set_ylim(count - 0.5, -0.5)
    low, high = axes.get_xlim()
    size = 10.0 ** np.arange(-2, 9)
    ticks = [tick for tick in (*-size[::-1], 0, *size) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{100 * tick:+,.0f}%".replace("-", "−") if tick else "0" for tick in ticks])  # fmt: skip
    axes.set_xticks([], minor=True)
    axes.set_xlabel("change of the loss")
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper center", ncols=6)
    return figure


def _entry(axes: Axes, y: int, entry: Entry) -> None:
    offsets = dict(zip(EDIT_LOOKS, np.linspace(-0.3, 0.3, len(EDIT_LOOKS)), strict=True))
    for control in entry.controls:
        change = control.effect.loss_change
        if np.isfinite(change.value):
            axes.plot(
                change.value,
                y + offsets[control.effect.edit],
                CONTROL_LOOKS[control.kind],
                color=style.GREY,
                ms=7,
                label=f"control: {control.kind}",
            )
    for effect in entry.effects:
        colour, marker = EDIT_LOOKS[effect.edit]
        at, change = y + offsets[effect.edit], effect.loss_change
        if np.isfinite([change.low, change.high]).all():
            axes.hlines(at, change.low, change.high, color=colour, lw=2)
        if np.isfinite(change.value):
            axes.plot(
                change.value, at, marker, color=colour, mec=style.BLACK, ms=6, label=effect.edit
            )


@style.styled
def ranks(result: Census) -> Figure:
    """A point per writer: its rank among all lines of the model against the change of the loss, one panel per ranking."""
    figure = style.new_figure(2.9)
    panels = figure.subplots(1, len(result.agreements), sharey=True)
    for axes, agreement in zip(panels, result.agreements, strict=True):
        colour, marker = _RANKINGS[agreement.ranking]
        points = [
            (rank_of(entry, agreement), entry.effect(agreement.edit).loss_change.value)
            for entry in result.entries
        ]
        axes.plot(*zip(*points, strict=True), marker, color=colour, mec=style.BLACK, ls="")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=LINEAR, linscale=0.5)
        axes.set_title(f"{agreement.ranking}: ρ = {number(agreement.correlation)}")
        axes.set_xlabel(f"rank by {agreement.ranking}")
    panels[0].set_ylabel("change of the loss (1 = +100%)")
    return figure


def rank_of(entry: Entry, agreement: Agreement) -> int:
    writer = entry.writer
    return {
        "column": writer.column_rank,
        "row": writer.row_rank,
        "activation": writer.write_rank,
    }[agreement.ranking]


def effects_sentence(result: Census) -> str:
    """What to see."""
    return (
        "Change of the loss when a writer is edited: one line per writer, the largest write first; bars are intervals over sequences. "
        "Controls in grey: as much taken away elsewhere (+), and a random change as large elsewhere (×). Where a coloured mark lies among the grey ones, "
        "the writer does no more than any other place of its layer."
    )


def ranks_sentence(result: Census) -> str:
    """What to see."""
    return (
        "If rank were severity, points would fall from left to right. ρ is Spearman's correlation of what a ranking orders by with the change of the "
        "loss, over the writers of this page; n/a with fewer than three lines."
    )
