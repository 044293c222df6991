"""Bad checkpoints as a user meets them, through the command: one line, status 2, nothing written, at once and in little memory."""

from __future__ import annotations

import json
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.convert.command import everything_below, run_here
from tests.convert.gguf_writer import write_gguf
from tests.limits import memory_below, within
from tests.parity_cases import FIXTURES

SECONDS = 1.0  # of the processor, so that a busy machine changes nothing
_TEXT, _UINT16 = 8, 2


def _text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def _key(name: bytes, kind: int, value: bytes) -> bytes:
    return _text(name) + struct.pack("<I", kind) + value


def _tensor(dim: int = 32, kind: int = 0, offset: int = 0) -> bytes:
    """Of 41 bytes."""
    return _text(b"a tensor.") + struct.pack("<IQIQ", 1, dim, kind, offset)


def _file(
    *keys: bytes, tensor: bytes = b"", keys_claimed: int | None = None
) -> Callable[[Path], Path]:
    """A header alone."""
    claimed = len(keys) if keys_claimed is None else keys_claimed
    head = b"GGUF" + struct.pack("<IQQ", 3, bool(tensor), claimed)

    def write(directory: Path) -> Path:
        path = directory / "m-00001-of-00003.gguf"
        path.write_bytes(head + b"".join(keys) + tensor)
        return path

    return write


def _model(change: dict[str, np.ndarray | None], **keys) -> Callable[[Path], Path]:
    """A whole model file, its tensors changed as told."""

    def changed(tensors):
        return {name: w for name, w in (tensors | change).items() if w is not None}

    def write(directory: Path) -> Path:
        path = directory / "m.gguf"
        write_gguf(FIXTURES / "llama-mha", path, change=changed, keys=keys)
        return path

    return write


def _without_shards(directory: Path) -> Path:
    """Of 163 shards that the index names one is there."""
    model = Path(shutil.copytree(FIXTURES / "llama-gqa-sharded", directory / "model"))
    for shard in model.glob("*.safetensors"):
        shard.unlink()
    names = [f"model-{i:05d}-of-00163.safetensors" for i in range(1, 164)]
    (model / names[0]).write_bytes(b"")
    weight_map = {f"model.layers.{i}.input_layernorm.weight": name for i, name in enumerate(names)}
    index = json.dumps({"weight_map": weight_map})
    (model / "model.safetensors.index.json").write_text(index)
    return model


_ARCHITECTURE = _key(b"general.architecture", _TEXT, _text(b"mamba"))
_SPLIT = [_key(f"split.{key}".encode(), _UINT16, struct.pack("<H", n)) for key, n in (("no", 0), ("count", 3))]  # fmt: skip
_TOKENS = {"add_tokenizer_model": "llama", "add_token_list": ["a", "b", "c"]}
#: How each is made, and what the line says.
BAD = {
    "65 bytes that claim a tensor": (_file(tensor=_tensor(2**20)), "larger than the file"),
    "a dim of 2^42 + 1": (_file(tensor=_tensor(2**42 + 1)), "larger than the file"),
    "2^60 keys": (_file(keys_claimed=2**60), "keys, more than its"),
    "an unknown type": (_file(tensor=_tensor(kind=99)), "type 99, which is unknown"),
    "an offset past the end": (
        _file(tensor=_tensor(offset=2**40) + bytes(4096)),
        "leads past its end",
    ),
    "a string of 2^64 - 1 bytes": (
        _file(_key(b"k", _TEXT, struct.pack("<Q", 2**64 - 1))),
        "leads past its end",
    ),
    "scores that are words": (
        _model({}, **_TOKENS, add_token_scores=["x", "y", "z"]),
        "scores is not one number per token; put the model's tokenizer.json",
    ),
    "parts that are missing": (
        _file(*_SPLIT),
        "2 of 3 parts are not there, first m-00002-of-00003.gguf",
    ),
    "an unknown architecture": (_file(_ARCHITECTURE), "architecture 'mamba' is unknown"),
    "an unmapped tensor": (
        _model({"blk.0.unheard_of.weight": np.zeros(4)}),
        "unexpected tensors: blk.0.unheard_of.weight",
    ),
    "a missing tensor": (
        _model({"blk.0.attn_q.weight": None}),
        "missing tensors: blk.0.attn_q.weight",
    ),
    "shards that are missing": (
        _without_shards,
        r"162 file\(s\) that are not there: model-00002-of-00163.safetensors, .* and \d+ more",
    ),
}


def test_the_smallest_has_65_bytes(tmp_path):
    assert BAD["65 bytes that claim a tensor"][0](tmp_path).stat().st_size == 65


@pytest.mark.parametrize("name", BAD)
def test_one_line_at_once(name, tmp_path, monkeypatch, capfd):
    write, says = BAD[name]
    src = write(tmp_path)
    before = everything_below(tmp_path)
    flags = ("--src", src, "--out", tmp_path / "out")
    with memory_below():
        assert run_here(monkeypatch, *flags) == 2
    first = capfd.readouterr()
    with within():
        start = time.process_time()
        assert run_here(monkeypatch, *flags) == 2
        assert time.process_time() - start < SECONDS
    assert capfd.readouterr() == first and first.out == ""
    assert first.err.startswith("error: ") and first.err.count("\n") == 1
    assert str(src) in first.err and re.search(says, first.err), first.err
    assert everything_below(tmp_path) == before
