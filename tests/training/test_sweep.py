"""Grids of runs: what they consist of, what is skipped, taken over and told, and that kills change nothing."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.training import sweep as module
from sysout_jax.training.config import load_defined, to_dict
from sysout_jax.training.loop import fit
from sysout_jax.training.sweep import Sweep, run_sweep, words_by_axis
from sysout_jax.training.workdir import alone_in
from tests.training.test_run import environment, latest, parameters


@pytest.fixture
def grid(config) -> Sweep:
    return Sweep(
        {"lr": (0.01, 0.02), "seed": range(3)},
        lambda lr, seed: dataclasses.replace(
            config, seed=seed, optimizer=dataclasses.replace(config.optimizer, lr=lr)
        ),
    )


def test_the_grid_is_every_combination(grid):
    runs = grid.runs()
    assert [run.name for run in runs] == [f"lr={lr},seed={s}" for lr in (0.01, 0.02) for s in range(3)]  # fmt: skip
    assert [(r.config.optimizer.lr, r.config.seed) for r in runs] == [
        (lr, s) for lr in (0.01, 0.02) for s in range(3)
    ]


def test_only_some(grid):
    chosen = grid.runs(words_by_axis(["seed=0", "lr=0.02", "seed=2"]))
    assert [run.name for run in chosen] == ["lr=0.02,seed=0", "lr=0.02,seed=2"]
    for words, message in {
        "sed=0": "axis 'sed'.*did you mean seed",
        "seed=7": "seed '7'.*expected one of 0, 1, 2",
        "seed": "expected KEY=VALUE",
        "=1": "expected KEY=VALUE",
    }.items():
        with pytest.raises(InputError, match=message):
            grid.runs(words_by_axis([words]))


@pytest.mark.parametrize("values", [(), (1, "1"), ("a/b",), ("",), ("a*",)])
def test_values_that_name_no_directory(values, config):
    with pytest.raises(InputError, match="axis x"):
        Sweep({"x": values}, lambda x: config)


def test_what_is_done_is_skipped_and_the_rest_goes_on(grid, tmp_path, monkeypatch):
    """One run fails at once, one is held by another process first; `fit` stands aside for a quick one."""
    calls, held = [], ["lr=0.02,seed=0"]

    def quick(config, workdir, report, should_stop):
        calls.append(workdir.name)
        if workdir.name in held:
            held.clear()
            raise module.AtWork("elsewhere")
        if workdir.name == "lr=0.01,seed=1":
            raise InputError("no such data")
        (workdir / "checkpoints" / "12" / "data").mkdir(parents=True)
        (workdir / "train.json").write_text(json.dumps(to_dict(config)))
        (workdir / "checkpoints" / "12" / "data" / "metadata").write_text("{}")
        (workdir / "metrics.jsonl").write_text(
            '{"step": 11, "loss": 9.0}\n{"step": 12, "loss": 1.5}\n{"step": 12, "val_loss": 1.25}\n'
        )

    monkeypatch.setattr(module, "fit", quick)
    monkeypatch.setattr(module, "PAUSE", 0.01)
    names = [run.name for run in grid.runs()]
    states = run_sweep(grid.runs(), tmp_path)
    assert calls == [*names, "lr=0.02,seed=0"]
    by_name = {state.name: state for state in states}
    failed = by_name.pop("lr=0.01,seed=1")
    assert (failed.status, failed.problem, failed.step) == ("failed", "no such data", 0)
    assert {(s.status, s.step, s.loss, s.val_loss) for s in by_name.values()} == {
        ("done", 12, 1.5, 1.25)
    }
    calls.clear()
    run_sweep(grid.runs(), tmp_path)
    assert calls == ["lr=0.01,seed=1"]


@pytest.mark.slow
def test_what_another_grid_has_done_is_not_taken_for_done(config, tmp_path):
    """By its config, by its data, and where a run's directory was copied over another one."""

    def told(config, seeds):
        problems = {}
        grid = Sweep({"seed": range(seeds)}, lambda seed: dataclasses.replace(config, seed=seed))
        states = run_sweep(grid.runs(), tmp_path / "sweep", ended=lambda run, outcome, why: problems.setdefault(run.name, why))  # fmt: skip
        return [state.status for state in states], problems

    config = dataclasses.replace(config, steps=1)
    assert told(config, 1) == (["done"], {"seed=0": None})
    before = latest(tmp_path / "sweep" / "seed=0")
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, lr=0.5))
    statuses, problems = told(other, 1)
    assert statuses == ["failed"] and "another config (optimizer.lr" in problems["seed=0"]
    data = shutil.copytree(config.data, tmp_path / "elsewhere")
    assert told(dataclasses.replace(config, data=data), 1) == (["done"], {})
    longer = dataclasses.replace(config, steps=2)
    assert told(longer, 1)[0] == ["done"]
    statuses, problems = told(config, 1)
    assert (
        statuses == ["failed"]
        and "is at step 2 and the run would end at step 1" in problems["seed=0"]
    )
    config = longer
    before = latest(tmp_path / "sweep" / "seed=0")
    tokens = np.fromfile(data / "train.bin", np.uint16)
    tokens[3] ^= 1
    tokens.tofile(data / "train.bin")
    statuses, problems = told(dataclasses.replace(config, data=data), 1)
    assert statuses == ["failed"] and "train.bin: the run was trained on" in problems["seed=0"]
    shutil.copytree(tmp_path / "sweep" / "seed=0", tmp_path / "sweep" / "seed=1")
    statuses, problems = told(config, 2)
    assert statuses == ["done", "failed"] and "(seed: 0 → 1)" in problems["seed=1"]
    assert latest(tmp_path / "sweep" / "seed=0") == before


def test_a_stop_ends_it_between_runs(grid, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(module, "fit", lambda config, workdir, *more: calls.append(workdir.name))
    states = run_sweep(grid.runs(), tmp_path, should_stop=lambda: len(calls) == 2)
    assert len(calls) == 2 and {state.status for state in states} == {"waiting"}


@pytest.mark.slow
def test_a_run_that_another_process_holds_waits(grid, tmp_path):
    (first,) = grid.runs({"lr": ["0.01"], "seed": ["0"]})
    with alone_in(tmp_path / first.name), pytest.raises(module.AtWork):
        fit(first.config, tmp_path / first.name)


def sweep_file(config_file: Path, steps: int, attentions: list[str]) -> Path:
    path = config_file.with_name("grid.py")
    path.write_text(
        config_file.read_text()
        + "\nimport dataclasses\nfrom sysout_jax.training.sweep import Sweep\n"
        + f"base = dataclasses.replace(config, steps={steps}, save_every=1, monitor_every=0)\n"
        + f"sweep = Sweep({{'attention': {attentions}, "
        + " 'seed': [0, 1]}, lambda attention, seed: dataclasses.replace(\n"
        + "    base, seed=seed, model=dataclasses.replace(base.model, attention=attention)))\n"
    )
    return path


def test_a_place_that_can_be_no_directory(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is not a directory; name a new one"):
        run_sweep([], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def start(file: Path, workdir: Path, *more: str) -> subprocess.Popen[str]:
    # nothing is taken from a cache, which a kill may have left half-written
    return subprocess.Popen(
        [sys.executable, "-m", "train.sweep", str(file), "--workdir", str(workdir), *more],
        env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def saved(workdir: Path) -> int:
    return sum(1 + latest(run) for run in workdir.glob("*=*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "attentions"),
    [(1, ["default"]), pytest.param(10, ["default", "sigmoid"], marks=pytest.mark.endurance)],
)
def test_killed_at_random_moments_and_ended_by_two_processes(
    config_file, tmp_path, kills, attentions
):
    """The table and every run's weights are those of an undisturbed sweep."""
    file = sweep_file(config_file, steps=4 + 2 * kills, attentions=attentions)
    done = f"{2 * len(attentions)} of {2 * len(attentions)} runs done"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    states = run_sweep(load_defined(file, "sweep", Sweep).runs(), whole)
    for _ in range(kills):
        process = start(file, killed)
        before, end = saved(killed), time.monotonic() + 300
        while saved(killed) < before + 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(random.random() * 0.5)
        process.kill()
        process.communicate()
    pair = [start(file, killed), start(file, killed)]
    for process in pair:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and done in out, errors
    table = json.loads((killed / "sweep.json").read_text())
    assert table == [dataclasses.asdict(state) for state in states]
    names = sorted(path.name for path in whole.glob("*=*"))
    assert len(names) == 2 * len(attentions)
    for name in names:
        assert parameters(killed / name) == parameters(whole / name)


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_nothing_is_written_for_a_look(config_file, tmp_path):
    file = sweep_file(config_file, steps=2, attentions=["default", "sigmoid"])
    look = start(file, tmp_path / "out", "--dry-run")
    out, errors = look.communicate(timeout=120)
    assert look.returncode == 0 and "0 of 4 runs done" in out, errors
    assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "attention=default,seed=0").mkdir(parents=True)
    (tmp_path / "out" / "attention=default,seed=0" / "mine").write_text("")
    process = start(file, tmp_path / "out", "--only", "seed=0")
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.startswith("error: 1 of 2 runs failed: attention=default,seed=0")
    assert "exists and is no training run" in out and "1 of 2 runs done" in out
    assert [s["status"] for s in json.loads((tmp_path / "out" / "sweep.json").read_text())] == [
        *("waiting", "waiting", "done", "waiting")
    ]
