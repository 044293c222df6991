"""llama2.c's model files (`.bin`): a header of seven integers, then float32 tensors in a fixed order.

Version 0 is the original layout, without a magic number and with rotary tables that run.c no longer reads; version 1 begins with
"ak42" and a header of 256 bytes. Version 2 holds int8 weights and is refused. Norm epsilon and rotary base are constants of run.c.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sysout_jax.checkpoints.formats import llama2c_tokenizer
from sysout_jax.checkpoints.formats.foreign import ForeignSource, Held
from sysout_jax.checkpoints.formats.format import Format, Opened, tokenizer_beside
from sysout_jax.checkpoints.formats.llama2c_tokenizer import read_tokenizer_bin
from sysout_jax.checks import check
from sysout_jax.config import RULES
from sysout_jax.errors import InputError, RunError
from sysout_jax.families.forms import PAIRED_LINEAR, Shape, Stored, linear
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models.layers import rotary_frequencies

#: Meta's own names, in which llama2.c's files are described. Its rotary positions turn neighbouring pairs.
NAMES: dict[str, Stored] = {
    "embed/embedding": Stored("tok_embeddings.weight"),
    "layer_{l}/attn_norm/scale": Stored("layers.{l}.attention_norm.weight"),
    "layer_{l}/attn/q_proj/kernel": Stored("layers.{l}.attention.wq.weight", PAIRED_LINEAR),
    "layer_{l}/attn/k_proj/kernel": Stored("layers.{l}.attention.wk.weight", PAIRED_LINEAR),
    "layer_{l}/attn/v_proj/kernel": linear("layers.{l}.attention.wv.weight"),
    "layer_{l}/attn/o_proj/kernel": linear("layers.{l}.attention.wo.weight"),
    "layer_{l}/mlp_norm/scale": Stored("layers.{l}.ffn_norm.weight"),
    "layer_{l}/mlp/gate_proj/kernel": linear("layers.{l}.feed_forward.w1.weight"),
    "layer_{l}/mlp/down_proj/kernel": linear("layers.{l}.feed_forward.w2.weight"),
    "layer_{l}/mlp/up_proj/kernel": linear("layers.{l}.feed_forward.w3.weight"),
    "final_norm/scale": Stored("norm.weight"),
    "lm_head/kernel": linear("output.weight"),
}
MAGIC = struct.pack("<I", 0x616B3432)
BOS_ID = 1  # sentencepiece's, which run.c puts before every prompt
_FLOAT = np.dtype("<f4")
_HEADER, _HEADER_BYTES_V1 = struct.Struct("<7i"), 256
#: The header's names ← ours, in its order.
_FIELDS = {
    "dim": "d_model",
    "hidden_dim": "d_ff",
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "n_kv_heads": "num_kv_heads",
    "vocab_size": "vocab_size",
    "seq_len": "context_length",
}
ANGLES = 1 << 16  # of the rotary tables that are checked at once
_REAL, _IMAG = "freq_cis_real", "freq_cis_imag"

# The files' order of tensors, in Meta's names. What has an {l} is there for all layers before the next begins.
_ATTENTION = [f"layers.{{l}}.attention.{name}.weight" for name in ("wq", "wk", "wv", "wo")]
_MLP = [f"layers.{{l}}.feed_forward.{name}.weight" for name in ("w1", "w2", "w3")]
_NORM_1, _NORM_2 = "layers.{l}.attention_norm.weight", "layers.{l}.ffn_norm.weight"
_EMBED, _NORM, _HEAD = "tok_embeddings.weight", "norm.weight", "output.weight"
ORDER = {
    0: [_EMBED, _NORM_1, *_ATTENTION, _NORM_2, *_MLP, _NORM, _REAL, _IMAG, _HEAD],
    1: [_NORM_1, _NORM_2, _NORM, _EMBED, *_ATTENTION, *_MLP, _HEAD],
}


class _Section(NamedTuple):
    start: int
    shape: Shape


class Llama2cSource(ForeignSource):
    """Weights in a llama2.c file, read tensor by tensor."""

    def __init__(self, path: Path, config: LlamaConfig, sections: dict[str, _Section]):
        self._sections = sections
        held = {name: Held(section.shape, "float32") for name, section in sections.items()}
        super().__init__(path, NAMES, config, held)

    def _tensor(self, name: str) -> np.ndarray:
        return _read(self.path, self._sections[name])


def is_llama2c(path: Path) -> bool:
    """By its magic number, or by name: version 0 has none."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return file.read(len(MAGIC)) == MAGIC or path.suffix == ".bin"


def open_llama2c(path: Path) -> tuple[LlamaConfig, Llama2cSource]:
    """Config and weights of a llama2.c model; InputError for what is not one, or is not whole."""
    with open(path, "rb") as file:
        header = file.read(_HEADER_BYTES_V1)
    version, start, fields, shared = _parse(path, header)
    try:
        sizes: dict[str, Any] = {
            ours: check(theirs, fields[theirs], RULES[ours]) for theirs, ours in _FIELDS.items()
        }
        if fields["dim"] % fields["n_heads"]:
            raise InputError(f"dim {fields['dim']} is no multiple of n_heads {fields['n_heads']}")
        config = LlamaConfig(
            **sizes,
            head_dim=fields["dim"] // fields["n_heads"],
            tied_embeddings=shared,
        )
    except InputError as error:
        raise InputError(
            f"{path}: not a llama2.c model ({error}; its header reads {fields}); expected a file that export.py wrote"
        ) from None
    shapes = _shapes(config)
    length = start + _FLOAT.itemsize * _count(config, ORDER[version], shapes)
    size = path.stat().st_size
    if size != length:
        raise InputError(
            f"{path}: holds {size:,} bytes, its header ({fields}) implies {length:,}; copy or download it again"
        )
    sections = {}
    for generic in _present(config, ORDER[version]):
        for l in range(config.num_layers) if "{l}" in generic else (0,):
            sections[generic.format(l=l)] = _Section(start, shapes[generic])
            start += _FLOAT.itemsize * math.prod(shapes[generic])
    if version == 0:
        _check_rotary(path, config, sections.pop(_REAL), sections.pop(_IMAG))
    return config, Llama2cSource(path, config, sections)


def _parse(path: Path, header: bytes) -> tuple[int, int, dict[str, int], bool]:
    """Version, where the tensors begin, the seven integers, and whether the classifier is the embedding."""
    v1 = header.startswith(MAGIC)
    if len(header) < (_HEADER_BYTES_V1 if v1 else _HEADER.size):
        raise InputError(
            f"{path}: ends within its header; expected a llama2.c model, copy or download it again"
        )
    if not v1:
        fields = dict(zip(_FIELDS, _HEADER.unpack_from(header), strict=True))
        shared = fields["vocab_size"] > 0  # the sign is the flag
        return 0, _HEADER.size, fields | {"vocab_size": abs(fields["vocab_size"])}, shared
    (version,) = struct.unpack_from("<i", header, 4)
    if version != 1:
        what = "int8 weights" if version == 2 else "an unknown layout"
        raise InputError(
            f"{path}: llama2.c version {version} ({what}) is not read; export it again as version 1 (float32)"
        )
    fields = dict(zip(_FIELDS, _HEADER.unpack_from(header, 8), strict=True))
    return 1, _HEADER_BYTES_V1, fields, bool(header[8 + _HEADER.size])


def _shapes(config: LlamaConfig) -> dict[str, Shape]:
    """As they lie in the file: matrices are (out, in)."""
    D, F, V = config.d_model, config.d_ff, config.vocab_size
    Q, KV = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    wq, wk, wv, wo = _ATTENTION
    w1, w2, w3 = _MLP
    table = (config.context_length, config.head_dim // 2)
    return {
        _EMBED: (V, D),
        _HEAD: (V, D),
        _NORM_1: (D,),
        _NORM_2: (D,),
        _NORM: (D,),
        wq: (Q, D),
        wk: (KV, D),
        wv: (KV, D),
        wo: (D, Q),
        w1: (F, D),
        w2: (D, F),
        w3: (F, D),
        _REAL: table,
        _IMAG: table,
    }


def _present(config: LlamaConfig, order: list[str]) -> list[str]:
    return [name for name in order if name != _HEAD or not config.tied_embeddings]


def _count(config: LlamaConfig, order: list[str], shapes: dict[str, Shape]) -> int:
    """Numbers in the file, without building anything for as many layers as the header claims."""
    return sum(
        math.prod(shapes[name]) * (config.num_layers if "{l}" in name else 1)
        for name in _present(config, order)
    )


def _check_rotary(path: Path, config: LlamaConfig, real: _Section, imag: _Section) -> None:
    """The tables of version 0 must be those that run.c computes; other bases or scalings have no field in the header."""
    freqs = rotary_frequencies(config.head_dim, config.rope_theta, None).astype(np.float64)
    rows = max(ANGLES // len(freqs), 1)
    for first in range(0, config.context_length, rows):
        positions = np.arange(first, min(first + rows, config.context_length))
        angle_TxHalf = positions[:, None] * freqs[None, :]
        for section, want in ((real, np.cos(angle_TxHalf)), (imag, np.sin(angle_TxHalf))):
            start = section.start + first * len(freqs) * _FLOAT.itemsize
            if not np.allclose(_read(path, _Section(start, want.shape)), want, atol=1e-2):
                raise InputError(
                    f"{path}: its rotary tables are not those of base {config.rope_theta:g}; expected a file that "
                    "export.py wrote for run.c, other rotary settings need a Hugging Face directory"
                )


def _read(path: Path, section: _Section) -> np.ndarray:
    """RunError when the file is no longer what it was when it was opened."""
    count = math.prod(section.shape)
    try:
        numbers = np.fromfile(path, _FLOAT, count, offset=section.start)
    except OSError as error:
        raise RunError(f"{path}: can no longer be read ({error.strerror})") from None
    if len(numbers) != count:
        raise RunError(f"{path}: ends within a tensor; copy or download it again")
    return numbers.reshape(section.shape)


def _open(path: Path, accept: Collection[str]) -> Opened:
    config, source = open_llama2c(path)
    tokenizer = tokenizer_beside(path.parent, BOS_ID)
    pieces = path.parent / llama2c_tokenizer.FILE
    if tokenizer is None and os.path.lexists(pieces):
        tokenizer = read_tokenizer_bin(pieces, config.vocab_size, BOS_ID)
    return Opened(config, source, BOS_ID, tokenizer)


FORMAT = Format("a llama2.c model (.bin)", is_llama2c, _open)
