"""The command as people call it, on the demo model and on a trained one, small; and its page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from analyze import compression
from sysout_jax.analyses.absorb.search import chosen, search
from sysout_jax.compress.methods import METHODS
from sysout_jax.data.demo import demo_text
from sysout_jax.data.text import text_windows
from sysout_jax.testing import demo_model, demo_plant
from tests.analyze import command
from tests.analyze.command import words

pytestmark = pytest.mark.slow

SMALL = ["--bos", "--seq-len", "96", "--num-seqs", "2", "--seeds", "1"]


def call(monkeypatch, *flags) -> int:
    return command.call(monkeypatch, compression.main, *flags)


def test_outputs(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--methods", "w8_tensor", "w8_channel", "prune_matrix", "--attribute", "w8_tensor"]
    flags += ["--sparsity", 0.3, 0.5, "--expect", "gpt2_default"]
    assert call(monkeypatch, *SMALL, *flags, "--out", out) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "30% pruned per matrix" in words(printed.out)
    protocol = "2 windows of 96 tokens, not overlapping, with BOS, text as it is"
    assert protocol in words(printed.out)
    assert max(map(len, printed.out.split("Report ")[0].splitlines())) <= 100
    found = json.loads((out / "compression.json").read_text(), parse_constant=pytest.fail)
    (model,) = found["models"]
    kinds = [(o["method"], o["sparsity"]) for o in model["outcomes"]]
    assert kinds == [("full", None), ("w8_tensor", None), ("w8_channel", None), ("prune_matrix", 0.3), ("prune_matrix", 0.5)]  # fmt: skip
    assert model["protocol"]["bos"] and model["protocol"]["joined_by"] is None
    assert model["outliers"]["layers"] == [2]
    errors = {o["method"]: o["error"] for o in model["outcomes"]}
    assert errors["w8_tensor"] > 3 * errors["w8_channel"]  # the planted weight costs all others
    truth = demo_plant().truth
    assert model["outliers"]["dims"] == list(truth.dims)
    verdicts = {c["quantity"]: c["verdict"] for c in found["expected"]["checks"]}
    assert verdicts["perplexity on WikiText-2, 50 % pruned"] == "differs"
    assert verdicts["validation loss"] == "not measured"
    root = ET.fromstring((out / "report.html").read_text())
    assert [h.text for h in root.iter("h2")] == [
        "How to read this page", "Perplexity", "Error per layer: planted", "Outliers in full precision: planted",
        "Expected and found", "Definitions", "Settings",
    ]  # fmt: skip
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{n}.{suffix}" for n in ("perplexity", "layers", "kept") for suffix in ("png", "pdf")
    }


def test_two_models_side_by_side(tmp_path, monkeypatch, capsys, shared_data):
    out = tmp_path / "out"
    ckpt = shared_data / "aidreams-260k"
    text = shared_data / "text" / "wikitext2-test.txt"
    flags = ["--ckpt", ckpt, "--compare", f"{ckpt}/", "--text", text, "--calibration", text]
    flags += ["--num-seqs", 3, "--seq-len", 64, "--methods", "w8a8_static", "--attribute", "none"]
    assert call(monkeypatch, *flags, "--join-rows", "--out", out) == 0
    assert "rows joined by '\\n\\n'" in words(capsys.readouterr().out)
    models = json.loads((out / "compression.json").read_text())["models"]
    assert len(models) == 2 and models[0]["outcomes"] == models[1]["outcomes"]
    assert models[0]["calibration"] == "3 windows of 64 tokens, the analysed windows themselves"
    assert {p.name for p in (out / "figures").iterdir()} == {"perplexity.png", "perplexity.pdf"}


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--methods", "w8_tensr"], "did you mean w8_tensor?"),
        (["--methods", "ALL"], "did you mean all?"),
        (["--attribute", "w5"], "--attribute w5: unknown"),
        (["--methods"], "--methods: has no value"),
        (["--sparsity", 1.5], "share from 0 to 1"),
        (["--sparsity", "--methods", "prune_model"], "--sparsity: has no value"),
        (["--alpha", -1], "0 to 1"),
        (["--group-size", 0], "at least 1"),
        (["--calibration", "/nowhere.txt"], "/nowhere.txt"),
        (["--compare", "/nowhere"], "/nowhere: no such"),
        (["--text", "/nowhere.txt"], "/nowhere.txt"),
    ],
)
def test_bad_flags(flags, expected, tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *flags, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_absorbed_prefix_stands_beside(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--methods", "kv4_tensor", "w8a8_first", "--attribute", "none", "--absorb", "\\n"]
    assert call(monkeypatch, *SMALL[1:], *flags, "--out", out) == 0
    models = json.loads((out / "compression.json").read_text())["models"]
    assert [model["model"].endswith("absorbed") for model in models] == [False, True]
    assert [o["method"] for o in models[1]["outcomes"]] == ["full", "kv4_tensor", "w8a8_first"]
    # not the analysed windows
    assert models[0]["calibration"] == "2 windows of 96 tokens, other windows"
    assert models[0]["outcomes"] != models[1]["outcomes"]


def test_a_prefix_is_searched_for(tmp_path, monkeypatch):
    """On what scales are calibrated on, not on the windows whose perplexity is told."""
    out = tmp_path / "out"
    flags = ["--methods", "w8a8_tensor", "--absorb", "search"]
    assert call(monkeypatch, *SMALL[1:], *flags, "--out", out) == 0
    before, after = json.loads((out / "compression.json").read_text())["models"]
    lm = demo_model()
    following = text_windows(lm.tokenizer, demo_text(), 4, 96, False)[2:]
    prefix = chosen(search(lm, following)).prefix
    text = "".join(lm.tokenizer.token(token) for token in prefix)
    assert after["model"] == f"{before['model']}, “{text}” absorbed"
    assert after["outcomes"][0]["perplexity"] != before["outcomes"][0]["perplexity"]


def test_all_methods_and_its_own_windows(tmp_path, monkeypatch):
    out = tmp_path / "out"
    methods = ("w8_tensor", "all")  # with another name all are all
    assert call(monkeypatch, "--seq-len", 32, "--methods", *methods, "--out", out) == 0
    (model,) = json.loads((out / "compression.json").read_text())["models"]
    assert {o["method"] for o in model["outcomes"]} >= set(METHODS) - {"w4_group_kept"}
    assert model["protocol"]["windows"] == compression.Args.NUM_SEQS == 2
    assert model["calibration"] == "2 windows of 32 tokens, other windows"
    assert model["attributions"] == []


def test_a_prefix_that_is_none(tmp_path, monkeypatch, capsys):
    assert call(monkeypatch, *SMALL, "--absorb", "99999", "--out", tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("error: --absorb 99999: the model's vocabulary has")
    assert not (tmp_path / "out").exists()
