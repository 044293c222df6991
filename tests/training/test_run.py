"""Whole runs of the command: what they write, how they resume, and how they refuse."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.config import ATTENTION
from sysout_jax.errors import InputError, RunError
from sysout_jax.training.checkpoints import Checkpoints
from sysout_jax.training.config import MeshConfig, load_config, load_defined
from sysout_jax.training.loop import fit
from sysout_jax.training.metrics_file import read_metrics
from sysout_jax.training.sweep import Sweep

pytestmark = pytest.mark.slow


def parameters(workdir: Path) -> dict[str, bytes]:
    """Every weight of the latest checkpoint, bit for bit."""
    flat = jax.tree.leaves_with_path(so.load(workdir).params)
    return {str(path): np.asarray(leaf).tobytes() for path, leaf in flat}


def command(config_file: Path, workdir: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "train", "--config", str(config_file)),
        *("--workdir", str(workdir), *more),
    ]


def environment(**more: str) -> dict[str, str]:
    root = Path(__file__).resolve().parents[2]
    return os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"} | more


def run(*args, **kwargs):
    return subprocess.run(
        args[0], capture_output=True, text=True, check=False, env=environment(**kwargs)
    )


def test_a_run_learns_records_and_loads(config, tmp_path):
    outcome = fit(dataclasses.replace(config, steps=60), tmp_path / "run")
    assert (outcome.status, outcome.step) == ("finished", 60)
    records = read_metrics(tmp_path / "run")
    losses = [r["loss"] for r in records if "loss" in r]
    assert len(losses) == 60
    assert records[0]["run"]["kernel"] == "blockwise"
    assert losses[0] == pytest.approx(np.log(config.model.vocab_size), rel=0.05)
    assert losses[-1] < 0.9 * losses[0]
    assert [r["step"] for r in records if "val_loss" in r][-1] == 60
    seen = [r["monitor"] for r in records if "monitor" in r]
    assert len(seen) == 10
    wanted = {"h_top1", "h_median", "h_mean", "h_kurtosis", "x_down_top1", "first_token_share"}
    wanted |= {"sink_rate", "logit_max", "grad_norm_k", "grad_norm_v", "grad_norm_down"}
    assert wanted <= set(seen[0])
    assert all(len(values) == 2 for values in seen[0].values())
    lm = so.load(tmp_path / "run")
    tokens = np.fromfile(config.data / "val.bin", np.uint16)[: 8 * 16].reshape(8, 16)
    logits, _ = so.capture(lm, tokens, ("h",))
    logp = jax.nn.log_softmax(np.asarray(logits)[:, :-1])
    nll = -np.take_along_axis(np.asarray(logp), tokens[:, 1:, None].astype(int), -1).mean()
    assert nll < losses[0] - 0.3  # the checkpoint is the trained model
    assert so.collect(lm, tokens).h.ratio.shape == (2,)


def test_the_latest_and_the_best_checkpoint_are_kept(config, tmp_path):
    config = dataclasses.replace(config, steps=40, keep=2)
    fit(config, tmp_path / "run")
    values = {r["step"]: r["val_loss"] for r in read_metrics(tmp_path / "run") if "val_loss" in r}
    saved = {s: v for s, v in values.items() if s % config.save_every == 0}
    kept = {int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()}
    assert kept == {36, 40, min(saved, key=saved.__getitem__)}
    assert so.load(tmp_path / "run/checkpoints/36").num_layers == 2


def test_an_interrupted_run_goes_on_bit_for_bit(config, tmp_path):
    fit(config, tmp_path / "whole")
    calls = iter(range(100))
    outcome = fit(config, tmp_path / "cut", should_stop=lambda: next(calls) == 6)
    assert (outcome.status, outcome.step) == ("interrupted", 6)
    assert fit(config, tmp_path / "cut").step == 12
    assert parameters(tmp_path / "cut") == parameters(tmp_path / "whole")
    logged = [
        [r for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("cut", "whole")
    ]
    assert [r["loss"] for r in logged[0]] == [r["loss"] for r in logged[1]]


def test_sigterm_saves_and_ends_well(config_file, tmp_path):
    process = subprocess.Popen(
        command(config_file, tmp_path / "run", "--steps", "100000"),
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for_steps(tmp_path / "run", 3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    step = int(out.split("interrupted at step ")[1].split(",")[0])
    assert (tmp_path / "run/checkpoints" / str(step)).is_dir()


def wait_for_steps(workdir: Path, steps: int) -> None:
    end = time.monotonic() + 240
    while time.monotonic() < end:
        path = workdir / "metrics.jsonl"
        if path.exists() and path.read_text().count('"loss"') >= steps:
            return
        time.sleep(0.01)
    raise AssertionError("the run did not start")


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.endurance)])
def test_killed_at_random_moments_and_resumed(config_file, tmp_path, kills):
    """SIGKILL, also while a checkpoint is written (every step saves): the final weights are those of an undisturbed run."""
    steps = ("--steps", str(10 + 7 * kills), "--save-every", "1")
    assert run(command(config_file, tmp_path / "whole", *steps)).returncode == 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(config_file, tmp_path / "killed", *steps),
            env=environment(JAX_ENABLE_COMPILATION_CACHE="false"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        before = latest(tmp_path / "killed")
        end = time.monotonic() + 600
        while latest(tmp_path / "killed") < before + 2 and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.005)
        time.sleep(random.random() * 0.3)
        process.kill()
        process.wait()
    assert run(command(config_file, tmp_path / "killed", *steps)).returncode == 0
    assert parameters(tmp_path / "killed") == parameters(tmp_path / "whole")


def latest(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.is_dir() else []
    return max(steps, default=-1)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(config, tmp_path, caplog):
    fit(config, tmp_path / "run")
    want = parameters(tmp_path / "run")
    damaged = [
        p
        for p in (tmp_path / "run/checkpoints/12/layer_1").rglob("*")
        if p.is_file() and p.parent.name == "d"
    ]
    assert damaged
    for path in damaged:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert fit(config, tmp_path / "run").step == 12
    assert "checkpoint of step 12 is damaged" in caplog.text
    assert parameters(tmp_path / "run") == want


def test_two_processes_train_like_one(config_file, config, tmp_path):
    """Each reads its own rows; losses agree to float32 rounding (1e-5), and both leave with status 0."""
    fit(config, tmp_path / "one")
    port = str(random.randint(20000, 50000))
    processes = [
        subprocess.Popen(
            command(config_file, tmp_path / "two"),
            env=environment(
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES="2",
                JAX_PROCESS_ID=str(i),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=280)
        assert process.returncode == 0, err[-3000:]
    one, two = (
        [r["loss"] for r in read_metrics(tmp_path / name) if "loss" in r] for name in ("one", "two")
    )
    assert len(one) == len(two) == 12
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_nan_loss_stops_and_keeps_the_last_good_checkpoint(config, tmp_path):
    wild = dataclasses.replace(
        config,
        save_every=1,
        optimizer=dataclasses.replace(config.optimizer, lr=1e38, min_lr=0.0, clip=0.0),
    )
    with pytest.raises(
        RunError, match=r"^gradient norm is nan .* at step \d+: stopped, the last good checkpoint"
    ):
        fit(wild, tmp_path / "run")
    assert latest(tmp_path / "run") >= 1
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(so.load(tmp_path / "run").params))


def test_a_full_disk_leaves_the_state_whole(config, tmp_path, monkeypatch):
    fit(dataclasses.replace(config, steps=8), tmp_path / "run")
    want = parameters(tmp_path / "run")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.AsyncCheckpointer.save", full)
    with pytest.raises(RunError, match=r"No space left.*whole up to step 8"):
        fit(config, tmp_path / "run")
    monkeypatch.undo()
    assert Checkpoints(tmp_path / "run", 2).steps()[-1] == 8
    assert parameters(tmp_path / "run") == want


def test_bad_data_and_meshes(config, tmp_path):
    cases = [
        (dataclasses.replace(config, data=tmp_path / "none"), "train.bin"),
        (dataclasses.replace(config, mesh=MeshConfig(data=4096)), "devices"),
        (dataclasses.replace(config, kernel="splash"), "splash.*blockwise"),
        (
            dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=40)),
            "vocabulary has 40",
        ),
    ]
    (config.data / "short").mkdir()
    for split in ("train", "val"):
        np.arange(9, dtype=np.uint16).tofile(config.data / "short" / f"{split}.bin")
    cases.append(
        (dataclasses.replace(config, data=config.data / "short"), "fewer than one sequence")
    )
    for bad, message in cases:
        with pytest.raises(InputError, match=message):
            fit(bad, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--optimizer.lrr", "1"), "--optimizer.lr"),
        (("--model.attention", "flash"), "context_scale"),
        (("--steps", "many"), "many"),
        (("--batch-size", "7"), "batch_size 7"),
    ],
)
def test_bad_flags_are_answered_with_what_is_right(flags, message, config_file, tmp_path):
    done = run(command(config_file, tmp_path / "run", *flags))
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_every_config_builds_and_names_its_command():
    folder = Path(__file__).resolve().parents[2] / "configs"
    files = sorted(folder.glob("*.py"))
    assert len(files) >= 5
    for file in files:
        text = file.read_text()
        assert f"configs/{file.name}" in text and "Cost" in text and "Result" in text, file
        if file.stem == "section5":
            sweeps = {"variants": 2 * 3 * len(ATTENTION), "settings": 12, "without_bos": 3}
            sweeps |= {"idle": 9, "text": 4}
            for name, runs in sweeps.items():
                assert len(load_defined(Path(f"{file}:{name}"), "sweep", Sweep).runs()) == runs
            with pytest.raises(
                InputError, match="expected one of variants, settings, without_bos, idle, text"
            ):
                load_defined(Path(f"{file}:x"), "sweep", Sweep)
            continue
        for attention in ATTENTION:
            config = load_config(Path(f"{file}:{attention}"))
            assert config.steps > 0 and config.model.attention == attention
        older = load_config(file.with_name(f"{file.stem}_context_scale.py"))
        assert older == load_config(Path(f"{file}:context_scale"))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gpt2.py", "stands for several; name one behind a colon"),
        ("gpt2.py:defualt", "'defualt'; expected"),
        ("gpt2_defualt.py", "'defualt'; expected"),
        ("gpt3.py:default", "no such file; did you mean .*gpt2.py"),
    ],
)
def test_a_config_that_names_no_run_says_what_is_right(name, says):
    with pytest.raises(InputError, match=says):
        load_config(Path(__file__).resolve().parents[2] / "configs" / name)


def test_a_config_of_one_run_takes_no_word(config_file):
    with pytest.raises(InputError, match="name the file without 'default'"):
        load_config(Path(f"{config_file}:default"))
