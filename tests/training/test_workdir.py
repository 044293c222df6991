"""A run's directory belongs to one config, and a run that was killed while it made it can still have it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sysout_jax.checkpoints import checkpoint
from sysout_jax.data.prepare_task import prepare_task, source_bigrams
from sysout_jax.data.tasks import bigram_backcopy
from sysout_jax.errors import InputError, RunError
from sysout_jax.storage import staging, workspaces
from sysout_jax.training import workdir
from sysout_jax.training.config import from_dict
from sysout_jax.training.workdir import LOCK, alone_in, check, claim


@pytest.mark.parametrize("survived", [0, 1, 2])
def test_killed_between_its_files_and_claimed_again(config, tmp_path, monkeypatch, survived):
    """Killed before the last of them is in place, a temporary file left behind."""
    (config.data / "tokenizer.json").write_text("{}")
    written = []

    def write(path, content):
        if len(written) == survived:
            monkeypatch.setattr(workspaces, "_remove", lambda path: None)  # as a killed process
            with workspaces.workspace(path.parent, path.name) as work:
                (work / staging.NEW).write_bytes(content[:3])
                raise KeyboardInterrupt
        written.append(path)
        whole(path, content)

    whole = staging.write_file
    for module in (workdir, checkpoint):
        monkeypatch.setattr(module, "write_file", write)
    with pytest.raises(KeyboardInterrupt):
        claim(config, tmp_path / "run")
    monkeypatch.undo()
    claim(config, tmp_path / "run")
    assert from_dict(json.loads((tmp_path / "run/train.json").read_text())) == config
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"train.json", "model.json", "tokenizer.json", "checkpoints"} == names


def test_a_model_trained_on_windows_of_bos_knows_it(config, tmp_path):
    task = bigram_backcopy(source_bigrams(()), "te ")
    prepared = tmp_path / "task"
    prepare_task(task, {}, prepared, length=16, windows=40, val_windows=4)
    model = dataclasses.replace(config.model, vocab_size=257)
    claim(dataclasses.replace(config, data=prepared, model=model), tmp_path / "run")
    assert checkpoint.read_config(tmp_path / "run")[1] == 256
    claim(config, tmp_path / "other")
    assert checkpoint.read_config(tmp_path / "other")[1] is None


def test_another_config_and_another_directory_are_refused(config, tmp_path):
    claim(config, tmp_path / "run")
    before = (tmp_path / "run/train.json").read_bytes()
    with pytest.raises(InputError, match="seed: 0 → 1; z_loss: 0.0 → 0.1"):
        claim(dataclasses.replace(config, seed=1, z_loss=0.1), tmp_path / "run")
    assert (tmp_path / "run/train.json").read_bytes() == before
    claim(dataclasses.replace(config, steps=99), tmp_path / "run")  # a longer run is the same run
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(InputError, match="no training run"):
        claim(config, tmp_path / "notes")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train.json", "directory"),
        ("metrics.jsonl", "directory"),
        ("checkpoints", "file"),
        (".lock", "directory"),
        ("checkpoints", "dangling link"),
        ("metrics.jsonl", "dangling link"),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_something_else_under_the_name_of_a_part(config, tmp_path, name, kind, begun):
    run = tmp_path / "run"
    run.mkdir()
    if begun:
        claim(config, run)
    path = run / name
    if path.is_file():
        path.unlink()
    elif path.is_dir():
        path.rmdir()
    if kind == "directory":
        path.mkdir()
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nothing")
    before = sorted(p.name for p in run.iterdir())
    with pytest.raises(InputError, match=name) as raised:
        check(config, run)
    assert "\n" not in str(raised.value)
    assert sorted(p.name for p in run.iterdir()) == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff", b"[" * 100_000, b"null"]
)
def test_a_damaged_config_is_one_line(config, tmp_path, content):
    claim(config, tmp_path / "run")
    (tmp_path / "run/train.json").write_bytes(content)
    with pytest.raises(InputError, match="train.json") as raised:
        check(config, tmp_path / "run")
    assert "\n" not in str(raised.value)


def test_checkpoints_that_were_lost_are_no_new_run(config, tmp_path):
    claim(config, tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n')
    (tmp_path / "run/checkpoints").rmdir()
    with pytest.raises(InputError, match="checkpoints: is missing"):
        check(config, tmp_path / "run")


@pytest.mark.parametrize("left", [[], ["8.unreadable", "notes"]])
def test_nor_are_those_of_a_mount_that_is_gone(config, tmp_path, left):
    """Its directory is there and holds none: a run from the start would empty the metrics."""
    run = tmp_path / "run"
    claim(config, run)
    for name in left:
        (run / "checkpoints" / name).mkdir()
    metrics = run / "metrics.jsonl"
    metrics.write_text('{"step": 8, "loss": 3.0}\n')
    check(config, run)  # killed before the first one, of step 4, was whole
    metrics.write_text('{"step": 9, "loss": 3.0}\n')
    with pytest.raises(InputError, match="checkpoints: holds no checkpoint, .* got to step 9"):
        check(config, run)
    assert metrics.read_text() == '{"step": 9, "loss": 3.0}\n'
    (run / "checkpoints/4").mkdir()
    check(config, run)  # what that is, is seen when it is read


def test_a_full_disk_is_one_line(config, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    for module, name in ((workdir, "write_file"), (workdir, "write_config")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            with pytest.raises(RunError, match=r"run: cannot be written \(No space left"):
                claim(config, tmp_path / "run")


def test_a_file_and_a_dangling_link_are_no_workdir(config, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("file", "link", "file/below"):
        with pytest.raises(InputError, match=name), alone_in(tmp_path / name):
            check(config, tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "link", "data"}


def test_one_training_at_a_time(tmp_path):
    run = tmp_path / "run"
    with alone_in(run):
        with (
            pytest.raises(InputError, match="run: another training is at work in it"),
            alone_in(run),
        ):
            pass
        (run / "something").touch()
    with alone_in(run):
        pass


def test_the_lock_ends_with_its_process(tmp_path):
    code = f"""
import os, sys
from pathlib import Path
from sysout_jax.training.workdir import alone_in
with alone_in(Path({str(tmp_path / "run")!r})):
    print("locked", flush=True)
    sys.stdin.read()
"""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"locked\n"
    with pytest.raises(InputError, match="another training"), alone_in(tmp_path / "run"):
        pass
    process.kill()
    process.communicate()
    with alone_in(tmp_path / "run"):
        pass


def test_a_refused_run_leaves_no_directory(tmp_path):
    with pytest.raises(InputError), alone_in(tmp_path / "new/run"):
        assert (tmp_path / "new/run" / LOCK).is_file()
        raise InputError("refused")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError), alone_in(tmp_path / "empty"):
        raise InputError("refused")
    assert list((tmp_path / "empty").iterdir()) == []
