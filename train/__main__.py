"""python -m train --config configs/X.py --workdir DIR [overrides]: train, or go on where the last run in DIR stopped."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from tqdm import tqdm

from sysout_jax.cli import run
from sysout_jax.errors import InputError
from sysout_jax.sharding import start_processes
from sysout_jax.training.config import TrainConfig, load_config
from sysout_jax.training.loop import Progress, fit


@dataclass(frozen=True)
class Command:
    """Train a language model. Settings come from --config; every one of them can be overridden."""

    config: Path
    """Python file that defines `config`, for example configs/cpu_small_default.py."""
    workdir: Path
    """Directory of the run: metrics.jsonl, checkpoints. An existing run goes on from its last checkpoint."""
    settings: Annotated[TrainConfig, tyro.conf.arg(name="")]


def parse(arguments: list[str]) -> Command:
    """The command line, with the config file's values as defaults. InputError for values that cannot be."""

    @dataclass(frozen=True)
    class Which:
        config: Path | None = None

    bare = [a for a in arguments if a not in ("-h", "--help")]
    which, _ = tyro.cli(Which, args=bare, return_unknown_args=True, add_help=False)
    if which.config is None:
        if len(bare) < len(arguments):
            print(__doc__ + "\n\nWith --config FILE, --help lists all settings and their values.")
            raise SystemExit(0)
        raise InputError("--config is missing; name a file of configs/")
    default = load_config(which.config)
    try:
        return tyro.cli(
            Command,
            args=arguments,
            prog="python -m train",
            default=Command(which.config, tyro.MISSING, default),
            config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
        )
    except ValueError as error:
        raise InputError(str(error)) from None


def main() -> None:
    start_processes()
    command = parse(sys.argv[1:])
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stop = threading.Event()
    if jax.process_count() == 1:
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
    bar = tqdm(
        total=command.settings.last_step,
        unit="step",
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )

    def report(progress: Progress) -> None:
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
        print(f"{outcome.status} at step {outcome.step}{loss}: {command.workdir}")


if __name__ == "__main__":
    run(main)
