"""GGUF models: config and weights, with what the public converters changed undone as the family's `Gguf` says.

Everything in the architecture's namespace is computed with, known to change nothing, or refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sysout_jax.checkpoints.formats.foreign import ForeignSource, Held
from sysout_jax.checkpoints.formats.format import Format, Opened, tokenizer_beside
from sysout_jax.checkpoints.formats.gguf_tokenizer import read_gguf_tokenizer
from sysout_jax.checks import shown
from sysout_jax.config import ModelConfig
from sysout_jax.containers.gguf_file import PLAIN, UNREADABLE, GgufFile, is_gguf
from sysout_jax.errors import InputError
from sysout_jax.families import ARCHITECTURES
from sysout_jax.families.fields import Fields, naming
from sysout_jax.families.forms import Stored
from sysout_jax.families.gguf_reading import EMBEDDING, ROPE_TENSORS

#: Keys of an architecture that say nothing about its mathematics.
_HARMLESS = frozenset({"vocab_size", "rope.scaling.finetuned"})


class GgufSource(ForeignSource):
    """Weights in a GGUF file, dequantised tensor by tensor."""

    def __init__(
        self,
        file: GgufFile,
        names: Mapping[str, Stored],
        config: ModelConfig,
        used: frozenset[str],
    ):
        self._file = file
        held = {
            name: Held(tensor.shape, _held_dtype(tensor.type))
            for name, tensor in file.tensors.items()
            if name not in used
        }
        super().__init__(file.path, names, config, held)

    @property
    def stored_as(self) -> dict[str, str]:
        """How each kind of parameter (`mlp/down_proj/kernel`) is stored, over all layers."""
        kinds: dict[str, list[str]] = {}
        for ours, stored in self._stored.items():
            kind = ours.partition("/")[2] if ours.startswith("layer_") else ours
            kinds.setdefault(kind, []).append(
                self._file.tensors[stored.name.replace("{e}", "0")].type.name
            )
        return {kind: ", ".join(dict.fromkeys(names)) for kind, names in kinds.items()}

    def _tensor(self, name: str) -> np.ndarray:
        return self._file.read(name)


def _held_dtype(kind: Any) -> str:
    if kind in UNREADABLE:
        return kind.name
    return PLAIN[kind].name if kind in PLAIN else "float32"


class OpenedGguf(NamedTuple):
    """A GGUF model; `fields` are all of the file's, `accepted` the unknown ones that the user accepts."""

    config: ModelConfig
    source: GgufSource
    fields: dict[str, Any]
    accepted: tuple[str, ...]


def open_gguf(path: Path, accept: Collection[str] = ()) -> OpenedGguf:
    """Open it; InputError for everything that is wrong with it."""
    file = GgufFile(path)
    name = file.fields.get("general.architecture")
    families = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if families is None:
        raise InputError(
            f"{path}: architecture {shown(name)} is unknown; expected one of {', '.join(ARCHITECTURES)}"
        )
    if EMBEDDING not in file.tensors:
        raise InputError(f"{path}: holds no {EMBEDDING}; expected a whole language model")
    fields = _fields(file, str(name), accept)
    stores = [gguf for gguf in families.values() if gguf.when(fields)][-1]
    with naming(path):
        config = stores.read(file, fields)
        fields.check_nothing_left()
    source = GgufSource(file, stores.names, config, ROPE_TENSORS)
    return OpenedGguf(config, source, file.fields, tuple(fields.accepted))


def _fields(file: GgufFile, architecture: str, accept: Collection[str]) -> Fields:
    """The keys in the architecture's namespace; one value per layer is one value where all are equal."""
    prefix = architecture + "."
    named = {
        key.removeprefix(prefix): value
        for key, value in file.fields.items()
        if key.startswith(prefix)
    }
    for key, value in named.items():
        if isinstance(value, np.ndarray) and len(value) and (value == value[0]).all():
            named[key] = value[0].item()
    kept = {key: value for key, value in named.items() if key not in _HARMLESS}
    return Fields(kept, prefix, accept)


def _open(path: Path, accept: Collection[str]) -> Opened:
    config, source, fields, accepted = open_gguf(path, accept)
    inside = read_gguf_tokenizer(path, fields)
    bos_id = inside.bos_id if inside else None
    return Opened(config, source, bos_id, tokenizer_beside(path.parent, bos_id) or inside, accepted)


FORMAT = Format("a GGUF file (.gguf)", is_gguf, _open)
