"""Command lines whose defaults come from a file of configs/."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sysout_jax.commands import arguments
from sysout_jax.commands.cli import say
from sysout_jax.config import ModelConfig
from sysout_jax.errors import InputError, UnknownSettings
from sysout_jax.loading import load
from sysout_jax.training.config import TrainConfig, load_config

#: All settings of a run as flags, switches as `--remat True`.
Settings = Annotated[TrainConfig, tyro.conf.arg(name=""), tyro.conf.FlagConversionOff]


@dataclass(frozen=True)
class _Which:
    config: Path | None = None
    init: Path | None = None


def parse(command: type, prog: str, usage: str | None, given: list[str], **required: Any) -> Any:
    """Build `command(config, **required, settings)` from flags, the config file's values being the defaults of `settings`.

    InputError without --config and for values that cannot be.
    """
    bare = [a for a in given if a not in ("-h", "--help")]
    which, _ = arguments.parse(_Which, prog, bare, return_unknown_args=True, add_help=False)
    if which.config is None:
        if len(bare) < len(given):
            say(f"{usage}\n\nWith --config FILE, --help lists all settings and their values.")
            sys.exit(0)
        raise InputError("--config is missing; name a file of configs/")
    settings = load_config(which.config)
    if which.init is not None:  # its model is the one that is trained
        model = _model_of(which.init)
        settings = dataclasses.replace(
            settings,
            init=which.init,
            model=model,
            seq_len=min(settings.seq_len, model.context_length),
        )
    default = command(config=which.config, settings=settings, **required)
    return arguments.parse(
        command, prog, given, default=default, config=(tyro.conf.AvoidSubcommands,)
    )


def _model_of(init: Path) -> ModelConfig:
    """The config of a model to start from. Settings to accept are InputErrors here: a run has no record of them, a converted model has."""
    try:
        return load(init).config
    except UnknownSettings as error:
        raise InputError(
            f"--init {error}: convert it with python -m sysout_jax.convert --accept-setting, and start from that"
        ) from None
    except InputError as error:
        raise InputError(f"--init {error}") from None
