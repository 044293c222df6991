"""python -m train.sweep configs/X.py --workdir DIR: train a grid of runs, or go on with it. Several processes share the work."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from sysout_jax import interrupts
from sysout_jax.commands import compilations
from sysout_jax.commands.arguments import parse
from sysout_jax.commands.cli import run, say
from sysout_jax.errors import RunError
from sysout_jax.processes import all_devices
from sysout_jax.storage.staging import write_file
from sysout_jax.training.config import load_defined
from sysout_jax.training.host_memory import keep_freed_memory
from sysout_jax.training.loop import Outcome, Progress
from sysout_jax.training.sweep import (
    DONE,
    FAILED,
    Run,
    State,
    Sweep,
    check_place,
    run_sweep,
    state_of,
    words_by_axis,
)
from sysout_jax.words import plural

TABLE = "sweep.json"


@dataclass(frozen=True)
class Args:
    """Train a grid of runs. What is done is skipped, what was killed goes on, and a run that fails does not stop the others."""

    config: Annotated[Path, tyro.conf.Positional]
    """Python file that defines `sweep`, for example configs/section5.py:variants."""
    workdir: Path
    """Directory of the sweep: a training workdir for each run, and sweep.json."""
    only: tuple[str, ...] = ()
    """KEY=VALUE: only runs with this value of an axis; several of one key mean any of them."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show how far the runs are and train nothing."""


def main() -> None:
    keep_freed_memory()
    args = parse(Args, "python -m train.sweep")
    sweep = load_defined(args.config, "sweep", Sweep, "variants")
    runs = sweep.runs(words_by_axis(args.only))
    check_place(args.workdir)
    if args.dry_run:
        say(table([state_of(each, args.workdir) for each in runs]))
        return
    all_devices()  # without any, every run of the grid would fail by itself
    compilations.keep()
    stop = threading.Event()
    shown = ""  # the run whose steps the bar counts
    with tqdm(unit="step", disable=not sys.stderr.isatty()) as bar:

        def report(member: Run, progress: Progress) -> None:
            interrupts.on_terminate(stop.set)  # from the first step on there is something to save
            nonlocal shown
            if shown != member.name:
                shown = member.name
                bar.reset(progress.last_step)
                bar.set_description(shown)
            bar.update(progress.step - bar.n)
            bar.set_postfix(loss=f"{progress.loss:.3f}")

        def ended(member: Run, outcome: Outcome | None, problem: str | None) -> None:
            if outcome is None:
                say(f"failed: {member.name}: {problem}")
            else:
                loss = (
                    "" if outcome.val_loss is None else f", validation loss {outcome.val_loss:.4f}"
                )
                say(f"{outcome.status} at step {outcome.step}{loss}: {member.name}")

        states = run_sweep(runs, args.workdir, report, ended, stop.is_set)
    _store(args.workdir, [state_of(each, args.workdir) for each in sweep.runs()])
    say(table(states))
    failed = [state.name for state in states if state.status == FAILED]
    if failed:
        raise RunError(
            f"{len(failed)} of {plural(len(states), 'run')} failed: {', '.join(failed)}; see above why"
        )


def table(states: Sequence[State]) -> str:
    """A line for each run, and how many are done."""
    width = max((len(state.name) for state in states), default=0)
    lines = [f"{'run':{width}}  {'status':8}{'step':>16}{'loss':>9}{'val loss':>10}"]
    for state in states:
        steps = f"{state.step:,}/{state.last_step:,}"
        losses = ["" if loss is None else f"{loss:.4f}" for loss in (state.loss, state.val_loss)]
        lines.append(
            f"{state.name:{width}}  {state.status:8}{steps:>16}{losses[0]:>9}{losses[1]:>10}"
        )
    done = sum(state.status == DONE for state in states)
    return "\n".join([*lines, f"{done} of {plural(len(states), 'run')} done"])


def _store(workdir: Path, states: Sequence[State]) -> None:
    """sweep.json: the whole grid as it lies on disk, the same whatever happened on the way."""
    if not workdir.is_dir():  # nothing has begun
        return
    rows = [dataclasses.asdict(state) for state in states]
    try:
        write_file(workdir / TABLE, (json.dumps(rows, indent=2) + "\n").encode())
    except OSError as error:
        raise RunError(
            f"{workdir / TABLE}: cannot be written ({error.strerror}); free some space"
        ) from None


if __name__ == "__main__":
    run(main)
