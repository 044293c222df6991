"""A seal notices every damage to the files below it, and says which file."""

from __future__ import annotations

import os
import shutil

import pytest

from sysout_jax.storage import seal
from sysout_jax.storage.seal import Damaged, check_seal, write_seal


@pytest.fixture
def sealed(tmp_path, monkeypatch):
    """One small file, and one that is read only when asked."""
    monkeypatch.setattr(seal, "BLOCK", 64)
    for name, size in (("a/small", 20), ("a/b/large", 500)):
        path = tmp_path / "it" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    write_seal(tmp_path / "it")
    return tmp_path / "it"


def test_whole(sealed):
    (sealed / "beside").write_text("not part of it")
    check_seal(sealed)
    check_seal(sealed, contents=True)
    check_seal(shutil.copytree(sealed, sealed.parent / "copy"), contents=True)


@pytest.mark.parametrize("name", ["a/small", "a/b/large", seal.FILE])
@pytest.mark.parametrize("change", ["gone", "cut", "longer", "directory", "empty"])
def test_missing_cut_and_grown_files(sealed, name, change):
    path = sealed / name
    content = path.read_bytes()
    path.unlink()
    if change == "directory":
        path.mkdir()
    elif change != "gone":
        path.write_bytes({"cut": content[:-2], "longer": content + b"x", "empty": b""}[change])
    with pytest.raises(Damaged, match=name):
        check_seal(sealed)


@pytest.mark.parametrize("name", ["a/small", seal.FILE])
def test_every_flipped_bit_in_a_small_file(sealed, name):
    content = (sealed / name).read_bytes()
    for bit in range(8 * (len(content) - 1)):  # all but the seal's line end
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (sealed / name).write_bytes(flipped)
        with pytest.raises(Damaged):
            check_seal(sealed)


def test_a_flipped_bit_in_a_large_file_when_asked(sealed):
    path = sealed / "a/b/large"
    content = bytearray(path.read_bytes())
    content[321] ^= 4
    path.write_bytes(content)
    check_seal(sealed)
    with pytest.raises(Damaged, match="a/b/large has other content"):
        check_seal(sealed, contents=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_no_damage(sealed):
    (sealed / "a/small").chmod(0)
    with pytest.raises(PermissionError):
        check_seal(sealed)
