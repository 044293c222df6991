"""Models by a few numbers per layer: the checkpoints of a run against the step, the runs of a sweep with intervals over one axis."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict
from scipy.special import stdtrit

from sysout_jax.checkpoints.checkpoint import home_of
from sysout_jax.checkpoints.run_checkpoints import RUN, whole_steps
from sysout_jax.errors import InputError
from sysout_jax.language_model import LanguageModel
from sysout_jax.loading import FORMATS
from sysout_jax.nonfinite import Nonfinite, finite_or
from sysout_jax.outliers.definitions import value_drain
from sysout_jax.statistics.collect import Stats, collect
from sysout_jax.storage.serialise import plain
from sysout_jax.training.config import FREE_ON_RESUME, changes
from sysout_jax.training.record import Record, training_record
from sysout_jax.training.workdir import CONFIG, read_config

_NUMBER = re.compile(r"[0-9]+")
GRADIENTS = ("grad_norm_k", "grad_norm_v", "grad_norm_down")

#: What is measured, in the order of tables, and how it is called there.
QUANTITIES = {
    "first_token_share": "attention on the first token",
    "first_token_over_even": "the same over the even share of a causal row",
    "h_ratio": "largest |h| / mean |h|",
    "value_drain": "‖v‖ of the first token / mean of the others",
    "x_down_ratio": "largest |x_down| / mean |x_down|",
    "x_down_top": "largest |x_down|",
    "down_column_ratio": "extremal ratio of W_down, columns",
    "grad_norm_k": "gradient norm of W_K",
    "grad_norm_v": "gradient norm of W_V",
    "grad_norm_down": "gradient norm of W_down",
    "val_loss": "validation loss",
}


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint. Losses are in nats; a quantity that is not there, such as a gradient norm without a record, is left out."""

    path: str
    step: int | None
    hash: str
    """Of all weights: equal where two checkpoints hold the same model."""
    values: Mapping[str, np.ndarray]
    """Names of `QUANTITIES` -> (L,); validation loss (1,)."""
    weight_ratios: Mapping[str, np.ndarray]
    """Matrix -> (L,) its largest extremal ratio of a column."""
    nonfinite: Nonfinite | None = None
    """What is NaN or inf; None where it was read from a report."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return plain({name: getattr(self, name) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Mean:
    """Over runs: the mean and the half width of its 95 % interval (Student's t), NaN of a single run; (L,) each."""

    mean: np.ndarray
    half_width: np.ndarray
    count: int


def snapshot(lm: LanguageModel, tokens, path: Path, step: int | None = None) -> Snapshot:
    """One checkpoint of `lm`, that lies at `path`, over `tokens` (N, T). Losses and gradients are those of its record up to `step`."""
    stats = collect(lm, tokens)
    values = _values(stats) | _recorded(training_record(path), step)
    ratios = stats.weights.column_ratio
    return Snapshot(
        str(path),
        step,
        weights_hash(lm),
        {name: values[name] for name in QUANTITIES if name in values},
        {module: ratios[:, i] for i, module in enumerate(stats.weights.modules)},
        stats.nonfinite,
    )


def weights_hash(lm: LanguageModel) -> str:
    """A hash of all weights and their names, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for name, leaf in sorted(flatten_dict(lm.params, sep="/").items()):
        digest.update(f"{name} {leaf.shape} {leaf.dtype}\n".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def checkpoints_of(directory: Path) -> list[tuple[int, Path]]:
    """Step and path of every checkpoint in a run, or in a folder whose entries are checkpoints with a number in their name; by step.

    InputError where there is none.
    """
    directory = Path(os.path.expanduser(directory))
    if home_of(directory) and os.path.isdir(directory / RUN):
        folder = directory / RUN
        numbered = [(step, folder / str(step)) for step in whole_steps(folder)]
    else:
        entries = directory.iterdir() if os.path.isdir(directory) else ()
        numbered = [
            (int(numbers[-1]), path)
            for path in entries
            if (numbers := _NUMBER.findall(path.name)) and any(f.recognises(path) for f in FORMATS)
        ]
    if not numbered:
        raise InputError(
            f"{directory}: holds no checkpoints; name a training run, or a folder of checkpoints with their step in the name"
        )
    return sorted(numbered)


def runs_of(directory: Path, over: str) -> tuple[dict[str, list[Path]], list[str]]:
    """The runs of a sweep (`sysout_jax.training.sweep`) that went furthest, those together that differ in the axis `over` only.

    Keys are the values of the other axes, as in the runs' names; also the names of runs with a checkpoint that are not as far. InputError
    where there is none, where runs have no such axis, and where their configs say that they are no such runs.
    """
    groups: dict[str, list[Path]] = {}
    runs = Path(directory).glob("*=*") if os.path.isdir(directory) else ()
    last = {p: max(whole_steps(p / RUN), default=None) for p in runs}
    far = {path: step for path, step in last.items() if step is not None}
    most = max(far.values(), default=0)
    for path in sorted(path for path, step in far.items() if step == most):
        axes = dict(word.split("=", 1) for word in path.name.split(",") if "=" in word)
        if over not in axes:
            raise InputError(f"{path}: has no axis {over}; expected one of {', '.join(axes)}")
        del axes[over]
        groups.setdefault(",".join(f"{k}={v}" for k, v in axes.items()), []).append(path)
    if not groups:
        raise InputError(
            f"{directory}: holds no runs with a checkpoint; name the directory of a sweep"
        )
    for paths in groups.values():
        _check_alike(paths, over)
    return groups, sorted(path.name for path, step in far.items() if step < most)


def _check_alike(runs: Sequence[Path], over: str) -> None:
    """InputError where two runs are the same, or differ in more than the setting that has the name of the axis: no mean over `over` is one of these."""
    configs = {run: read_config(run) for run in runs if os.path.lexists(run / CONFIG)}
    for one, other in itertools.combinations(configs, 2):
        changed = changes(configs[one], configs[other])
        more = [f"{key}: {how}" for key, how in changed.items() if key.split(".")[-1] != over]
        if not changed and over not in FREE_ON_RESUME:
            raise InputError(
                f"{one} and {other.name}: hold the same run, their {CONFIG} are equal; remove the copy"
            )
        if more and len(more) < len(changed):  # `over` is a setting, and not all that differs
            raise InputError(
                f"{one} and {other.name}: differ in more than {over} ({'; '.join(more)}); keep runs of one sweep together"
            )


def equals(snapshots: Sequence[Snapshot]) -> list[int]:
    """For each the place of the first that holds the same weights: its own where there is none before it."""
    first: dict[str, int] = {}
    return [first.setdefault(each.hash, place) for place, each in enumerate(snapshots)]


LARGEST = 1e150  # of a value whose square is a number


def over_runs(snapshots: Sequence[Snapshot]) -> dict[str, Mean]:
    """Mean and interval of each quantity that all of them have."""
    names = [n for n in QUANTITIES if all(n in each.values for each in snapshots)]
    means = {}
    for name in names:
        # NaN already, or an infinity or a number so large that nothing can be computed with it
        values_RxL = np.stack([each.values[name] for each in snapshots]).astype(np.float64)
        values_RxL = finite_or(values_RxL, np.nan)
        values_RxL[np.abs(values_RxL) > LARGEST] = np.nan
        count = len(values_RxL)
        half = np.full(values_RxL.shape[1], np.nan)
        if count > 1:
            half = float(stdtrit(count - 1, 0.975)) * values_RxL.std(0, ddof=1) / math.sqrt(count)
        means[name] = Mean(values_RxL.mean(0), half, count)
    return means


def _values(stats: Stats) -> dict[str, np.ndarray]:
    length = stats.tokens.shape[1]
    share_L = np.asarray(stats.attention.cumulative)[:, :, 0].mean(1) / length
    norm_LxNxT = stats.values.norm
    drain = value_drain(norm_LxNxT[:, :, 0], norm_LxNxT[:, :, 1:].mean(-1))
    modules = list(stats.weights.modules)
    return {
        "first_token_share": share_L,
        "first_token_over_even": share_L / stats.attention.even_share,
        "h_ratio": np.asarray(stats.h.ratio),
        "value_drain": drain.mean(1),
        "x_down_ratio": np.asarray(stats.x_down.ratio),
        "x_down_top": np.asarray(stats.x_down.top_values[:, 0]),
        "down_column_ratio": stats.weights.column_ratio[:, modules.index("down")],
    }


def _recorded(record: Record | None, step: int | None) -> dict[str, np.ndarray]:
    """The last validation loss and gradient norms up to `step`."""
    if record is None:
        return {}
    last = math.inf if step is None else step
    values = {}
    if (seen := record.val_steps <= last).any():
        values["val_loss"] = record.val_loss[seen][-1:]
    if (seen := record.monitor_steps <= last).any():
        values |= {n: record.monitor[n][seen][-1] for n in GRADIENTS if n in record.monitor}
    return values
