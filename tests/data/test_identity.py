"""Other data is noticed, and named."""

from __future__ import annotations

import numpy as np
import pytest

from sysout_jax.data import identity as module
from sysout_jax.data.identity import check_identity, identity
from sysout_jax.errors import InputError


@pytest.fixture
def data(tmp_path):
    for split, size in (("train", 5000), ("val", 700)):
        tokens = np.random.default_rng(size).integers(0, 60, size, np.uint16)
        tokens.tofile(tmp_path / f"{split}.bin")
    return tmp_path


def change(path, at, to=b"\xff"):
    with path.open("r+b") as file:
        file.seek(at)
        file.write(to)


def test_the_same_data_at_another_place(data, tmp_path_factory):
    written = identity(data)
    other = tmp_path_factory.mktemp("other")
    for split in ("train", "val"):
        (other / f"{split}.bin").write_bytes((data / f"{split}.bin").read_bytes())
    check_identity(other, identity(other), written)
    assert written["val.bin"]["tokens"] == 700


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("at", [0, 701, 1399])
def test_one_changed_byte_in_a_file_that_is_hashed_whole(data, name, at):
    written = identity(data)
    change(data / name, at)
    with pytest.raises(InputError, match=rf"{name}: the run was trained on .* these are others"):
        check_identity(data, identity(data), written)


def test_another_length_is_told(data):
    written = identity(data)
    np.zeros(4999, np.uint16).tofile(data / "train.bin")
    with pytest.raises(
        InputError, match="train.bin: the run was trained on 5,000 tokens, these are 4,999"
    ):
        check_identity(data, identity(data), written)


def test_large_files_by_parts(data, monkeypatch):
    """Head, tail and every stretch longer than the distance of two parts; the time does not grow with the file."""
    monkeypatch.setattr(module, "WHOLE", 1000)
    monkeypatch.setattr(module, "PARTS", 20)
    monkeypatch.setattr(module, "PART", 64)
    written = identity(data)
    distance = (10_000 - 64) // 19 + 1
    whole = (data / "train.bin").read_bytes()
    for at, length in ((0, 1), (9999, 1), (4321, distance), (100, distance)):
        change(data / "train.bin", at, b"\xff" * length)
        with pytest.raises(InputError, match="train.bin"):
            check_identity(data, identity(data), written)
        (data / "train.bin").write_bytes(whole)
    check_identity(data, identity(data), written)
