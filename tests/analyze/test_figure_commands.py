"""The commands of the paper's figures and tables: what they write, and one clear line for what cannot work."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import analyze.consistency
import analyze.existence
import analyze.length
import analyze.positions
from tests.analyze.command import call, tree

PROMPT = "Summer is warm. Winter is cold.\n"


@dataclass(frozen=True)
class Command:
    main: Callable[[], None]
    figures: frozenset[str]  # on a prompt that holds no outlier
    fields: tuple[str, ...]  # of its JSON


COMMANDS = {
    "positions": Command(
        analyze.positions.main,
        frozenset("activations tokens channels close-ups weights matrices keys heads".split()),
        ("h", "x_down", "keys", "matrices", "all_tokens"),
    ),
    "consistency": Command(
        analyze.consistency.main,
        frozenset({"table", "layers"}),
        ("rows", "at_tau", "at_100", "at_3000", "candidate", "ratios", "missing"),
    ),
    "existence": Command(
        analyze.existence.main,
        frozenset({"overview", "x-down", "w-down", "h"}),
        ("x_down", "w_down", "h", "attention", "shown"),
    ),
    "length": Command(
        analyze.length.main,
        frozenset({"sentences-h", "sentences-attention", "sweep"}),
        ("sentences", "sweep", "level", "classes"),
    ),
}


@pytest.fixture(params=COMMANDS)
def name(request) -> str:
    return request.param


def check_outputs(out: Path, name: str, figures: frozenset[str] | None = None) -> dict:
    report = json.loads(
        (out / f"{name}.json").read_text(), parse_constant=lambda c: pytest.fail(f"{c} in JSON")
    )
    assert figures is None or set(report["figures"]) == figures
    for figure in report["figures"]:
        assert (out / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{figure}.pdf").read_bytes().startswith(b"%PDF")
    page = (out / "report.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "http://" not in page and "https://" not in page
    assert page.count("<img") == len(report["figures"])
    assert {p.name for p in out.iterdir()} == {f"{name}.json", "report.html", "figures"}
    return report


def test_a_model_without_outliers(name, model, tmp_path, monkeypatch, capsys):
    out, command = tmp_path / "out", COMMANDS[name]
    flags = [] if name == "length" else ["--prompt", PROMPT]
    assert call(monkeypatch, command.main, "--ckpt", model, "--out", out, *flags) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # quiet in a pipe
    assert "no activation outlier at τ = 1000" in printed.out
    assert printed.out.count("\n") <= 30
    report = check_outputs(out, name, command.figures)
    assert set(command.fields) <= set(report)
    assert report["found"] is False
    assert report["settings"]["kernel"] == "blockwise"
    assert "no activation outlier at τ = 1000" in (out / "report.html").read_text()


def test_the_planted_demo(name, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    few = ["--seq-len", 32 if name == "length" else 200, "--num-seqs", 2]
    few += ["--expect", "llama-2-7b"]
    assert call(monkeypatch, COMMANDS[name].main, "--out", out, "--bos", *few) == 0
    printed = capsys.readouterr().out
    assert "planted model" in printed and "published values of llama-2-7b" in printed
    report = check_outputs(out, name)
    assert report["found"] is True
    # differences are findings: stored and on the page, status 0
    verdicts = {c["quantity"]: c["verdict"] for c in report["expected"]["checks"]}
    known = (
        "consistency W_down, x_down by feature (%)"
        if name == "consistency"
        else "birth layer, from 0"
    )
    assert verdicts[known] in ("match", "differs") and verdicts["perplexity"] == "not measured"
    titles = re.findall("<h2[^>]*>(.*?)</h2>", (out / "report.html").read_text())
    assert titles[-3:] == ["Expected and found", "Definitions", "Settings"]


def bad_flags(tmp_path: Path) -> dict[str, tuple[list, str]]:
    (tmp_path / "file").write_text("here")
    (tmp_path / "words.txt").write_text("Summer is warm. " * 20)
    (tmp_path / "empty.txt").write_text(" \n")
    words = ["--text", tmp_path / "words.txt"]
    return {
        "missing path": ([*words, "--ckpt", tmp_path / "nowhere"], "no such file or directory"),
        "missing text": (["--text", tmp_path / "nowhere.txt"], "No such file"),
        "empty text": (["--text", tmp_path / "empty.txt"], "holds no text"),
        "windows longer than the context": ([*words, "--seq-len", 65], "context is 64"),
        "negative tau": ([*words, "--tau", -1], "positive threshold"),
        "output is a file": ([*words, "--out", tmp_path / "file"], "is a file"),
        "unknown expectation": (["--expect", "lama-2-7b"], "did you mean llama-2-7b?"),
        "class lists that are no JSON": (
            [*words, "--token-classes", tmp_path / "file"],
            "not JSON",
        ),
    }


@pytest.mark.parametrize("case", [
    "missing path", "missing text", "empty text", "windows longer than the context", "negative tau", "output is a file",
    "unknown expectation",
])  # fmt: skip
def test_bad_flags(name, case, model, tmp_path, monkeypatch, capsys):
    flags, expected = bad_flags(tmp_path)[case]
    before = tree(tmp_path)
    status = call(monkeypatch, COMMANDS[name].main, "--ckpt", model, "--out", tmp_path / "out", *flags)  # fmt: skip
    error = capsys.readouterr().err
    assert status == 2
    assert expected in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_class_lists_that_are_no_json(model, tmp_path, monkeypatch, capsys):
    (tmp_path / "lists.json").write_text("here")
    before = tree(tmp_path)
    flags = ["--ckpt", model, "--token-classes", tmp_path / "lists.json", "--out", tmp_path / "out"]
    assert call(monkeypatch, analyze.positions.main, *flags) == 2
    error = capsys.readouterr().err
    assert "not JSON" in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_missing_tokenizer(name, model, tmp_path, monkeypatch, capsys):
    (model / "tokenizer.json").unlink()
    before = tree(tmp_path)
    assert call(monkeypatch, COMMANDS[name].main, "--ckpt", model, "--out", tmp_path / "out") == 2
    assert "has no tokenizer.json" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_the_real_model(name, shared_data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--ckpt", shared_data / "aidreams-260k", "--out", out, "--seq-len", 32]
    flags += ["--text", shared_data / "text" / "wikitext2-test.txt"]
    assert call(monkeypatch, COMMANDS[name].main, *flags) == 0
    assert check_outputs(out, name)["found"] is False
