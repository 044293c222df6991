"""Indexes and headers of safetensors that lie: one line each, in bounded time and memory, and never another file's weights."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.errors import RunError
from tests.limits import memory_below, within

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def refusal(directory: Path) -> str:
    with within(), memory_below(), pytest.raises(so.InputError) as caught:
        so.load(directory)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 3000 and str(directory) in message
    return message


def weight_map(directory: Path) -> dict:
    return json.loads((directory / INDEX).read_text())["weight_map"]


def write_index(directory: Path, **fields) -> None:
    (directory / INDEX).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "file",
    [
        "../other/model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "x" * 4000,
        "x" * 10**6,
        "a\0b",
        "",
        ".",
        "..",
        "\x1b[2J",
        3,
        None,
        ["x"],
        {"a": 1},
    ],
    ids=lambda file: repr(file)[:20],
)
def test_an_index_names_only_files_of_its_directory(hf_copy, file):
    directory = hf_copy("llama-gqa-sharded")
    outside = directory.parent / "other"
    outside.mkdir()
    save_file(load_file(directory / SHARDS[0]), outside / SINGLE)
    named = weight_map(directory)
    write_index(directory, weight_map=named | {next(iter(named)): file})
    assert INDEX in refusal(directory)


@pytest.mark.parametrize("value", [None, [], {}, "x", 3, [["a", "b"]]])
def test_a_weight_map_of_another_kind(hf_copy, value):
    directory = hf_copy("llama-gqa-sharded")
    write_index(directory, weight_map=value)
    assert "weight_map is " in refusal(directory)


def test_a_tensor_in_two_shards(hf_copy):
    """The last file read used to win, whatever the index said."""
    directory = hf_copy("llama-gqa-sharded")
    first, last = (load_file(directory / SHARDS[i]) for i in (0, 2))
    name = next(iter(first))
    save_file(last | {name: first[name] + 1}, directory / SHARDS[2])
    message = refusal(directory)
    assert f"holds {name}, and so does" in message and "expected every tensor once" in message


def test_a_tensor_in_another_shard_than_the_index_says(hf_copy):
    directory = hf_copy("llama-gqa-sharded")
    named = weight_map(directory)
    name = next(name for name, file in named.items() if file == SHARDS[0])
    write_index(directory, weight_map=named | {name: SHARDS[1]})
    message = refusal(directory)
    assert f"files that do not hold them: {name} in {SHARDS[1]}" in message


def test_one_file_beside_an_index(hf_copy):
    """The one file is read, as transformers does, whatever the index says; and the model says so."""
    directory = hf_copy("llama-gqa-sharded")
    tensors = {k: v for shard in SHARDS for k, v in load_file(directory / shard).items()}
    norm = "model.norm.weight"
    save_file(tensors | {norm: tensors[norm] + 1}, directory / SINGLE)
    lm = so.load(directory)
    assert (lm.read("final_norm")["scale"] == tensors[norm] + 1).all()
    (note,) = lm.notes
    assert f"{SINGLE} was read" in note and f"{INDEX} and the files that it names were not" in note
    (directory / INDEX).write_text("not even JSON")
    assert (so.load(directory).read("final_norm")["scale"] == tensors[norm] + 1).all()
    (directory / SINGLE).unlink()
    (directory / SINGLE).symlink_to("gone")  # no file: the index is read
    assert "not readable JSON" in refusal(directory)


@pytest.mark.parity
def test_transformers_reads_the_one_file_too(hf_copy):
    transformers = pytest.importorskip("transformers")
    directory = hf_copy("llama-gqa-sharded")
    tensors = {k: v for shard in SHARDS for k, v in load_file(directory / shard).items()}
    norm = "model.norm.weight"
    changed = tensors | {norm: tensors[norm] + 1}
    save_file(changed, directory / SINGLE, {"format": "pt"})
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    np.testing.assert_array_equal(model.model.norm.weight.detach().numpy(), changed[norm])


def header(**tensors) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(shape=(1,), start=0, end=4, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 10**8) + b"{" * 10**6,
        struct.pack("<Q", 10**6) + b"[" * 10**6,
        header(a=tensor(), b=tensor()) + b"1234",
        header(a=tensor(), b=tensor(start=2, end=6)) + b"123456",
        header(a=tensor(shape=(2**62, 4))) + b"1234",
        header(a=tensor(shape=(2**64,))) + b"1234",
        header(a=tensor(shape=(-1,))) + b"1234",
        header(a=tensor(shape=(0, 2**62), end=0)),
        header(a=tensor(start=4, end=0)) + b"1234",
        header(a=tensor(dtype="F33")) + b"1234",
        header(a=tensor(dtype="\x1b[2J" * 1000)) + b"1234",
        header(**{"a\0b": tensor()}) + b"1234",
        header(**{"\x1b[2J" * 10**5: tensor()}) + b"1234",
        header(**{f"t{i}": tensor(start=4 * i, end=4 * i + 4) for i in range(20_000)}) + b"1234" * 20_000,
        header(a=[]),
        header(),
        header(__metadata__={"format": 3}),
        b'\x10\0\0\0\0\0\0\0{"a":1,"a":2}   ',
    ],
    ids=range(20),
)  # fmt: skip
def test_headers_that_lie(hf_copy, data):
    directory = hf_copy("gpt2")
    (directory / SINGLE).write_bytes(data)
    refusal(directory)


def test_a_file_that_vanishes_after_it_was_opened(hf_copy):
    directory = hf_copy("gpt2")
    lm = so.load(directory)
    (directory / SINGLE).unlink()
    with pytest.raises(RunError, match="can no longer be read"):
        so.capture(lm, np.zeros((1, 3), int), ())
