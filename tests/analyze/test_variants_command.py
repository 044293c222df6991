"""analyze.variants on two runs of `python -m train` and a model without a record, and one clear line for what cannot work."""

from __future__ import annotations

import dataclasses
import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import analyze.variants
from sysout_jax.data.demo import demo_text
from sysout_jax.data.documents import Source
from sysout_jax.data.prepare import prepare
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.training.config import OptimizerConfig, TrainConfig
from sysout_jax.training.loop import fit
from sysout_jax.training.metrics_file import read_metrics
from tests.analyze.command import call, tree

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    work = tmp_path_factory.mktemp("runs")
    (work / "text.txt").write_text(demo_text())
    prepare([Source(work / "text.txt")], "bytes", work / "data", val_fraction=0.2, workers=1)
    model = Gpt2Config(
        num_layers=2, d_model=16, num_heads=2, d_ff=32, vocab_size=257, context_length=32, bias=False
    )  # fmt: skip
    config = TrainConfig(
        model=model,
        data=work / "data",
        steps=4,
        batch_size=4,
        seq_len=32,
        optimizer=OptimizerConfig(lr=1e-2, min_lr=1e-3, warmup_steps=1, decay_steps=4),
        dtype="float32",
        eval_every=2,
        eval_sequences=4,
        log_every=1,
        monitor_every=2,
        monitor_sequences=2,
    )
    found = []
    for attention in ("default", "context_scale"):
        config = dataclasses.replace(config, model=dataclasses.replace(model, attention=attention))
        fit(config, work / attention)
        found.append(work / attention)
    return found


def test_outputs(runs, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--ckpt", runs[0], "--compare", runs[1], model, "--labels", "plain", "scaled", "bare"]
    flags += ["--num-seqs", 2, "--seq-len", 24, "--out", out]
    assert call(monkeypatch, analyze.variants.main, *flags) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and max(map(len, printed.out.splitlines()[:-1])) <= 100
    found = json.loads((out / "variants.json").read_text(), parse_constant=pytest.fail)
    plain, scaled, bare = found["models"]
    assert [m["name"] for m in found["models"]] == ["plain", "scaled", "bare"]
    assert plain["explicit"] is None and len(scaled["explicit"]["heads"]) == 2
    assert bare["record"] is None and scaled["record"]["steps"] == [1, 2, 3, 4]
    assert scaled["record"]["val_steps"] == scaled["record"]["monitor_steps"] == [2, 4]
    figures = "landscapes layers scale loss monitor".split()
    assert found["figures"] == figures
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in figures for suffix in ("png", "pdf")
    }
    page = (out / "report.html").read_text()
    assert "No training record (metrics.jsonl) lies beside bare" in page
    ET.fromstring(page)


def test_without_records_there_are_no_training_figures(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert call(monkeypatch, analyze.variants.main, "--ckpt", model, "--prompt", "a b", "--out", out) == 0  # fmt: skip
    found = json.loads((out / "variants.json").read_text(), parse_constant=pytest.fail)
    assert found["figures"] == ["landscapes", "layers", "scale"]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--labels", "a", "b"], "--labels: 2 given for 1 checkpoints; give one for each"),
        (["--compare", "missing"], "missing: no such file or directory"),
        (["--tau", "0"], "--tau 0: expected a positive threshold"),
    ],
)
def test_bad_flags(flags, line, model, tmp_path, monkeypatch, capsys):
    before = tree(tmp_path)
    flags = ["--ckpt", model, *flags, "--out", tmp_path / "out"]
    assert call(monkeypatch, analyze.variants.main, *flags) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_checkpoints_of_a_run_against_the_step(runs, tmp_path, monkeypatch, capsys):
    data = runs[0].parent / "data"
    flags = ["--ckpt", runs[0], "--steps", "all", "--data", data, "--num-seqs", 2]
    assert call(monkeypatch, analyze.variants.main, *flags, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "1 checkpoints" in printed.out
    found = json.loads(
        (tmp_path / "out/variants_steps.json").read_text(), parse_constant=pytest.fail
    )
    (only,) = found["checkpoints"]
    record = read_metrics(runs[0])
    assert only["step"] == 4 and only["same_as_step"] is None
    assert only["values"]["val_loss"] == [[r["val_loss"] for r in record if "val_loss" in r][-1]]
    assert len(only["values"]["grad_norm_k"]) == len(only["weight_ratios"]["down"]) == 2
    assert (tmp_path / "out/figures/steps.png").exists()

    copies = tmp_path / "copies"
    for step in (10, 200):
        shutil.copytree(runs[0], copies / f"at-{step}")
    flags[1] = copies
    assert call(monkeypatch, analyze.variants.main, *flags, "--out", tmp_path / "out") == 0
    found = json.loads((tmp_path / "out/variants_steps.json").read_text())
    assert [(c["step"], c["same_as_step"]) for c in found["checkpoints"]] == [(10, None), (200, 10)]


def test_runs_of_a_sweep(runs, tmp_path, monkeypatch, capsys):
    for seed in (0, 1):
        shutil.copytree(runs[seed], tmp_path / "sweep" / f"seed={seed},lr=1")
    flags = ["--ckpt", tmp_path / "sweep", "--over", "seed", "--num-seqs", 2, "--seq-len", 16]
    assert call(monkeypatch, analyze.variants.main, *flags, "--out", tmp_path / "out") == 0
    assert "2 runs in 1 setting," in capsys.readouterr().out
    found = json.loads(
        (tmp_path / "out/variants_sweep.json").read_text(), parse_constant=pytest.fail
    )
    (setting,) = found["settings_of_runs"]
    assert setting["setting"] == "lr=1"
    losses = [run["values"]["val_loss"][0] for run in setting["runs"]]
    assert setting["mean"]["val_loss"]["mean"] == [pytest.approx(sum(losses) / 2)]
    # Student's t with one degree of freedom; two values lie half their distance from the mean
    width = 12.7062 * abs(losses[0] - losses[1]) / 2
    assert setting["mean"]["val_loss"]["half_width"] == [pytest.approx(width, rel=1e-4)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "all", "--over", "seed"], "--steps and --over"),
        (["--over", "seed"], "holds no runs"),
        (["--steps", "all", "--data", "none"], "train.prepare"),
        (["--data", "none", "--prompt", "a"], "--prompt and --data exclude each other"),
        (["--data", "none", "--bos"], "--bos: the windows of --data"),
    ],
)
def test_what_cannot_be_measured(flags, message, runs, tmp_path, monkeypatch, capsys):
    status = call(monkeypatch, analyze.variants.main, "--ckpt", runs[0], *flags, "--out", tmp_path / "out")  # fmt: skip
    assert status == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
