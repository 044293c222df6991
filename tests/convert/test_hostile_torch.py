"""torch files whose zip or pickle is made to hang, to fill the memory or to mislead: one line each, in bounded time and memory."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.containers.torch_file import TorchFile
from sysout_jax.errors import InputError, RunError
from tests.convert.torch_writer import Raw, Tensor, view, write_torch
from tests.limits import memory_below, within

PICKLE, ORDER, STORAGE = "ckpt/data.pkl", "ckpt/byteorder", "ckpt/data/0"
WEIGHT = {"x": np.arange(8, dtype=np.float32)}


def refusal(path: Path) -> str:
    """Opening the file, or checking its tensors, refuses with one line."""
    with within(), pytest.raises(InputError) as caught:
        file = TorchFile(path)
        for name, tensor in file.root.items():
            file.check(name, tensor)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 1500 and str(path) in message
    return message


def rewritten(path: Path, entry: str, flags: int = 0, method: int = 0) -> Path:
    """Set the flags and the compression method of an entry, in both of its headers."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        local = archive.getinfo(entry).header_offset
    central = data.index(b"PK\x01\x02")
    while data[central + 46 : central + 46 + len(entry)] != entry.encode():
        central = data.index(b"PK\x01\x02", central + 4)
    for at in (local + 6, central + 8):
        struct.pack_into("<HH", data, at, flags, method)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("entry", [PICKLE, ORDER, STORAGE])
@pytest.mark.parametrize("flags", [1, 0x41, 0x20])
def test_encrypted_members(tmp_path, entry, flags):
    path = rewritten(write_torch(tmp_path / "x.pt", WEIGHT), entry, flags=flags)
    assert f"{entry} is encrypted, compressed or damaged" in refusal(path)


@pytest.mark.parametrize("entry", [PICKLE, ORDER, STORAGE])
@pytest.mark.parametrize("method", [8, 9, 12, 14, 93, 95, 99, 0xFFFF])
def test_members_of_other_methods(tmp_path, entry, method):
    path = rewritten(write_torch(tmp_path / "x.pt", WEIGHT), entry, method=method)
    assert f"{entry} is encrypted, compressed or damaged" in refusal(path)


@pytest.mark.parametrize("entry", [PICKLE, ORDER, STORAGE])
def test_members_that_unpack_to_much(tmp_path, entry):
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(write_torch(path, WEIGHT)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            if name != entry:
                archive.writestr(name, data, zipfile.ZIP_STORED)
        with archive.open(entry, "w") as member:
            for _ in range(300):
                member.write(bytes(2**20))
    assert path.stat().st_size < 2**22
    with memory_below():
        refusal(path)


def test_a_long_byte_order(tmp_path):
    path = write_torch(tmp_path / "x.pt", WEIGHT)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("ckpt/x", b"")
    data = path.read_bytes().replace(b"little", b"middle")
    path.write_bytes(data)
    assert "middle" in refusal(path)


@pytest.mark.parametrize("entry", [PICKLE, ORDER, STORAGE])
def test_members_that_occur_twice(tmp_path, entry):
    path = write_torch(tmp_path / "x.pt", WEIGHT)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(entry, bytes(32))
    assert f"holds {entry} twice" in refusal(path)


def test_members_that_lie_beyond_the_file(tmp_path):
    for entry in (PICKLE, STORAGE):
        path = write_torch(tmp_path / "x.pt", WEIGHT)
        data = bytearray(path.read_bytes())
        at = data.rindex(entry.encode()) - 46
        for size in (2**31, 2**32 - 2):
            struct.pack_into("<II", data, at + 20, size, size)
            path.write_bytes(data)
            refusal(path)


def test_a_million_members(tmp_path):
    """An archive's list costs some 700 bytes of memory an entry, fourteen times its own."""
    path = write_torch(tmp_path / "x.pt", WEIGHT)
    data = path.read_bytes()
    end = data.index(b"PK\x05\x06")
    entry = struct.pack("<4s24xHHHHHII", b"PK\x01\x02", 4, 0, 0, 0, 0, 0, 0)
    more = b"".join(entry + struct.pack("<I", i) for i in range(400_000))
    tail = bytearray(data[end:])
    (size,) = struct.unpack_from("<I", tail, 12)
    struct.pack_into("<I", tail, 12, size + len(more))
    path.write_bytes(data[:end] + more + tail)
    with memory_below():
        assert "at most" in refusal(path)


def number(value: int) -> bytes:
    text = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(text)]) + text


def tensor_with(shape: bytes, strides: bytes) -> Raw:
    """A tensor whose shape and strides are the given opcodes."""
    pid = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NK\x08tQ"
    return Raw(b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + b"K\x00" + shape + strides + b"tR")


@pytest.mark.parametrize("value", [1, 2**62, 2**2000], ids=["1", "2^62", "2^2000"])
def test_shapes_of_many_axes(tmp_path, value):
    """The product of 50,000 integers of 600 digits takes minutes."""
    many = b"(" + number(value) * 50_000 + b"t"
    path = write_torch(tmp_path / "x.pt", WEIGHT | {"y": tensor_with(many, b"(K\x01t")})
    assert "data.pkl is damaged" in refusal(path)


def test_a_shape_of_huge_numbers(tmp_path):
    for shape in (b"(" + number(2**2000) + b"t", b"(" + number(-(2**2000)) + b"t"):
        path = write_torch(tmp_path / "x.pt", WEIGHT | {"y": tensor_with(shape, b"(K\x01t")})
        assert "data.pkl is damaged" in refusal(path)


DIGITS = b"9" * 100_000
DOUBLING = b")q\x00" + b"".join(
    b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200)
)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"L" + DIGITS + b"L\n",
        b"I" + DIGITS + b"\n",
        b"F" + DIGITS + b"\n",
        b"\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6,
        b"\x8d" + struct.pack("<Q", 2**63) + b"x",
        b"\x8e" + struct.pack("<Q", 2**40) + b"x",
        b"\x96" + struct.pack("<Q", 2**40) + b"x",
        b"r\xff\xff\xff\xff",
        b"p9999999999\n",
        b"}(" + b"".join(number(i << 61) + b"N" for i in range(60_000)) + b"u",
        b"N" * 10**7,
        b"(" * 10**6,
        b"(" + b"N" * 3_000_000 + b"t",
        b"]" + b"q\x00h\x00a" * 700_000,
        b"c" + b"x" * 10**6 + b"\n\x1b[2J\n",
    ],
    ids=range(15),
)
def test_pickles_that_never_end(tmp_path, opcodes):
    refusal(write_torch(tmp_path / "x.pt", {"y": Raw(opcodes)}))


@pytest.mark.parametrize(
    "opcodes",
    [DOUBLING, b")" + b"\x85" * 300_000, b"]q\x00h\x00a", b"]" * 1000 + b"a" * 999],
    ids=["doubling", "deep", "in itself", "lists"],
)
def test_values_of_strange_shape_are_no_tensors(tmp_path, opcodes):
    """As settings nobody looks at them; as weights they are named by their type."""
    from sysout_jax.checkpoints.formats.nanogpt import open_nanogpt

    for where in ("model", "model_args", "config"):
        root = {"model": WEIGHT, "model_args": {"n_layer": 1}, where: {"x": Raw(opcodes)}}
        path = write_torch(tmp_path / "x.pt", root)
        with within(), pytest.raises(InputError) as caught:
            open_nanogpt(path)
        assert len(str(caught.value)) < 1000 and str(path) in str(caught.value)


def test_names_that_a_terminal_would_obey(tmp_path):
    from sysout_jax.checkpoints.formats.nanogpt import open_nanogpt

    odd = "\x1b[2J\n\u202e" + "x" * 10**6
    for root in (
        {odd: 1},
        {"model": {odd: 3}, "model_args": {}},
        {"model": {odd: Tensor(np.zeros(2, np.float32), (3,), (1,))}, "model_args": {}},
        {"model": {odd: view(np.zeros(2, np.float32))}, "model_args": {odd: ()}},
        {"model": WEIGHT, "model_args": {"n_layer": 1}, "config": {"model_type": odd}},
    ):
        path = write_torch(tmp_path / "x.pt", root)
        with within(), pytest.raises(InputError) as caught:
            open_nanogpt(path)
        assert len(str(caught.value)) < 1000 and str(caught.value).isprintable()


def test_a_file_that_vanishes_after_it_was_opened(tmp_path):
    path = write_torch(tmp_path / "x.pt", WEIGHT)
    file = TorchFile(path)
    file.check("x", file.root["x"])
    path.unlink()
    with pytest.raises(RunError, match="can no longer be read"):
        file.read(file.root["x"])
