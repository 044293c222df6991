"""Directories of any name are open to libraries that take paths for patterns and URLs."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from sysout_jax.errors import InputError
from sysout_jax.storage import held
from sysout_jax.storage.held import Held, PlainDirectory, check_name

MISREAD = ["a[b]", "x*y", "q?", "b\\c", "end\\", "gs:", "\udcff"]
PLAIN = ["plain", "sp ace", "ünï 漢", "h#h", "p%20", "a]", "~", "a:b", "{a}"]


@pytest.mark.parametrize("name", MISREAD)
def test_a_misread_name_gets_another(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "file").write_text("here")
    plain = PlainDirectory(tmp_path / name)
    assert name not in str(plain.path)
    assert (plain.path / "file").read_text() == "here"


@pytest.mark.parametrize("name", PLAIN)
def test_other_names_stay(tmp_path, name):
    (tmp_path / name).mkdir()
    assert PlainDirectory(tmp_path / name).path == tmp_path / name


def test_mounts_that_look_like_a_protocol_are_misread():
    assert all(held._is_misread(Path(f"/{name}/data")) for name in ("gs", "s3", "az", "hf"))
    assert not held._is_misread(Path("/data/gs/x"))


def test_refused_where_descriptors_have_no_names(tmp_path, monkeypatch):
    monkeypatch.setattr(held, "DESCRIPTORS", tmp_path / "none")
    check_name(tmp_path / "plain")
    with pytest.raises(InputError, match=r"a\[b\].*name a directory without"):
        check_name(tmp_path / "a[b]")


def test_closed_with_the_last_reference(tmp_path):
    held = Held(os.open(tmp_path, os.O_RDONLY))
    descriptor = held.descriptor
    os.fstat(descriptor)
    del held
    gc.collect()
    with pytest.raises(OSError):
        os.fstat(descriptor)
