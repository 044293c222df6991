"""llama2.c headers and tokenizers that lie: named by the field, in bounded time and memory."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from sysout_jax.checkpoints.formats.llama2c import open_llama2c
from sysout_jax.checkpoints.formats.llama2c_tokenizer import read_tokenizer_bin
from sysout_jax.errors import InputError, RunError
from tests.limits import memory_below, within

NAMES = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")
SIZES = [8, 12, 1, 2, 2, 10, 16]


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("field", range(7))
def test_a_wrong_field_is_named(tmp_path, field, version):
    path = tmp_path / "model.bin"
    for value in (-(2**31), -1, 0) if NAMES[field] != "vocab_size" else (0,):
        sizes = [value if i == field else size for i, size in enumerate(SIZES)]
        header = struct.pack("<7i", *sizes)
        if version:
            header = struct.pack("<Ii", 0x616B3432, 1) + header + b"\1"
        path.write_bytes(header.ljust(4096, b"\0"))
        with pytest.raises(InputError, match=f"{NAMES[field]} is {value}; expected a whole number"):
            open_llama2c(path)


def tiny(positions: int) -> bytes:
    """A model of version 0 with one layer of two dims, and its rotary tables."""
    sizes = (2, 1, 1, 1, 1, 1, positions)
    weights = np.zeros(2 + 2 + 4 * 4 + 2 + 3 * 2 + 2, "<f4").tobytes()
    angles = np.arange(positions, dtype=np.float64)
    return (
        struct.pack("<7i", *sizes)
        + weights
        + b"".join(f(angles).astype("<f4").tobytes() for f in (np.cos, np.sin))
    )


def test_rotary_tables_are_checked_piece_by_piece(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(tiny(1 << 20))
    with memory_below(12 << 20):
        assert open_llama2c(path)[0].context_length == 1 << 20
    data = bytearray(tiny(1 << 20))
    struct.pack_into("<f", data, len(data) - 4, 7.0)
    path.write_bytes(data)
    with pytest.raises(InputError, match="rotary tables"):
        open_llama2c(path)


def test_a_file_that_changes_after_it_was_opened(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(tiny(4))
    _, source = open_llama2c(path)
    path.write_bytes(tiny(4)[:40])
    with pytest.raises(RunError, match="ends within a tensor"):
        source.read("layer_0", "float32")
    path.unlink()
    with pytest.raises(RunError, match="can no longer be read"):
        source.read("layer_0", "float32")


def pieces(*more: tuple[bytes, float]) -> bytes:
    specials = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    every = [*specials, *((b"<0x%02X>" % b, 0.0) for b in range(256)), *more]
    return struct.pack("<I", 9) + b"".join(
        struct.pack("<fI", score, len(piece)) + piece for piece, score in every
    )


def refusal(path, count: int) -> str:
    with within(), memory_below(), pytest.raises(InputError) as caught:
        read_tokenizer_bin(path, count, 1)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


def test_pieces_without_end(tmp_path):
    """Every piece is tried at every place where it may be cut: a long one takes the square of its length."""
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pieces((b"a", 0.0), (b"a" * 500_000, -1.0)))
    assert "a piece of 500,000 bytes" in refusal(path, 261)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers(tmp_path, score):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pieces((b"a", 0.0), (b"aa", score)))
    assert "score" in refusal(path, 261)


def test_lengths_beyond_the_file(tmp_path):
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(pieces() + struct.pack("<fI", 0.0, 2**32 - 1) + b"x")
    refusal(path, 260)
    path.write_bytes(pieces((b"", 0.0)))
    refusal(path, 260)


def test_a_large_file_is_not_read(tmp_path):
    path = tmp_path / "tokenizer.bin"
    with open(path, "wb") as file:
        file.truncate(1 << 31)
    assert "at most" in refusal(path, 260)
