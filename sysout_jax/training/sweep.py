"""A grid of training runs in one directory, resumable and shared: each run is a workdir of its own, below it."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sysout_jax.checkpoints.run_checkpoints import RUN, read_record, steps, whole_steps
from sysout_jax.data.identity import check_identity, identity
from sysout_jax.data.token_files import SPLITS, bin_path
from sysout_jax.errors import AtWork, InputError, RunError
from sysout_jax.storage.files import mark_of
from sysout_jax.storage.held import check_name
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Outcome, Progress, fit
from sysout_jax.training.metrics_file import METRICS, read_metrics
from sysout_jax.training.workdir import check, check_checkpoint, check_not_beyond

WAITING, BEGUN, DONE, FAILED = "waiting", "begun", "done", "failed"
PAUSE = 1.0  # seconds between two looks at what other processes do
_UNUSABLE = set("/\\:[]*?\0")  # in the name of a directory


@dataclass(frozen=True)
class Run:
    """One point of the grid."""

    values: Mapping[str, Any]  # axis -> value
    config: TrainConfig

    @property
    def name(self) -> str:
        """Of its directory: `variant=default,seed=0`."""
        return _name(self.values)


@dataclass(frozen=True)
class Sweep:
    """Every combination of the axes' values; `config(**values)` says what a run of them is. The last axis changes fastest."""

    axes: Mapping[str, Sequence[Any]]
    config: Callable[..., TrainConfig]

    def __post_init__(self) -> None:
        for axis, values in self.axes.items():
            words = [str(value) for value in values]
            if not words or len(set(words)) < len(words):
                raise InputError(
                    f"axis {axis} has the values {words}; expected at least one, each once"
                )
            if wrong := [word for word in (axis, *words) if not word or _UNUSABLE & set(word)]:
                raise InputError(f"axis {axis}: {wrong[0]!r} can be no part of a directory's name")

    def runs(self, only: Mapping[str, Sequence[str]] | None = None) -> list[Run]:
        """All runs, or those whose value of each axis in `only` is among the words given for it. InputError for words that no value has."""
        chosen = dict(only or {})
        for axis, words in chosen.items():
            _check_known("axis", axis, list(self.axes))
            for word in words:
                _check_known(f"{axis}", word, [str(value) for value in self.axes[axis]])
        points = (
            dict(zip(self.axes, values, strict=True))
            for values in itertools.product(*self.axes.values())
        )
        return [
            Run(point, self._built(point))
            for point in points
            if all(str(point[axis]) in words for axis, words in chosen.items())
        ]

    def _built(self, point: dict[str, Any]) -> TrainConfig:
        config = self.config(**point)
        if not isinstance(config, TrainConfig):
            raise InputError(f"{_name(point)}: config gives no TrainConfig")
        return config


@dataclass(frozen=True)
class State:
    """How far a run is. `step` and losses (nats) are those of its last whole checkpoint, None without one; `problem` is why it failed."""

    name: str
    values: Mapping[str, Any]
    status: str  # waiting, begun, done, failed
    step: int
    last_step: int
    loss: float | None = None
    val_loss: float | None = None
    problem: str | None = None


def state_of(run: Run, workdir: Path, problem: str | None = None) -> State:
    """What lies on disk of one run of the sweep in `workdir`."""
    home, last = Path(workdir) / run.name, run.config.last_step
    step = max(whole_steps(home / RUN), default=0)
    done = step >= last
    if done:
        problem = _of_another_run(run.config, home, step)
    status = FAILED if problem else DONE if done else BEGUN if _begun(home) else WAITING
    losses: dict[str, float] = {}
    if step and (home / METRICS).is_file():
        for record in read_metrics(home):
            if record["step"] == step:
                losses |= {n: record[n] for n in ("loss", "val_loss") if n in record}
    return State(
        run.name,
        run.values,
        status,
        step,
        last,
        losses.get("loss"),
        losses.get("val_loss"),
        problem,
    )


def _of_another_run(config: TrainConfig, home: Path, step: int) -> str | None:
    """Why what is done in a run's directory is not this config's: a grid may have changed, data been made anew, a directory been copied."""
    try:
        check_not_beyond(config, step, home)
        check(config, home)
        record = read_record(home / RUN / str(step))
        check_checkpoint(config, record.get("config", {}), home / RUN / str(step))
        marks = tuple(mark_of(bin_path(config.data, split)) for split in SPLITS)
        if None not in marks:  # what is done needs its data no more
            check_identity(config.data, _identity(config.data, marks), record.get("data", {}))
    except InputError as error:
        return str(error)
    return None


@functools.lru_cache(maxsize=8)
def _identity(data: Path, marks: tuple) -> dict:
    """That of data which has not changed meanwhile, by the marks of its files: the runs of a grid share it, and are looked at again and again."""
    return identity(data)


def run_sweep(
    runs: Sequence[Run],
    workdir: Path,
    report: Callable[[Run, Progress], object] = lambda run, progress: None,
    ended: Callable[[Run, Outcome | None, str | None], object] = lambda run, outcome, why: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[State]:
    """Train all runs to their end, each in its directory below `workdir`; those that are done are left alone. Returns where each stands.

    A directory that holds another run under the name of one, by its config or its data, is a failure of that one, and left alone too.

    A run in which another process is at work comes later again: it is then done, or was given up and is taken over. One that cannot begin
    or go on is told to `ended`, with the reason, and the others go on. `should_stop` is as in `fit`. InputError where `workdir` is no directory.
    """
    workdir = Path(workdir)
    check_place(workdir)
    problems: dict[str, str] = {}
    open_runs = list(runs)
    while open_runs and not should_stop():
        elsewhere = []
        for run in open_runs:
            if should_stop():
                break
            state = state_of(run, workdir)
            if state.status == FAILED:
                ended(run, None, state.problem)
            if state.status in (DONE, FAILED):
                continue
            try:
                outcome = fit(run.config, workdir / run.name, partial(report, run), should_stop)
            except AtWork:
                elsewhere.append(run)
            except (InputError, RunError) as error:
                problems[run.name] = str(error)
                ended(run, None, str(error))
            else:
                ended(run, outcome, None)
        if len(elsewhere) == len(open_runs):
            time.sleep(PAUSE)
        open_runs = elsewhere
    return [state_of(run, workdir, problems.get(run.name)) for run in runs]


def check_place(workdir: Path) -> None:
    """InputError where the directory of a sweep can be none."""
    check_name(workdir)
    try:
        os.lstat(workdir)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}; name another directory") from None
    if not os.path.isdir(workdir):
        raise InputError(f"{workdir}: is not a directory; name a new one")


def words_by_axis(given: Sequence[str]) -> dict[str, list[str]]:
    """`KEY=VALUE` words, those of one key together. InputError for what is none."""
    settings: dict[str, list[str]] = {}
    for word in given:
        axis, equals, value = word.partition("=")
        if not (axis and equals and value):
            raise InputError(f"{word!r}: expected KEY=VALUE, such as seed=0")
        settings.setdefault(axis, []).append(value)
    return settings


def _name(values: Mapping[str, Any]) -> str:
    return ",".join(f"{axis}={value}" for axis, value in values.items())


def _begun(home: Path) -> bool:
    return bool(steps(home / RUN)) or (home / METRICS).is_file()


def _check_known(what: str, word: str, known: list[str]) -> None:
    if word not in known:
        near = difflib.get_close_matches(word, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(known)}"
        raise InputError(f"{what} {word!r}: is not in the grid; {hint}")
