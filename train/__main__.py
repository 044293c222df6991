"""python -m train --config configs/X.py --workdir DIR [overrides]: train, or go on where the last run in DIR stopped."""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import tyro
from tqdm import tqdm

from sysout_jax import interrupts
from sysout_jax.commands import compilations
from sysout_jax.commands.cli import run, say
from sysout_jax.printable import escaped
from sysout_jax.processes import start_processes
from sysout_jax.training.host_memory import keep_freed_memory
from sysout_jax.training.loop import Progress, fit
from sysout_jax.words import plural
from train.settings import Settings, parse


@dataclass(frozen=True)
class Command:
    """Train a language model. Settings come from --config; every one of them can be overridden."""

    config: Path
    """Python file that defines `config`, for example configs/cpu_small.py:default."""
    workdir: Path
    """Directory of the run: metrics.jsonl, checkpoints. An existing run goes on from its last checkpoint."""
    settings: Settings


def main() -> None:
    keep_freed_memory()
    start_processes()
    command = parse(Command, "python -m train", __doc__, sys.argv[1:], workdir=tyro.MISSING)
    compilations.keep()
    if command.settings.init is not None and jax.process_index() == 0:
        model, length = command.settings.model, command.settings.seq_len
        say(
            f"Starts from {command.settings.init}. Its model ({model.family}, {plural(model.num_layers, 'layer')}, d_model {model.d_model}) takes "
            f"the place of the config's; sequences have {plural(length, 'token')}."
        )
    stop = threading.Event()
    bar = tqdm(
        total=command.settings.last_step,
        unit="step",
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )

    def report(progress: Progress) -> None:
        if jax.process_count() == 1:  # several leave together, see sysout_jax/training/loop.py
            interrupts.on_terminate(stop.set)  # from the first step on there is something to save
        bar.update(progress.step - bar.n)
        shown = {"loss": f"{progress.loss:.3f}", "tokens/s": f"{progress.tokens_per_second:,.0f}"}
        if progress.val_loss is not None:
            shown["val"] = f"{progress.val_loss:.3f}"
        if progress.mfu is not None:
            shown["MFU"] = f"{progress.mfu:.1%}"
        bar.set_postfix(shown)

    with bar:
        outcome = fit(command.settings, command.workdir, report, stop.is_set)
    if jax.process_index() == 0:
        loss = "" if outcome.val_loss is None else f", validation loss {outcome.val_loss:.4f}"
        say(f"{outcome.status} at step {outcome.step}{loss}: {escaped(str(command.workdir))}")


if __name__ == "__main__":
    run(main)
