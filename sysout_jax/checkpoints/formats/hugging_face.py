"""Hugging Face directories: config.json, safetensors, and one of several kinds of tokenizers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sysout_jax.checkpoints.formats.format import Format, Opened
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checkpoints.formats.hf_tokenizer import MERGES, PIECES, read_hf_tokenizer
from sysout_jax.checkpoints.formats.safetensors import INDEX, SINGLE, SafetensorsSource
from sysout_jax.checks import shown
from sysout_jax.data.tokenizers import read_bos_id
from sysout_jax.printable import some
from sysout_jax.storage.serialise import read_json_object

CONFIG = "config.json"
#: What peft calls the files of an adapter.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
#: Files of a hub repository that a model may need.
FETCHED = ["*.json", "model*.safetensors", MERGES, PIECES]


def open_hugging_face(path: Path, accept: Collection[str]) -> Opened:
    file = path / CONFIG
    fields = read_json_object(file, "download it again")
    layout, config, accepted = read_config(fields, str(file), accept)
    bos_id = read_bos_id(fields, config.vocab_size, str(file))
    source = SafetensorsSource(path, layout, config)
    untied = config.tied_embeddings and source.has_other_head()
    if untied:  # as transformers does, too
        config = dataclasses.replace(config, tied_embeddings=False)
        source = SafetensorsSource(path, layout, config)
    tokenizer = read_hf_tokenizer(path, bos_id, fields.get("model_type"))
    if tokenizer and tokenizer.bos_id != bos_id:
        bos_id = tokenizer.bos_id = read_bos_id(
            {"bos_token_id": tokenizer.bos_id}, config.vocab_size, str(path)
        )
    notes = [*_ids_beyond(fields, config.vocab_size), *_packing(fields, source), *_unread(path)]
    if untied:
        notes.append(
            f"{CONFIG} says that the head is the embedding (tie_word_embeddings), but the stored head differs from it: "
            "that head is computed with, as transformers does."
        )
    return Opened(config, source, bos_id, tokenizer, accepted, tuple(notes))


def _ids_beyond(fields: Mapping[str, Any], vocab_size: int) -> Iterator[str]:
    """Ids that would open or end a text and that the model has no embedding for. Of a model without embeddings for what was added, they are no damage."""
    for name in ("bos_token_id", "eos_token_id"):
        given = fields.get(name)
        ids = given if isinstance(given, list) else [given]
        if beyond := [each for each in ids if type(each) is int and each >= vocab_size]:
            yield (
                f"{CONFIG} gives {some(map(shown, beyond))} as {name}, beyond the vocabulary of {vocab_size:,}: taken for none."
            )


def _packing(fields: Mapping[str, Any], source: SafetensorsSource) -> Iterator[str]:
    """Weights that are stored plainly beside a setting that says otherwise: unpacked since, or to be packed when they are loaded."""
    setting = fields.get("quantization_config")
    if isinstance(setting, Mapping):
        yield (
            f"{CONFIG} says that weights are quantised ({shown(setting.get('quant_method'))}); the stored ones are "
            f"{source.stored_dtype} and are computed with as they are."
        )


def _unread(path: Path) -> Iterator[str]:
    """Weights that lie beside those that are read."""
    if (path / SINGLE).is_file() and os.path.lexists(path / INDEX):
        yield f"{SINGLE} was read, as transformers does; {INDEX} and the files that it names were not."
    if adapters := [name for name in ADAPTERS if os.path.lexists(path / name)]:
        yield f"An adapter lies beside the weights ({some(adapters)}) and is not computed with; merge it into them to see what it does."


FORMAT = Format(
    f"a Hugging Face directory ({CONFIG} and safetensors)",
    lambda path: (path / CONFIG).is_file(),
    open_hugging_face,
)
