"""Our own checkpoint directory: `model.json` (config, BOS id), `tokenizer.json`, and `params/<group>/` written by Orbax.

Each group (`embed`, `layer_0`, …) is an Orbax checkpoint of its own, so that neither writing nor reading one ever holds the model.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict

from sysout_jax.config import ModelConfig, config_from_dict, config_to_dict
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer, read_bos_id
from sysout_jax.errors import InputError
from sysout_jax.serialise import read_json_object
from sysout_jax.staging import new_directory, write_file
from sysout_jax.weights import WeightSource, expected_shapes, groups

CONFIG = "model.json"
PARAMS = "params"
RUN = "checkpoints"  # of a training run: one directory of groups per step


def save(
    directory: Path,
    config: ModelConfig,
    source: WeightSource,
    dtype: Any,
    tokenizer: Tokenizer | None = None,
    bos_id: int | None = None,
    on_group: Callable[[], object] | None = None,
) -> None:
    """Write a checkpoint directory; it appears whole or not at all, and in memory there is one group at a time.

    `source` gives the weights, written in `dtype`; the tokenizer goes along. `on_group` is called after each group.
    Raises InputError when `directory` exists and is not an empty directory.
    """
    with new_directory(directory) as staging, ocp.StandardCheckpointer() as checkpointer:
        for group in groups(config):
            checkpointer.save(staging / PARAMS / group, source.read(group, dtype))
            checkpointer.wait_until_finished()
            if on_group:
                on_group()
        if tokenizer:
            tokenizer.save(staging / tokenizers.FILE)
        write_config(staging, config, bos_id)


def write_config(directory: Path, config: ModelConfig, bos_id: int | None = None) -> None:
    """The model's config and BOS id, beside its parameters or its training checkpoints."""
    fields = {"config": config_to_dict(config), "bos_token_id": bos_id}
    write_file(Path(directory) / CONFIG, (json.dumps(fields, indent=2) + "\n").encode())


def read_config(directory: Path) -> tuple[ModelConfig, int | None]:
    """Config and BOS id of a checkpoint directory; InputError when they cannot be read."""
    path = Path(directory) / CONFIG
    fields = read_json_object(path, "convert the checkpoint again")
    try:
        config = config_from_dict(fields.get("config"))
    except InputError as error:
        raise InputError(f"{path}: {error}; convert the checkpoint again") from None
    return config, read_bos_id(fields, config.vocab_size, str(path))


def is_converted(directory: Path) -> bool:
    """Whether `save` wrote this directory; a training run holds more than one checkpoint."""
    return (directory / CONFIG).is_file() and not (directory / RUN).is_dir()


# The groups of a training checkpoint are items of one checkpoint, which alone has such a file; Orbax warns once per group.
logging.getLogger("absl").addFilter(
    lambda record: "Metadata file does not exist" not in record.getMessage()
)


class Found(NamedTuple):
    """Where the parts of a checkpoint lie: config and tokenizer in `home`, parameter groups in `params`."""

    home: Path
    params: Path


def locate(directory: Path) -> Found | None:
    """A converted model, a training run (its latest checkpoint), or one checkpoint of a run; None when it is none of them.

    Raises InputError for a run without a whole checkpoint.
    """
    directory = Path(directory).absolute()
    if (directory / CONFIG).is_file():
        if (directory / RUN).is_dir():
            steps = [int(p.name) for p in (directory / RUN).iterdir() if p.name.isdigit()]
            if not steps:
                raise InputError(
                    f"{directory / RUN}: holds no whole checkpoint yet; wait for the run's first save"
                )
            return Found(directory, directory / RUN / str(max(steps)))
        return Found(directory, directory / PARAMS)
    home = directory.parent.parent
    if directory.name.isdigit() and directory.parent.name == RUN and (home / CONFIG).is_file():
        return Found(home, directory)
    return None


class OrbaxSource:
    """Weights that lie in one Orbax directory per group below `params`. Strict like the safetensors reader."""

    def __init__(self, params: Path, config: ModelConfig):
        self._path = Path(params).absolute()
        layers = sum(1 for _ in self._path.glob("layer_*"))
        if layers < config.num_layers:  # before anything is built for thousands of layers
            raise InputError(
                f"{self._path}: holds {layers} layers, {CONFIG} names {config.num_layers}; convert the checkpoint again"
            )
        self._checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            held = {
                f"{group}/{name}": tuple(leaf.shape)
                for group in groups(config)
                for name, leaf in flatten_dict(self._tree(group), sep="/").items()
            }
        except (FileNotFoundError, ValueError, AttributeError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._path}: not a whole Orbax checkpoint ({error}); convert it again"
            ) from None
        want = expected_shapes(config)
        if held != want:
            wrong = sorted(set(held.items()) ^ set(want.items()))
            raise InputError(
                f"{self._path}: {len(wrong)} parameters differ from what {CONFIG} implies, first "
                f"{wrong[0][0]} {wrong[0][1]}; convert the checkpoint again"
            )

    @property
    def stored_dtype(self) -> str:
        """The dtype that the embedding, and with it practically everything else, is stored in."""
        return jax.tree.leaves(self._tree("embed"))[0].dtype.name

    def read(self, group: str, dtype: Any) -> dict:
        restore_args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype), self._tree(group)
        )
        return self._checkpointer.restore(
            self._path / group, args=ocp.args.PyTreeRestore(restore_args=restore_args)
        )

    def _tree(self, group: str) -> dict:
        return self._checkpointer.metadata(self._path / group).item_metadata.tree
