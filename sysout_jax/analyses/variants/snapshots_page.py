"""Reports of checkpoints against the step, and of the runs of a sweep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.analyses.variants.side_by_side import grid, look
from sysout_jax.analyses.variants.snapshots import (
    QUANTITIES,
    Mean,
    Snapshot,
    equals,
    over_runs,
)
from sysout_jax.figures import style
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Picture, Section, Table
from sysout_jax.reports.report import write_report
from sysout_jax.reports.terminal import text_table
from sysout_jax.storage.serialise import plain
from sysout_jax.storage.staging import write_file
from sysout_jax.words import number, percent, plural

STEPS, SWEEP = "variants_steps", "variants_sweep"
#: Of the figure and the short table of a sweep.
MAIN = ("val_loss", "first_token_share", "h_ratio", "value_drain", "x_down_ratio", "down_column_ratio")  # fmt: skip
SHORT = {
    "first_token_share": "first tok.",
    "h_ratio": "|h|/mean",
    "value_drain": "drain",
    "x_down_top": "|x_down|",
    "down_column_ratio": "W_down",
    "grad_norm_down": "∇W_down",
    "val_loss": "val loss",
}  # columns of a terminal
_NARROW = (list(SHORT)[:4], list(SHORT)[4:])  # tables that fit its width


def steps_headline(snapshots: Sequence[Snapshot]) -> str:
    """How many checkpoints there are, and how many of them are different models."""
    count, different = len(snapshots), len(set(equals(snapshots)))
    last = snapshots[-1]
    same = "" if different == count else f", {different} different models"
    return (
        f"{count} checkpoints{same}. At step {last.step:,} the first token gets at most "
        f"{percent(last.values['first_token_share'].max())} of a layer's attention, and the largest |h| is "
        f"{number(float(last.values['h_ratio'].max()))} times its mean."
    )


def steps_table(snapshots: Sequence[Snapshot], names: Sequence[str]) -> list[list[str]]:
    """A row for each checkpoint: step, hash, and each quantity layer by layer."""
    first = equals(snapshots)
    rows = []
    for place, each in enumerate(snapshots):
        same = "" if first[place] == place else f" (as {snapshots[first[place]].step:,})"
        cells = [_layers(each.values[n], _digits(n)) if n in each.values else "–" for n in names]
        rows.append([f"{each.step:,}", each.hash[:8] + same, *cells])
    return rows


def steps_summary(snapshots: Sequence[Snapshot]) -> str:
    """For the terminal."""
    tables = [
        text_table(("step", "weights", *(SHORT[n] for n in names)), steps_table(snapshots, names))
        for names in _NARROW
    ]
    lines = [steps_headline(snapshots), *_nonfinite(snapshots), "Per layer, first to last:"]
    return "\n".join([*lines, *tables])


def _nonfinite(snapshots: Iterable[Snapshot]) -> list[str]:
    """What is NaN or inf in which checkpoints."""
    return [
        f"{Path(each.path).name}: {line}"
        for each in snapshots
        for line in (remarks(each.nonfinite) if each.nonfinite else ())
    ]


@style.styled
def steps_figure(snapshots: Sequence[Snapshot]) -> Figure:
    """Every quantity against the step, a line for each layer."""
    names = [n for n in QUANTITIES if any(n in each.values for each in snapshots)]
    figure = style.new_figure(0.6 + 1.75 * -(-len(names) // 2))
    panels = grid(figure, len(names))
    for axes, name in zip(panels, names, strict=True):
        there = [each for each in snapshots if name in each.values]
        curves_SxL = np.stack([each.values[name] for each in there])
        for layer, curve in enumerate(curves_SxL.T):
            label = f"layer {layer + 1}" if curves_SxL.shape[1] > 1 else None
            axes.plot([each.step for each in there], curve, **look(layer), ms=3, label=label)
        axes.set_title(QUANTITIES[name], fontsize=9)
        axes.grid(axis="y")
    for axes in panels[-2:]:
        axes.set_xlabel("step")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=6)
    return figure


def write_steps_report(
    out: Path, name: str, snapshots: Sequence[Snapshot], settings: dict[str, Any]
) -> list[Path]:
    """The checkpoints of the run `name`, by step, into `out`; returns all paths."""
    first = equals(snapshots)
    rows = [
        each.to_dict() | {"same_as_step": None if first[i] == i else snapshots[first[i]].step}
        for i, each in enumerate(snapshots)
    ]
    header = ("step", "weights", *QUANTITIES.values())
    table = Table(header, tuple(map(tuple, steps_table(snapshots, list(QUANTITIES)))))
    return write_report(
        out,
        STEPS,
        f"Checkpoint by checkpoint: {name}",
        headline=steps_headline(snapshots),
        payload={"run": name, "checkpoints": rows},
        sections=[
            Section("Against the step", (Picture("steps", "Every quantity, layer by layer."),)),
            Section(
                "Numbers",
                ("Layers are separated by spaces, first to last.", *_nonfinite(snapshots), table),
            ),
        ],
        figures={"steps": steps_figure(snapshots)},
        settings=settings,
    )


def sweep_headline(groups: Mapping[str, Sequence[Snapshot]], over: str) -> str:
    """How many runs there are, and what is told of them."""
    runs = sum(map(len, groups.values()))
    return f"{plural(runs, 'run')} in {plural(len(groups), 'setting')}, mean and 95 % interval over {over}."


def sweep_table(groups: Mapping[str, Sequence[Snapshot]], names: Sequence[str]) -> list[list[str]]:
    """A row for each setting: number of runs, and each quantity layer by layer with its interval."""
    rows = []
    for setting, snapshots in groups.items():
        means = over_runs(snapshots)
        cells = [_with_interval(means[n], _digits(n)) if n in means else "–" for n in names]
        rows.append([setting or "all", str(len(snapshots)), *cells])
    return rows


def sweep_summary(groups: Mapping[str, Sequence[Snapshot]], over: str) -> str:
    """For the terminal: means only."""
    means = {setting: over_runs(snapshots) for setting, snapshots in groups.items()}

    def table(names: list[str]) -> str:
        rows = [
            (
                setting or "all",
                str(len(groups[setting])),
                *(_layers(each[n].mean, _digits(n)) if n in each else "–" for n in names),
            )
            for setting, each in means.items()
        ]
        return text_table(("setting", "runs", *(SHORT[n] for n in names)), rows)

    tables = map(table, _NARROW)
    lines = [sweep_headline(groups, over), *_nonfinite(chain(*groups.values()))]
    told = "Means, per layer, first to last; the report has the intervals:"
    return "\n".join([*lines, told, *tables])


def sweep_markdown(groups: Mapping[str, Sequence[Snapshot]]) -> str:
    """The short table, for a page of documentation."""
    header = ["setting", "runs", *(QUANTITIES[name] for name in MAIN)]
    lines = [header, ["---"] * len(header), *sweep_table(groups, MAIN)]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


@style.styled
def sweep_figure(groups: Mapping[str, Sequence[Snapshot]]) -> Figure:
    """A row for each setting, a mark for each layer: mean over its runs and 95 % interval."""
    means = {setting: over_runs(snapshots) for setting, snapshots in groups.items()}
    names = [n for n in MAIN if any(n in each for each in means.values())]
    rows = 0.6 + 0.24 * len(groups)
    figure = style.new_figure(0.7 + rows * -(-len(names) // 2))
    panels = grid(figure, len(names), sharey=True)
    for axes, name in zip(panels, names, strict=True):
        for row, each in enumerate(means.values()):
            if name not in each:
                continue
            layers = len(each[name].mean)
            for layer, (mean, half) in enumerate(
                zip(each[name].mean, each[name].half_width, strict=True)
            ):
                at = row + 0.5 * ((layer + 0.5) / layers - 0.5)
                looks = look(layer) | {"ls": "none"}
                label = f"layer {layer + 1}" if row == 0 and layers > 1 else None
                error = half if np.isfinite(half) else None
                axes.errorbar(mean, at, xerr=error, **looks, ms=3, lw=0.8, label=label)
        axes.set_title(QUANTITIES[name], fontsize=9)
        axes.set_yticks(range(len(means)), [style.label_text(s or "all", 32) for s in means])
        axes.grid(axis="x")
    panels[0].invert_yaxis()
    several = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    handles, labels = several.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=6)
    return figure


def write_sweep_report(
    out: Path,
    name: str,
    groups: Mapping[str, Sequence[Snapshot]],
    over: str,
    settings: dict[str, Any],
) -> list[Path]:
    """The runs of a sweep, grouped by all axes but `over`, into `out`, the short table as Markdown too; returns all paths."""
    payload = {
        "sweep": name,
        "over": over,
        "settings_of_runs": [
            {
                "setting": setting,
                "runs": [each.to_dict() for each in snapshots],
                "mean": {
                    n: plain({"mean": m.mean, "half_width": m.half_width, "runs": m.count})
                    for n, m in over_runs(snapshots).items()
                },
            }
            for setting, snapshots in groups.items()
        ],
    }
    header = ("setting", "runs", *QUANTITIES.values())
    table = Table(header, tuple(map(tuple, sweep_table(groups, list(QUANTITIES)))))
    caption = f"Layers are separated by spaces, first to last; ± is half of the 95 % interval of the mean over {over} (Student's t)."
    paths = write_report(
        out,
        SWEEP,
        f"Runs of {name}",
        headline=sweep_headline(groups, over),
        payload=payload,
        sections=[
            Section(
                "At a glance",
                (
                    Picture(
                        "sweep", f"Mean over the runs of each setting, and {caption.split('; ')[1]}"
                    ),
                ),
            ),
            Section("Numbers", (caption, *_nonfinite(chain(*groups.values())), table)),
        ],
        figures={"sweep": sweep_figure(groups)},
        settings=settings,
    )
    markdown = out / f"{SWEEP}.md"
    write_file(markdown, f"{sweep_markdown(groups)}\n".encode())
    return [*paths, markdown]


def _digits(name: str) -> int:
    """Losses differ by little between variants."""
    return 4 if name == "val_loss" else 3


def _layers(values: np.ndarray, digits: int) -> str:
    return " ".join(f"{v:.{digits}g}" if np.isfinite(v) else "n/a" for v in values)


def _with_interval(averaged: Mean, digits: int) -> str:
    if not np.isfinite(averaged.half_width).all():
        return _layers(averaged.mean, digits)
    pairs = zip(averaged.mean, averaged.half_width, strict=True)
    return " ".join(f"{m:.{digits}g}±{w:.2g}" for m, w in pairs)
