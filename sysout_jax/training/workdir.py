"""The directory of a run: whose it is, and what makes it a checkpoint for every analysis."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from sysout_jax.checkpoint import write_config
from sysout_jax.data import tokenizers
from sysout_jax.errors import InputError
from sysout_jax.staging import write_file
from sysout_jax.training.config import TrainConfig, differences, from_dict, to_dict
from sysout_jax.workspaces import is_workspace

CONFIG = "train.json"


def claim(config: TrainConfig, workdir: Path) -> None:
    """Make the workdir this config's; InputError when it is another's, or no run's, or cannot be written."""
    path = workdir / CONFIG
    if path.exists():
        changed = differences(_read_config(path), config)
        if changed:
            raise InputError(
                f"{workdir}: holds a run of another config ({'; '.join(changed)}); name a new --workdir or "
                "take the differences back"
            )
    elif workdir.exists() and (
        not workdir.is_dir() or not all(map(is_workspace, workdir.iterdir()))
    ):
        raise InputError(f"{workdir}: exists and is no training run; name a new --workdir")
    if jax.process_index():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # first, so that a run killed between these files is still this config's
        write_file(path, (json.dumps(to_dict(config), indent=2) + "\n").encode())
        write_config(workdir, config.model)
        tokenizer = config.data / tokenizers.FILE
        if tokenizer.is_file():
            write_file(workdir / tokenizers.FILE, tokenizer.read_bytes())
    except OSError as error:
        raise InputError(f"--workdir {workdir}: {error.strerror}; name another directory") from None


def _read_config(path: Path) -> TrainConfig:
    try:
        return from_dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable training config ({error})") from None
