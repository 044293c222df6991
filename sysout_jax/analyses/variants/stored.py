"""Sweeps that were measured before, read from the JSON that `python -m analyze.variants --over` wrote: no model is loaded, nothing computed anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analyses.variants.snapshots import QUANTITIES, Snapshot
from sysout_jax.errors import InputError
from sysout_jax.printable import printable
from sysout_jax.storage.serialise import read_json_object

_ADVICE = "write one by python -m analyze.variants"


def read_sweeps(paths: Sequence[Path]) -> tuple[str, dict[str, list[Snapshot]]]:
    """The axis that runs are averaged over, and the runs of each setting: those of all files together.

    InputError for a file that is no such report, and where files average over different axes or hold a run twice.
    """
    groups: dict[str, list[Snapshot]] = {}
    seen: dict[tuple[str, str], Path] = {}
    axes: dict[str, Path] = {}
    for path in paths:
        report = read_json_object(path, _ADVICE)
        try:
            axes[report["over"].strip()] = path
            stored = [
                (str(entry["setting"]), _snapshot(run))
                for entry in report["settings_of_runs"]
                for run in entry["runs"]
            ]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InputError(
                f"{path}: is no report of a sweep; expected a variants_sweep.json, {_ADVICE}"
            ) from None
        if len(axes) != 1:
            raise InputError(
                f"{', '.join(map(str, axes.values()))}: average over {', '.join(printable(axis) for axis in axes)}; name files of one axis"
            )
        for setting, run in stored:
            name = printable(Path(run.path).name)
            before = seen.setdefault((setting, run.hash), path)
            if before is not path:
                raise InputError(f"{path}: the run {name} is in {before} too; name each run once")
            groups.setdefault(setting, []).append(run)
    layers = {len(values) for runs in groups.values() for run in runs for n, values in run.values.items() if n != "val_loss"}  # fmt: skip
    if len(layers) > 1:
        raise InputError(
            f"{', '.join(map(str, paths))}: models of {' and '.join(map(str, sorted(layers)))} layers; name files of one depth"
        )
    return next(iter(axes)), dict(sorted(groups.items()))


def _snapshot(stored: dict[str, Any]) -> Snapshot:
    step = stored["step"]
    values = {name: _numbers(v) for name, v in stored["values"].items() if name in QUANTITIES}
    if "h_ratio" not in values:  # every model has one
        raise ValueError(stored["values"])
    return Snapshot(
        path=str(stored["path"]),
        step=None if step is None else int(step),
        hash=str(stored["hash"]),
        values=values,
        weight_ratios={
            str(name): _numbers(values) for name, values in stored["weight_ratios"].items()
        },
    )


def _numbers(values: list[Any]) -> np.ndarray:
    """NaN and inf are stored as null and words."""
    numbers = np.array([np.nan if value is None else float(value) for value in values], np.float64)
    if numbers.ndim != 1 or not numbers.size:
        raise ValueError(values)
    return numbers
