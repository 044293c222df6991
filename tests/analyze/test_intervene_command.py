"""The command as people call it, on the demo model, small; and its page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from analyze import intervene, lifecycle
from sysout_jax.testing import demo_plant
from tests.analyze import command
from tests.analyze.command import words

pytestmark = pytest.mark.slow

SMALL = ["--bos", "--seq-len", "96", "--num-seqs", "2"]


def call(monkeypatch, analysis, *flags) -> int:
    return command.call(monkeypatch, analysis.main, *flags)


def test_outputs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--what", "zero", "--where", "birth", "weight", "--seeds", 2, "--expect", "gpt2"]
    assert call(monkeypatch, intervene, *SMALL, *flags, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "birth   zero" in printed.out
    assert "2 birth weights" in words(printed.out) and "2 random weights" in words(printed.out)
    assert "2 windows of 96 tokens, not overlapping, with BOS" in words(printed.out)
    assert max(map(len, printed.out.split("Report ")[0].splitlines())) <= 100
    found = json.loads((out / "intervene.json").read_text(), parse_constant=pytest.fail)
    assert found["protocol"]["bos"] and found["protocol"]["counted"] == 2 * 95
    assert found["found"] and found["birth_layers"] == [2] and found["num_seeds"] == 2
    kinds = [(o["where"], o["what"], o["target"]) for o in found["outcomes"]]
    assert kinds == [(w, "zero", t) for w in ("birth", "weight") for t in ("outliers", "control")]
    assert [o["outliers"]["value"] == 0 for o in found["outcomes"]] == [True, False] * 2
    assert found["settings"]["flags"]["what"] == ["zero"]
    # a difference is a finding: printed, stored, status 0
    assert found["expected"]["name"] == "gpt2"
    verdicts = {c["quantity"]: c["verdict"] for c in found["expected"]["checks"]}
    assert verdicts["h dims"] == "differs" and verdicts["birth layer, from 0"] == "match"
    assert "published values of gpt2" in words(printed.out)
    root = ET.fromstring((out / "report.html").read_text())
    titles = [h.text for h in root.iter("h2")]
    assert titles == [
        "How to read this page", "Effects", "Outliers per layer", "Sink heads", "Expected and found",
        "Definitions", "Settings",
    ]  # fmt: skip
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{name}.{suffix}" for name in ("effects", "layers", "heads") for suffix in ("png", "pdf")
    }
    assert "born in layer 3 of 8" in "".join(root.itertext())


def test_no_outlier_is_said_plainly(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--tau", 1e6, "--what", "mean", "--where", "all", "--seeds", 1]
    assert call(monkeypatch, intervene, *SMALL, *flags, "--out", out) == 0
    assert "no activation outlier at τ = 1e+06" in words(capsys.readouterr().out)
    text = "".join(ET.fromstring((out / "report.html").read_text()).itertext())
    assert "No outlier at τ = 1e+06: the strongest elements are edited instead" in text
    assert "candidates left" in text and "outliers edited" not in text


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--seeds", 0], "at least 1"),
        (["--what"], "--what: has no value"),
        (
            ["--what", "mean", "--where", "birth", "row", "--ckpt", "/nowhere"],
            "row can only be set to zero",
        ),
        (["--expect", "lama-2-7b"], "did you mean llama-2-7b?"),
        (["--tau", 0], "positive threshold"),
        (["--ckpt", "/nowhere"], "no such file or directory"),
    ],
)
def test_bad_flags(flags, expected, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, intervene, *flags, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_lifecycle_held_against_published_values(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    assert call(monkeypatch, lifecycle, *SMALL, "--expect", "llama-2-7b", "--out", out) == 0
    assert "published values of llama-2-7b" in words(capsys.readouterr().out)
    report = json.loads((out / "lifecycle.json").read_text())
    truth = demo_plant().truth
    (birth,) = truth.births
    assert report["birth"]["layer"] == birth.layer and report["birth"]["dims"] == [*birth.dims]
    assert report["birth"]["channels"] == [*birth.channels]
    assert {(h["layer"], h["head"]) for h in report["spread"]["heads"]} == truth.sink_heads
    assert report["death"]["layer"] == truth.death_layer
    found = report["expected"]
    verdicts = {c["quantity"]: c["verdict"] for c in found["checks"]}
    assert verdicts["h dims"] == "differs" and verdicts["perplexity"] == "not measured"
    titles = [h.text for h in ET.fromstring((out / "report.html").read_text()).iter("h2")]
    assert titles[-3:] == ["Expected and found", "Definitions", "Settings"]
    (tmp_path / "other").mkdir()
    assert call(monkeypatch, lifecycle, "--expect", "gpt3", "--out", tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "error: --expect gpt3: has no published values" in error and error.count("\n") == 1
    assert not list((tmp_path / "other").iterdir())
