"""What a run finds again on disk: the same values or the ones before them, and nothing is ever lost on the way."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from sysout_jax.checkpoints import run_checkpoints
from sysout_jax.errors import RunError
from sysout_jax.storage import seal
from sysout_jax.training.checkpoints import Checkpoints


def state_of(step: int, width: int = 16) -> dict:
    rng = np.random.default_rng(step)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    params = {"embed": {"embedding": draw(40, width)}, "layer_0": {"mlp": {"kernel": draw(8, 9)}}}
    moments = jax.tree.map(lambda x: x * 0.1, params)
    return {
        "params": params,
        "optimizer": ({"mu": moments, "count": jnp.asarray(step)}, ()),
        "step": jnp.asarray(step, jnp.int32),
    }


def shapes_of(state: dict) -> dict:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def save(workdir: Path, *steps: int, keep: int = 3, losses: dict[int, float] | None = None) -> None:
    (workdir / "checkpoints").mkdir(exist_ok=True)
    checkpoints = Checkpoints(workdir, keep)
    for step in steps:
        loss = (losses or {}).get(step, 1.0)
        checkpoints.save(step, state_of(step), {"next_index": step}, loss)
    checkpoints.wait()
    checkpoints.close()


def restore(workdir: Path, width: int = 16):
    checkpoints = Checkpoints(workdir, 3)
    try:
        return checkpoints.restore(shapes_of(state_of(0, width)))
    finally:
        checkpoints.close()


def assert_is(restored, step: int) -> None:
    assert restored is not None and restored[1] == {"next_index": step}
    same = jax.tree.map(lambda a, b: bool((a == b).all()), restored[0], state_of(step))
    assert all(jax.tree.leaves(same))


def listing(workdir: Path) -> dict[str, bytes]:
    return {str(p.relative_to(workdir)): p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def three(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("three")
    save(workdir, 1, 2, 3)
    return workdir


@pytest.fixture
def workdir(three, tmp_path) -> Path:
    """Checkpoints 1, 2 and 3."""
    return Path(shutil.copytree(three, tmp_path / "run"))


def test_what_was_saved_comes_back(workdir):
    assert_is(restore(workdir), 3)


def test_no_checkpoint_is_a_new_run(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    assert restore(tmp_path) is None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes."),
        ValueError("NOT_FOUND: a library of\nanother version"),
        KeyError("sharding"),
        TypeError("another mesh"),
    ],
    ids=repr,
)
def test_what_is_no_damage_stops_and_changes_nothing(workdir, monkeypatch, caplog, error):
    def fails(self, *args, **kwargs):
        raise error

    before = listing(workdir)
    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fails)
    with pytest.raises(RunError, match=r"checkpoints/3: cannot be read") as raised:
        restore(workdir)
    assert "\n" not in str(raised.value)
    assert listing(workdir) == before and not caplog.records


def test_a_lost_mount_is_no_damage(workdir, monkeypatch):
    def fails(self, *args, **kwargs):
        (workdir / "checkpoints").rename(workdir / "away")
        raise ValueError("NOT_FOUND")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fails)
    with pytest.raises(RunError, match="cannot be read"):
        restore(workdir)
    assert {p.name for p in (workdir / "away").iterdir()} == {"1", "2", "3"}


@pytest.mark.parametrize("what", ["files", "directory"])
def test_what_may_not_be_read_is_no_damage(workdir, monkeypatch, caplog, what):
    """Refused by name, not by mode: tests may run as root, who reads everything."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    listdir = os.listdir
    before = listing(workdir)
    with monkeypatch.context() as refused:
        if what == "files":
            refused.setattr(seal, "_checksum", refuse)
        else:
            refused.setattr(
                os, "listdir", lambda p: refuse() if Path(p).name == "checkpoints" else listdir(p)
            )
        with pytest.raises(
            RunError, match=r"cannot be read \(Permission denied\).*nothing was changed"
        ):
            restore(workdir)
    assert listing(workdir) == before and not caplog.records


def test_values_of_another_shape_are_no_damage(workdir):
    before = listing(workdir)
    with pytest.raises(RunError, match="cannot be read"):
        restore(workdir, width=12)
    assert listing(workdir) == before


def test_other_values_than_this_version_trains_are_no_damage(workdir):
    before = listing(workdir)
    other = state_of(0)
    other["params"]["lm_head"] = {"kernel": jnp.ones(3)}
    with pytest.raises(RunError, match=r"lm_head/kernel.*versions"):
        Checkpoints(workdir, 3).restore(shapes_of(other))
    assert listing(workdir) == before


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def values_file(checkpoint: Path) -> Path:
    files = [p for p in checkpoint.rglob("d/*") if p.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def test_a_flipped_bit_in_the_values_falls_back(workdir, monkeypatch, caplog):
    """In a file too large to be read for its seal: the checksum of the values tells."""
    monkeypatch.setattr(seal, "BLOCK", 1)
    path = values_file(workdir / "checkpoints/3")
    flip(path, 4 * path.stat().st_size)
    assert_is(restore(workdir), 2)
    (record,) = caplog.records
    line = record.getMessage()
    assert record.levelno == logging.WARNING and "\n" not in line and not record.exc_info
    assert "checkpoint of step 3 is damaged" in line and "3.unreadable" in line and "step 2" in line
    names = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert names == {"1", "2", "3.unreadable"}


def test_values_that_were_not_written_fall_back(workdir, caplog):
    """Whole files, and sealed, as if the memory had been wrong when they were written."""
    shutil.rmtree(workdir / "checkpoints/3/layer_0")
    shutil.copytree(workdir / "checkpoints/1/layer_0", workdir / "checkpoints/3/layer_0")
    seal.write_seal(workdir / "checkpoints/3")
    assert_is(restore(workdir), 2)
    assert "layer_0/mlp/kernel has other values than were written" in caplog.text


@pytest.mark.parametrize("name", ["999", "4"])
@pytest.mark.parametrize("kind", ["empty", "file", "foreign"])
def test_what_is_no_checkpoint_is_moved_aside(workdir, caplog, name, kind):
    path = workdir / "checkpoints" / name
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
        if kind == "foreign":
            (path / "notes.txt").write_text("mine")
    assert_is(restore(workdir), 3)
    assert len(caplog.records) == 1 and (workdir / f"checkpoints/{name}.unreadable").exists()
    assert not path.exists()


def test_a_checkpoint_under_the_name_of_another_step_is_moved_aside(workdir, caplog):
    shutil.rmtree(workdir / "checkpoints/3")
    (workdir / "checkpoints/2").rename(workdir / "checkpoints/3")
    assert_is(restore(workdir), 1)
    assert "step 3 is damaged (it is that of step 2) and was moved aside" in caplog.text
    assert (workdir / "checkpoints/3.unreadable/record").is_dir()


def test_a_step_whose_checkpoint_was_damaged_is_saved_again(workdir):
    for aside in ("3.unreadable", "3.unreadable.2"):
        shutil.rmtree(workdir / "checkpoints/3/layer_0")
        assert_is(restore(workdir), 2)
        save(workdir, 3)
        assert_is(restore(workdir), 3)
        assert (workdir / "checkpoints" / aside).is_dir()


def test_a_warning_holds_no_escape_codes(workdir, caplog):
    """Names of files are what somebody else wrote."""
    odd = workdir / "checkpoints/3/layer_0/\x1b[2J"
    odd.touch()
    seal.write_seal(workdir / "checkpoints/3")
    odd.unlink()
    assert_is(restore(workdir), 2)
    (line,) = caplog.messages
    assert line.isprintable() and r"layer_0/\x1b[2J is missing" in line


def test_the_latest_that_reads_is_found_behind_several(workdir):
    for step in (2, 3):
        shutil.rmtree(workdir / f"checkpoints/{step}/optimizer")
    assert_is(restore(workdir), 1)
    names = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert names == {"1", "2.unreadable", "3.unreadable"}


def test_where_none_reads_the_run_stops(workdir, caplog):
    for step in (1, 2, 3):
        shutil.rmtree(workdir / f"checkpoints/{step}/layer_0")
    before = listing(workdir)
    with pytest.raises(RunError, match="no checkpoint that can be read: 3 is damaged") as raised:
        restore(workdir)
    assert "\n" not in str(raised.value)
    assert listing(workdir) == before and not caplog.records


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "cut", "gone"])
@pytest.mark.parametrize("block", [1, seal.BLOCK])
def test_damage_of_any_file_gives_the_right_values_or_those_before(
    workdir, tmp_path, monkeypatch, kind, block
):
    """Never others, never another error, whether files are read for the seal or are too large for that."""
    monkeypatch.setattr(seal, "BLOCK", block)
    latest = workdir / "checkpoints/3"
    files = sorted(p.relative_to(latest) for p in latest.rglob("*") if p.is_file())
    assert len(files) > 20
    fell_back = 0
    for number, name in enumerate(files):
        copy = Path(shutil.copytree(workdir, tmp_path / f"{number}"))
        path = copy / "checkpoints/3" / name
        size = path.stat().st_size
        if kind == "flip":
            flip(path, (number * 7919) % (8 * size))
        elif kind == "cut":
            os.truncate(path, size // 2)
        else:
            path.unlink()
        restored = restore(copy)
        assert restored is not None
        step = int(restored[0]["step"])
        fell_back += step == 2
        assert_is(restored, step)
        assert step in (2, 3)
    assert fell_back >= 10


def test_a_checkpoint_without_checksums_is_still_read(workdir):
    """Runs that began before there were any."""
    checkpoint = workdir / "checkpoints/3"
    position = json.loads((checkpoint / "record/metadata").read_text())["position"]
    (checkpoint / "record").rename(checkpoint / "data")
    (checkpoint / "data/metadata").write_text(json.dumps(position))
    (checkpoint / seal.FILE).unlink()
    assert_is(restore(workdir), 3)
    shutil.rmtree(checkpoint / "layer_0")
    with pytest.raises(RunError, match="checkpoints/3: cannot be read"):
        restore(workdir)


def test_the_best_checkpoint_survives_a_resume(tmp_path):
    save(tmp_path, 1, 2, keep=1, losses={1: 0.1, 2: 0.6})
    save(tmp_path, 3, 4, keep=1, losses={3: 0.5, 4: 0.4})
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"1", "4"}


def test_only_what_a_kill_left_is_cleared(workdir):
    ours = ["7.orbax-checkpoint-tmp", "5.removed"]
    others = ["3.unreadable", "notes", "x.orbax-checkpoint-tmp", "7.mine"]
    for name in ours + others:
        (workdir / "checkpoints" / name).mkdir()
    (workdir / "elsewhere").mkdir()
    (workdir / "checkpoints/8.removed").symlink_to(workdir / "elsewhere")
    save(workdir, 4, keep=9)
    names = {p.name for p in (workdir / "checkpoints").iterdir()}
    assert names == {"1", "2", "3", "4", *others, "8.removed"}
    assert (workdir / "elsewhere").is_dir()


def test_damaged_checkpoints_are_not_removed(workdir):
    shutil.rmtree(workdir / "checkpoints/1/layer_0")
    save(workdir, 4, keep=1, losses={4: 0.5})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"1", "4"}


def test_a_checkpoint_that_is_being_read_is_not_removed(workdir):
    reader = run_checkpoints.hold(workdir / "checkpoints/2")
    save(workdir, 4, keep=1, losses={4: 0.5})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    assert reader is not None
    del reader
    save(workdir, 5, keep=1, losses={5: 0.4})
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"5"}


def test_success_is_said_after_reading_back(workdir, monkeypatch):
    checkpoints = Checkpoints(workdir, 3)
    checkpoints.confirm(3)
    monkeypatch.setattr(seal, "BLOCK", 1)
    path = values_file(workdir / "checkpoints/3")
    flip(path, 4 * path.stat().st_size)
    with pytest.raises(RunError, match="checkpoints/3: was written and cannot be read back"):
        checkpoints.confirm(3)


@pytest.mark.parametrize(
    "name",
    ["a[b]", "a]", "x*y", "q?", "b\\c", "end\\", "sp ace", "ünï 漢", "gs:", "h#%20", "\udcff"],
)
def test_directories_of_any_name(tmp_path, name):
    workdir = tmp_path / name
    workdir.mkdir()
    for step in (1, 2):
        save(workdir, step)
        assert_is(restore(workdir), step)
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"1", "2"}
    Checkpoints(workdir, 3).confirm(2)
