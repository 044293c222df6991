"""Whole runs and the place they lie in: names, refusals, full disks, other data, other trainings."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.errors import InputError, RunError
from sysout_jax.training.config import MeshConfig
from sysout_jax.training.loop import fit
from sysout_jax.training.metrics_file import read_metrics
from sysout_jax.training.workdir import alone_in
from tests.training.test_run import command, environment, parameters

pytestmark = [pytest.mark.slow]


def listing(directory: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(directory)): p.read_bytes() if p.is_file() else b""
        for p in directory.rglob("*")
    }


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_resume_on_other_data_is_refused(config, tmp_path, split):
    run = tmp_path / "run"
    fit(dataclasses.replace(config, steps=2), run)
    before = listing(run)
    elsewhere = tmp_path / "elsewhere"
    config.data.rename(elsewhere)
    path = elsewhere / f"{split}.bin"
    tokens = np.fromfile(path, np.uint16)
    tokens[len(tokens) // 2] ^= 1
    tokens.tofile(path)
    moved = dataclasses.replace(config, data=elsewhere, steps=4)
    with pytest.raises(InputError, match=rf"elsewhere/{split}.bin: the run was trained on"):
        fit(moved, run)
    assert listing(run) == before
    tokens[len(tokens) // 2] ^= 1
    tokens.tofile(path)
    assert fit(moved, run).step == 4  # the same data at another place


def test_another_tokenizer_and_fewer_steps_are_refused(config, tmp_path):
    run = tmp_path / "run"
    (config.data / "tokenizer.json").write_bytes(b"{}")
    fit(dataclasses.replace(config, steps=2), run)
    before = listing(run)
    (config.data / "tokenizer.json").write_bytes(b"{ }")
    with pytest.raises(InputError, match=r"is another tokenizer than .*run/tokenizer.json"):
        fit(dataclasses.replace(config, steps=4), run)
    (config.data / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(InputError, match="is at step 2 and the run would end at step 1"):
        fit(dataclasses.replace(config, steps=1), run)
    assert listing(run) == before
    assert fit(dataclasses.replace(config, steps=4), run).step == 4


def test_a_checkpoint_of_another_run_is_refused(config, tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    fit(dataclasses.replace(config, steps=2), ours)
    fit(dataclasses.replace(config, steps=3, seed=7), theirs)
    (theirs / "checkpoints" / "3").rename(ours / "checkpoints" / "3")
    before = listing(ours)
    with pytest.raises(
        InputError, match=r"ours/checkpoints/3: is of a run with another config \(seed: 7 → 0\)"
    ):
        fit(dataclasses.replace(config, steps=4), ours)
    assert listing(ours) == before


def test_a_second_training_touches_nothing(config, tmp_path):
    run = tmp_path / "run"
    fit(dataclasses.replace(config, steps=2), run)
    with alone_in(run):
        before = listing(run)
        with pytest.raises(InputError, match="another training is at work"):
            fit(config, run)
        assert listing(run) == before


@pytest.mark.parametrize("extra", ["tensorboardX", "wandb"])
def test_a_missing_extra_is_told_before_anything_is_written(config, tmp_path, monkeypatch, extra):
    monkeypatch.setitem(sys.modules, extra, None)
    asked = {"tensorboard": True} if extra == "tensorboardX" else {"wandb": "project"}
    with pytest.raises(InputError, match=f"needs {extra}; pip install"):
        fit(dataclasses.replace(config, **asked), tmp_path / "new/run")
    assert not (tmp_path / "new").exists()


def test_refused_runs_leave_no_directory(config, tmp_path, monkeypatch):
    cases = [
        dataclasses.replace(config, data=tmp_path / "none"),
        dataclasses.replace(config, mesh=MeshConfig(data=4096)),
        dataclasses.replace(config, kernel="splash"),
    ]
    for bad in cases:
        with pytest.raises(InputError):
            fit(bad, tmp_path / "new/run")
        assert not (tmp_path / "new").exists()

    def no_memory(*args):
        raise MemoryError

    monkeypatch.setattr("sysout_jax.training.checkpoints.Checkpoints.restore", no_memory)
    with pytest.raises(MemoryError):
        fit(config, tmp_path / "new/run")
    assert not (tmp_path / "new").exists()


def test_a_name_that_libraries_misread(config, tmp_path):
    """Trained, interrupted, resumed, analysed."""
    run = tmp_path / "a [b]\\c*ü漢"
    calls = iter(range(100))
    config = dataclasses.replace(config, steps=6)
    assert fit(config, run, should_stop=lambda: next(calls) == 3).status == "interrupted"
    assert fit(config, run).step == 6
    fit(config, tmp_path / "plain")
    assert parameters(run) == parameters(tmp_path / "plain")
    tokens = np.fromfile(config.data / "val.bin", np.uint16)[: 2 * 16].reshape(2, 16)
    assert so.collect(so.load(run), tokens).h.ratio.shape == (2,)


def test_lines_damaged_by_a_loss_of_power_stop_no_resume(config, tmp_path):
    run = tmp_path / "run"
    fit(dataclasses.replace(config, steps=4), run)
    before = read_metrics(run)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(
        b"".join([*lines[:3], b"\0" * 9 + b"\n", b"\n", *lines[3:]])
    )
    assert fit(dataclasses.replace(config, steps=5), run).step == 5
    assert read_metrics(run)[: len(before)] == before


FULL = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
sys.argv = ["train", *sys.argv[2:]]
runpy.run_module("train", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(("full_from", "save_every"), [(12_000, 8), (3_000, 150)])
def test_a_full_disk_is_one_line_and_whole_checkpoints_stay(
    config, config_file, tmp_path, full_from, save_every
):
    """No file grows beyond so many bytes: those of a checkpoint, or metrics.jsonl."""
    run = tmp_path / "run"
    fit(dataclasses.replace(config, steps=4), run)
    want = parameters(run)
    arguments = command(config_file, run, "--steps", "200", "--save-every", str(save_every))[3:]
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(full_from), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    line = done.stderr.strip()
    assert line.startswith("error: ") and "(File too large)" in line and "\n" not in line, line
    assert ("metrics.jsonl" in line) == (full_from == 3_000)
    assert parameters(run / "checkpoints/4") == want


def test_a_checkpoint_that_cannot_be_read_back_is_no_success(config, tmp_path, monkeypatch):
    def other_values(checkpoint, written):
        from sysout_jax.storage.seal import Damaged

        raise Damaged("layer_0/mlp/kernel has other values than were written")

    monkeypatch.setattr("sysout_jax.training.checkpoints.read_back", other_values)
    with pytest.raises(RunError, match="checkpoints/2: was written and cannot be read back"):
        fit(dataclasses.replace(config, steps=2), tmp_path / "run")
