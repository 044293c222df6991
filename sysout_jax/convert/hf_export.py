"""Write models as Hugging Face directories that transformers loads with equal logits.

Names, forms and field names are the tables of the families, read the other way round.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from sysout_jax.checkpoints.narrowing import Narrowing
from sysout_jax.config import ModelConfig
from sysout_jax.convert.forms import Shape, Stored
from sysout_jax.convert.hf_config import read_config
from sysout_jax.convert.names import stored_names
from sysout_jax.convert.safetensors import SafetensorsSource
from sysout_jax.convert.safetensors_writer import Announced, write_safetensors
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.families import FAMILIES, Export
from sysout_jax.storage.fingerprint import fingerprint, fingerprints
from sysout_jax.storage.staging import new_directory
from sysout_jax.weights import WeightSource, expected_shapes, groups

SHARD_BYTES = 4 * 10**9


def save_hugging_face(
    directory: Path,
    config: ModelConfig,
    source: WeightSource,
    dtype: Any,
    tokenizer: Tokenizer | None = None,
    bos_id: int | None = None,
    on_group: Callable[[], object] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json, safetensors (in several files beyond `shard_bytes`) and tokenizer.json.

    The directory appears whole or not at all; in memory there is one group of weights at a time. All of it is read again before
    this returns. Raises InputError for models that transformers has no class for, when `directory` exists and is not an empty
    directory, and when `dtype` has no numbers as large as some weights; RunError when it cannot be written.
    """
    export = check_exportable(config)
    source = Narrowing(source, config)
    theirs = export.whole(config)
    dtype = np.dtype(dtype)
    plan = _plan(theirs)
    announced = [
        Announced(stored.name, stored.form.shapes(shape, theirs)[0])
        for tensors in plan.values()
        for _, shape, stored in tensors
    ]
    with new_directory(directory) as staging:
        written: dict[str, int] = {}
        arrays = _arrays(plan, theirs, source, dtype, written, on_group)
        write_safetensors(staging, announced, arrays, dtype, shard_bytes)
        fields = {"bos_token_id": bos_id, "torch_dtype": dtype.name, **export.fields(theirs)}
        _write_json(staging / "config.json", fields)
        if tokenizer:
            tokenizer.save(staging / tokenizers.FILE)
            _write_json(staging / "tokenizer_config.json", _tokenizer_fields(config, tokenizer))
        _read_back(staging, theirs, fields, dtype, written)


def _read_back(
    directory: Path,
    config: ModelConfig,
    fields: dict[str, Any],
    dtype: np.dtype,
    written: Mapping[str, int],
) -> None:
    """OSError when what has just been written is not what is read."""
    try:
        layout, read, _ = read_config(fields, "config.json")
        if read != config:
            raise InputError("config.json reads as another config")
        source = SafetensorsSource(directory, layout, config)
        for group in groups(config):
            for path, mark in fingerprints({group: source.read(group, dtype)}).items():
                if mark != written[path]:
                    raise InputError(f"{path} holds other numbers")
    except InputError as error:
        raise OSError(f"read again, it is not what was written: {error}") from None


def check_exportable(config: ModelConfig) -> Export:
    """How the model is written; InputError for models that transformers has no class for."""
    export = FAMILIES[config.family].export
    if export is None:
        raise InputError(
            f"models of family {config.family} are not written for transformers; use --format orbax"
        )
    if config.attention != "default":
        raise InputError(
            f"attention {config.attention!r} has no class in transformers, which would compute plain softmax attention; "
            "expected a model with default attention, use --format orbax"
        )
    export.fields(export.whole(config))
    return export


def _tokenizer_fields(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_id is not None:
        fields["bos_token"] = tokenizer.backend.id_to_token(tokenizer.bos_id)
    return fields


class _Planned(NamedTuple):
    """One tensor of the export: where it is read, and under which name and in which form it is written."""

    path: str
    shape: Shape
    stored: Stored


def _plan(config: ModelConfig) -> dict[str, list[_Planned]]:
    """The tensors of each group."""
    shapes = expected_shapes(config)
    stored = stored_names(config.family, shapes)
    return {
        group: [
            _Planned(path, shape, stored[path])
            for path, shape in shapes.items()
            if path.startswith(group + "/")
        ]
        for group in groups(config)
    }


def _arrays(
    plan: dict[str, list[_Planned]],
    config: ModelConfig,
    source: WeightSource,
    dtype: np.dtype,
    written: dict[str, int],
    on_group: Callable[[], object] | None,
) -> Iterator[np.ndarray]:
    """The tensors of the plan in their form; biases that the model does not have are zero. Their checksums go into `written`."""
    for group, tensors in plan.items():
        held = flatten_dict({group: source.read(group, dtype)}, sep="/")
        for path, shape, stored in tensors:
            array = np.asarray(held[path]) if path in held else np.zeros(shape, dtype)
            written[path] = fingerprint(array)
            yield stored.form.theirs(array, config)
        if on_group:
            on_group()


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")
