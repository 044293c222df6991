"""Write models as Hugging Face directories that transformers loads with equal logits.

Names, forms and field names are the tables of the families, read the other way round.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checkpoints.formats.names import stored_names
from sysout_jax.checkpoints.formats.safetensors import SafetensorsSource
from sysout_jax.checkpoints.formats.safetensors_writer import Announced, write_safetensors
from sysout_jax.checkpoints.narrowing import Narrowing
from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.data import tokenizers
from sysout_jax.data.tokenizers import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.families import FAMILIES, Export
from sysout_jax.families.forms import Form, Shape
from sysout_jax.printable import some
from sysout_jax.storage.fingerprint import fingerprint, fingerprints
from sysout_jax.storage.serialise import read_json_object
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
    narrowing = Narrowing(source, config)
    theirs = export.whole(config)
    dtype = np.dtype(dtype)
    plan = _plan(theirs, export)
    announced = [
        Announced(tensor.name, tensor.shape) for tensors in plan.values() for tensor in tensors
    ]
    with new_directory(directory) as staging:
        written: dict[str, int] = {}
        arrays = _arrays(plan, theirs, narrowing, dtype, written, on_group)
        write_safetensors(staging, announced, arrays, dtype, shard_bytes)
        fields = {"bos_token_id": bos_id, "torch_dtype": dtype.name, **export.fields(theirs)}
        _write_json(staging / "config.json", fields)
        if tokenizer:
            tokenizer.save(staging / tokenizers.FILE)
            _write_json(staging / "tokenizer_config.json", _tokenizer_fields(config, tokenizer))
        _read_back(staging, theirs, dtype, written)
    narrowing.warn_of_damage()


def _read_back(
    directory: Path,
    config: ModelConfig,
    dtype: np.dtype,
    written: Mapping[str, int],
) -> None:
    """OSError when what has just been written is not what is read."""
    try:
        fields = read_json_object(directory / "config.json", "write it again")
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
            f"models of family {config.family} are not written for transformers; write it as an Orbax directory"
        )
    if config.attention != "default":
        raise InputError(
            f"attention {config.attention!r} has no class in transformers, which would compute plain softmax attention; "
            "expected a model with default attention, write it as an Orbax directory"
        )
    whole = export.whole(config)
    read = read_config(export.fields(whole), "config.json").config
    names = [field.name for field in dataclasses.fields(whole)]
    lost = [name for name in names if getattr(read, name, None) != getattr(whole, name)]
    if lost:
        given = some(f"{name} = {shown(getattr(whole, name))}" for name in lost)
        raise InputError(
            f"{given} cannot be said in a config.json of family {config.family}, so transformers would compute another model; "
            "write it as an Orbax directory"
        )
    return export


def _tokenizer_fields(config: ModelConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if tokenizer.bos_id is not None:
        fields["bos_token"] = tokenizer.backend.id_to_token(tokenizer.bos_id)
        fields["add_bos_token"] = tokenizer.adds_bos
    return fields


class _Part(NamedTuple):
    """A parameter of ours that fills a tensor of theirs, or a part of it; of one stored expert by expert, an expert's rows."""

    path: str
    shape: Shape
    form: Form
    rows: slice
    """Along the form's axis."""


class _Planned(NamedTuple):
    """One tensor of the export: under which name and in which shape it is written, and of which parameters it is made."""

    name: str
    shape: Shape
    parts: list[_Part]


def _plan(config: ModelConfig, export: Export) -> dict[str, list[_Planned]]:
    """The tensors of each group."""
    shapes = expected_shapes(config)
    tensors: dict[str, dict[str, _Planned]] = {group: {} for group in groups(config)}
    layout = next(iter(FAMILIES[config.family].layouts.values()))
    for path, stored in stored_names(layout.names, shapes).items():
        if stored.otherwise and export.otherwise(config):
            stored = stored.otherwise
        held = tensors[path.partition("/")[0]]
        axis, first = stored.form.axis, 0
        for name, ours in stored.parts(shapes[path], config).items():
            end = first + (ours[axis] if axis is not None else 0)
            part = _Part(path, shapes[path], stored.form, slice(first, end))
            planned = _Planned(name, stored.form.shapes(ours, config)[0], [])
            held.setdefault(name, planned).parts.append(part)
            first = end
    return {group: list(held.values()) for group, held in tensors.items()}


def _arrays(
    plan: dict[str, list[_Planned]],
    config: ModelConfig,
    source: WeightSource,
    dtype: np.dtype,
    written: dict[str, int],
    on_group: Callable[[], object] | None,
) -> Iterator[np.ndarray]:
    """The tensors of the plan in their form; biases that the model does not have are zero. Checksums of ours go into `written`."""
    for group, tensors in plan.items():
        held = flatten_dict({group: source.read(group, dtype)}, sep="/")
        for _, whole_shape, parts in tensors:
            whole = np.empty(whole_shape, dtype) if len(parts) > 1 else None
            for path, shape, form, rows in parts:
                array = np.asarray(held[path]) if path in held else np.zeros(shape, dtype)
                if rows.start == 0:
                    written[path] = fingerprint(array)
                if form.axis is not None:
                    array = array[(slice(None),) * form.axis + (rows,)]
                theirs = form.theirs(array, config)
                if whole is not None and form.slot:
                    room = form.slot(whole, config)
                    room[...] = theirs.reshape(room.shape)
            yield theirs if whole is None else whole
        if on_group:
            on_group()


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n")
