"""Our own checkpoint directory: `model.json` (config, dtype), `tokenizer.json`, and `params/` written by Orbax."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from sysout_jax.config import ModelConfig, config_from_dict, config_to_dict
from sysout_jax.errors import InputError
from sysout_jax.weights import expected_shapes, nest

CONFIG = "model.json"
PARAMS = "params"


def save(
    directory: Path,
    config: ModelConfig,
    params: dict,
    extra_files: dict[str, Path] | None = None,
    bos_id: int | None = None,
) -> None:
    """Write a checkpoint directory; it appears whole or not at all.

    `params` is the nested dict of a model, `extra_files` are copied along under the given names (the tokenizer).
    Raises InputError when `directory` exists and is not an empty directory.
    """
    directory = Path(directory).absolute()
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InputError(f"{directory}: exists already; name a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(staging / PARAMS, params)
        for name, path in (extra_files or {}).items():
            shutil.copyfile(path, staging / name)
        fields = {"config": config_to_dict(config), "bos_token_id": bos_id}
        (staging / CONFIG).write_text(json.dumps(fields, indent=2) + "\n")
        staging.chmod(0o755)  # mkdtemp makes it private
        staging.replace(directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def read_config(directory: Path) -> tuple[ModelConfig, int | None]:
    """Config and BOS id of a checkpoint directory; InputError when they cannot be read."""
    path = Path(directory) / CONFIG
    try:
        fields = json.loads(path.read_text())
        return config_from_dict(fields["config"]), fields["bos_token_id"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path}: not a readable model config ({error!r}); convert the checkpoint again"
        ) from None


class OrbaxSource:
    """Weights of a checkpoint directory, restored group by group. Strict like the safetensors reader."""

    def __init__(self, directory: Path, config: ModelConfig):
        self._path = Path(directory).absolute() / PARAMS
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            metadata = self._checkpointer.metadata(self._path).item_metadata.tree
        except (FileNotFoundError, ValueError, AttributeError, KeyError) as error:
            raise InputError(
                f"{self._path}: not a whole Orbax checkpoint ({error}); convert it again"
            ) from None
        held = {k: tuple(v.shape) for k, v in flatten_dict(metadata, sep="/").items()}
        want = expected_shapes(config)
        if held != want:
            wrong = sorted(set(held.items()) ^ set(want.items()))
            raise InputError(
                f"{self._path}: {len(wrong)} parameters differ from what {CONFIG} implies, first "
                f"{wrong[0][0]} {wrong[0][1]}; convert the checkpoint again"
            )
        self._shapes = want

    def read(self, group: str, dtype: Any) -> dict:
        flat = {
            k: np.empty(shape, dtype)
            for k, shape in self._shapes.items()
            if k.startswith(group + "/")
        }
        item = nest(flat)
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype), item
        )
        restored = self._checkpointer.restore(
            self._path,
            args=ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True),
        )
        return restored[group]
