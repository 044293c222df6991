"""Hugging Face directories: config.json, safetensors, and one of several kinds of tokenizers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from sysout_jax.checkpoints.formats.format import Format, Opened
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.checkpoints.formats.hf_tokenizer import MERGES, PIECES, read_hf_tokenizer
from sysout_jax.checkpoints.formats.safetensors import SafetensorsSource
from sysout_jax.data.tokenizers import read_bos_id
from sysout_jax.storage.serialise import read_json_object

CONFIG = "config.json"
#: Files of a hub repository that a model may need.
FETCHED = ["*.json", "model*.safetensors", MERGES, PIECES]


def open_hugging_face(path: Path, accept: Collection[str]) -> Opened:
    file = path / CONFIG
    fields = read_json_object(file, "download it again")
    layout, config, accepted = read_config(fields, str(file), accept)
    bos_id = read_bos_id(fields, config.vocab_size, str(file))
    source = SafetensorsSource(path, layout, config)
    tokenizer = read_hf_tokenizer(path, bos_id, fields.get("model_type"))
    if tokenizer and tokenizer.bos_id != bos_id:
        bos_id = tokenizer.bos_id = read_bos_id(
            {"bos_token_id": tokenizer.bos_id}, config.vocab_size, str(path)
        )
    return Opened(config, source, bos_id, tokenizer, accepted)


FORMAT = Format(
    f"a Hugging Face directory ({CONFIG} and safetensors)",
    lambda path: (path / CONFIG).is_file(),
    open_hugging_face,
)
