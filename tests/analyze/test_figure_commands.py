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
import sysout_jax as so
from sysout_jax.analyses.length.measure import SENTENCES
from sysout_jax.testing import demo_plant
from tests.analyze.command import call, tree, words
from tests.parameters import mostly_endurance

pytestmark = pytest.mark.slow

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

#: Reading a text at every length takes longest.
QUICK = mostly_endurance(COMMANDS, usual=[name for name in COMMANDS if name != "length"])


@pytest.fixture(params=COMMANDS)
def name(request, monkeypatch) -> str:
    # two of the four sentences, which are read at a length of their own each
    monkeypatch.setitem(so.by_length.__kwdefaults__, "sentences", SENTENCES[:2])
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


@pytest.mark.parametrize("name", QUICK, indirect=True)
def test_a_model_without_outliers(name, model, tmp_path, monkeypatch, capsys):
    out, command = tmp_path / "out", COMMANDS[name]
    flags = [] if name == "length" else ["--prompt", PROMPT]
    assert call(monkeypatch, command.main, "--ckpt", model, "--out", out, *flags) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # quiet in a pipe
    assert "no activation outlier at τ = 1000" in words(printed.out)
    assert printed.out.count("\n") <= 34
    report = check_outputs(out, name, command.figures)
    assert set(command.fields) <= set(report)
    assert report["found"] is False
    assert report["settings"]["kernel"] == "blockwise"
    assert "no activation outlier at τ = 1000" in (out / "report.html").read_text()


def check_truth(name: str, report: dict) -> None:
    """What a command reports of the demo is what was planted."""
    truth = demo_plant().truth
    (birth,) = truth.births
    alive = list(range(birth.layer, truth.death_layer))
    if name == "positions":
        assert report["h"]["layers"] == alive
        assert {int(dim) for layer in report["h"]["channels"] for dim in layer} == set(birth.dims)
        assert report["x_down"]["layers"] == [birth.layer, truth.death_layer]
        assert [int(c) for c in report["x_down"]["channels"][birth.layer]] == [*birth.channels]
        assert {text for text, *_ in report["h"]["tokens"]["texts"]} == {"<s>", "\\n"}
        down = [
            m for m in report["matrices"] if m["module"] == "down" and m["layer"] == birth.layer
        ]
        assert [m["column"] for m in down] == [*birth.channels]
        share = report["keys"]["share"]
        sinks = {(l, h) for l in range(8) for h in range(8) if (share[l][h] or 0) > 0.8}
        assert sinks == truth.sink_heads
    elif name == "existence":
        assert report["h"]["layer"] in alive
        assert {e["channel"] for e in report["h"]["elements"]} == set(birth.dims)
        assert report["w_down"]["layer"] == birth.layer
        assert {e["channel"] for e in report["w_down"]["elements"]} == set(birth.channels)
        assert {e["line"] for e in report["w_down"]["elements"]} == set(birth.dims)
    elif name == "consistency":
        assert report["candidate"]["average"]["overlap"][0]["value"] == 1.0  # columns, channels
        sizes = report["at_tau"]["second_size"]
        assert [l for l, size in enumerate(sizes[0]) if size] == [birth.layer, truth.death_layer]
        assert [l for l, size in enumerate(sizes[1]) if size] == alive
    else:
        longest = max((p for p in report["sweep"] if p["bos"]), key=lambda p: p["length"])
        assert [l for l, ratio in enumerate(longest["ratio"]) if ratio > 1000] == alive
        by_class = dict(zip(report["classes"], longest["outlier_tokens"], strict=True))
        assert by_class["initial"] == 1 and by_class["weak semantic"] == by_class["other"] == 0


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
    check_truth(name, report)
    printed = printed.split("Report ")[0]
    assert max(map(len, printed.splitlines())) <= 100
    verdicts = {c["quantity"]: c["verdict"] for c in report["expected"]["checks"]}
    known = (
        "consistency x_down, h by sequence (%)" if name == "consistency" else "birth layer, from 0"
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
    usual = {"--ckpt": model, "--out": tmp_path / "out"}
    rest = [word for flag in usual.keys() - set(flags) for word in (flag, usual[flag])]
    status = call(monkeypatch, COMMANDS[name].main, *rest, *flags)
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
    assert "not readable JSON" in error and error.count("\n") == 1
    assert tree(tmp_path) == before


def test_missing_tokenizer(name, model, tmp_path, monkeypatch, capsys):
    (model / "tokenizer.json").unlink()
    before = tree(tmp_path)
    assert call(monkeypatch, COMMANDS[name].main, "--ckpt", model, "--out", tmp_path / "out") == 2
    assert "has no tokenizer (tokenizer.json" in capsys.readouterr().err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", QUICK, indirect=True)
def test_the_real_model(name, shared_data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    flags = ["--ckpt", shared_data / "aidreams-260k", "--out", out, "--seq-len", 32]
    flags += ["--text", shared_data / "text" / "wikitext2-test.txt"]
    assert call(monkeypatch, COMMANDS[name].main, *flags) == 0
    assert check_outputs(out, name)["found"] is False
