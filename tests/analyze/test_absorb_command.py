"""The command as people call it, on a small random model: its report, and the model that it exports."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from safetensors.numpy import load_file

import sysout_jax as so
from analyze import absorb
from sysout_jax.errors import RunError
from tests.analyze import command
from tests.analyze.command import words, write_model

pytestmark = pytest.mark.slow


@pytest.fixture
def model(tmp_path):
    return write_model(tmp_path / "model")


def call(monkeypatch, model, *flags) -> int:
    return command.call(monkeypatch, absorb.main, "--ckpt", model, *flags)


def test_report_and_export(model, tmp_path, monkeypatch, capsys):
    out, export = tmp_path / "out", tmp_path / "clean"
    flags = ["--prefix", r"\nA", "--num-seqs", 2, "--seq-len", 20, "--out", out, "--save", export]
    assert call(monkeypatch, model, *flags) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "prefix “\\n” “A” absorbed as 2 extra keys" in words(printed.out)
    found = json.loads((out / "absorb.json").read_text(), parse_constant=pytest.fail)
    assert found["prefix"] == [10, 65] and found["given"] and found["search"] == []
    assert found["proof"]["logits"] < 1e-4 and found["proof"]["nll"] < 1e-4
    assert found["protocol"]["windows"] == 2 and "2 windows of 20 tokens" in found["calibration"]
    titles = [h.text for h in ET.fromstring((out / "report.html").read_text()).iter("h2")]
    assert titles == [
        "How to read this page", "Before and after", "Waves", "Largest activations", "Attention", "The proof",
        "Definitions", "Settings",
    ]  # fmt: skip
    assert {p.stem for p in (out / "figures").iterdir()} == {"ratios", "attention"}
    clean = so.load(export)
    assert (clean.config.attention, clean.config.extra_keys) == ("attention_bias", 2)
    whole = np.array([[10, 65, *b"What stood here"]])
    original = so.capture(so.load(model), whole, ())[0][:, 2:]
    np.testing.assert_allclose(so.capture(clean, whole[:, 2:], ())[0], original, atol=1e-4)
    assert load_file(export / "prefix.safetensors")["key.0"].shape == (1, 1, 2, 8)
    compile((export / "use_prefix.py").read_text(), "use_prefix.py", "exec")


def test_search_is_told(model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert call(monkeypatch, model, "--longest", 1, "--num-seqs", 1, "--out", out) == 0
    found = json.loads((out / "absorb.json").read_text())
    assert len(found["prefix"]) == 1 and not found["given"]
    assert [t["prefix"] for t in found["search"] if t["chosen"]] == [found["prefix"]]
    assert found["protocol"]["length"] == 63  # the context less the prefix
    assert "The search" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--prefix", "300"], "--prefix 300: the model's vocabulary has 300 entries"),
        (["--prefix", ""], "--prefix: gives no token"),
        (["--prefix=-1"], "--prefix -1: neither token ids nor a text"),
        (["--prefix", "0,"], "--prefix 0,: neither"),
        (["--prefix", "1" * 5000], ": neither"),
        (["--prefix", "\udcff"], "--prefix \\udcff: not UTF-8 text"),
        (["--num-seqs", "0"], "--num-seqs 0: expected at least 1"),
        (["--longest", "0"], "--longest 0: expected at least 1"),
        (["--seq-len", "64"], "exceed the model's context of 64"),
        (["--calibration", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_bad_flags_write_nothing(flags, said, model, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert call(monkeypatch, model, *flags, "--out", out) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.strip().splitlines()) == 1
    assert not out.exists()


def test_an_export_that_is_there_is_refused(model, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, model, "--save", model, "--out", tmp_path / "out") == 2
    assert "--save" in capsys.readouterr().err
    assert call(monkeypatch, model, "--save", model / "clean", "--out", tmp_path / "out") == 2
    assert "lies inside" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(model.parent))  # the loader finds it there as well
    named = f"~/{model.name}"
    assert call(monkeypatch, named, "--save", model / "clean", "--out", tmp_path / "out") == 2
    assert "lies inside" in capsys.readouterr().err
    assert not (model / "clean").exists() and not (tmp_path / "out").exists()


def test_a_model_without_room_costs_no_report(model, tmp_path, monkeypatch, capsys):
    def full(*args, **kwargs):
        raise RunError("no room")

    monkeypatch.setattr(absorb.checkpoint, "save", full)
    flags = ("--prompt", "Summer", "--prefix", "s", "--save", tmp_path / "clean")
    assert call(monkeypatch, model, *flags, "--out", tmp_path / "out") == 1
    assert (tmp_path / "out" / "report.html").is_file()
    assert not (tmp_path / "clean").exists() and "no room" in capsys.readouterr().err
