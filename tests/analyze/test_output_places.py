"""Where no report could be written, every analysis says so before it opens a model."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from analyze import compare, variants
from analyze.places import check_out
from sysout_jax.commands import cli
from sysout_jax.errors import InputError
from tests.analyze.command import call, tree

ANALYSES = [
    "absorb", "all", "census", "compression", "consistency", "existence", "intervene", "length", "lifecycle", "positions", "variants",
]  # fmt: skip
PROBLEMS = {
    "dangling": "leads nowhere",
    "loop": "leads nowhere",
    "x" * 300: "name too long",
    "file/below": "is a file",
    "figures-is-a-file": "figures: is a file",
    "page-is-a-directory": "report.html in it is a directory",
}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem[:20])
@pytest.mark.parametrize("name", ANALYSES)
def test_a_place_is_refused_before_the_model_is_opened(
    name, problem, tmp_path, monkeypatch, capsys
):
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "figures-is-a-file").mkdir()
    (tmp_path / "figures-is-a-file" / "figures").write_text("mine")
    (tmp_path / "page-is-a-directory" / "report.html").mkdir(parents=True)
    before = tree(tmp_path)
    main = importlib.import_module(f"analyze.{name}").main
    model = ("--ckpt", tmp_path / "no-model")
    assert call(monkeypatch, main, *model, "--out", tmp_path / problem) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --out ") and PROBLEMS[problem] in said and said.count("\n") == 1
    assert tree(tmp_path) == before


#: Of a run `run`, a converted model `model`, both below `all`, and a report in `run/report`.
NOT_THERE = {
    "the model": ("all/model", "all/model"),
    "the model by a link": ("all/model", "link"),
    "the model as the directory of figures": ("all/figures", "all"),
    "the run": ("all/run", "all/run"),
    "the run of a checkpoint": ("all/run/checkpoints/2", "all/run"),
    "the checkpoint": ("all/run/checkpoints/2", "all/run/checkpoints/2"),
    "inside the checkpoint": ("all/run/checkpoints/2", "all/run/checkpoints/2/new"),
    "among the checkpoints": ("all/run", "all/run/checkpoints/new"),
    "among the weights": ("all/model", "all/model/params/layer_0"),
}
THERE = {
    "inside the run": ("all/run", "all/run/report"),
    "a new directory inside the model": ("all/model", "all/model/new/er"),
    "around the model": ("all/model", "all"),
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Directories that look like a run and a converted model, without weights."""
    for folder in ("run/report", "run/checkpoints/2", "model/params/layer_0", "figures"):
        (tmp_path / "all" / folder).mkdir(parents=True)
    for model in ("run", "model", "figures"):
        (tmp_path / "all" / model / "model.json").write_text("{}")
    (tmp_path / "link").symlink_to("all/model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", NOT_THERE)
@pytest.mark.parametrize("name", ANALYSES)
def test_a_report_does_not_come_among_the_files_of_a_model_that_is_read(
    name, case, places, monkeypatch, capsys
):
    before = tree(places)
    main = importlib.import_module(f"analyze.{name}").main
    ckpt, out = NOT_THERE[case]
    assert call(monkeypatch, main, "--ckpt", ckpt, "--out", out) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: --out {out}: ") and said.count("\n") == 1
    assert "is read" in said or "lies among the weights" in said
    assert tree(places) == before


@pytest.mark.parametrize("case", THERE)
def test_where_else_a_report_may_come(case, places):
    ckpt, out = THERE[case]
    before = tree(places)
    assert str(check_out(Path(out), ["lifecycle.json"], ckpt)) == out
    assert tree(places) == before


def test_every_part_of_an_index_of_reports_is_looked_at(places, monkeypatch, capsys):
    (places / "all" / "model").rename(places / "all" / "positions")
    flags = ("--ckpt", "all/positions", "--out", "all")
    assert call(monkeypatch, importlib.import_module("analyze.all").main, *flags) == 2
    assert capsys.readouterr().err.startswith("error: --out all/positions: ")


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("lifecycle", ("--data", "all/data", "--out", "all/data")),
        ("compression", ("--compare", "all/model", "--out", "all/model")),
        ("variants", ("--ckpt", "planted", "--compare", "all/run", "--out", "all/run")),
        ("variants", ("--ckpt", "all/run", "--steps", "all", "--out", "all/run")),
        ("variants", ("--ckpt", "all", "--over", "seed", "--out", "all")),
    ],
)
def test_nor_among_other_things_that_are_read(name, flags, places, monkeypatch, capsys):
    (places / "all" / "data").mkdir()
    assert call(monkeypatch, importlib.import_module(f"analyze.{name}").main, *flags) == 2
    assert "is read" in capsys.readouterr().err


def status(monkeypatch, main, *flags) -> int:
    """Of a command that reads reports and no model."""
    monkeypatch.setattr("sys.argv", ["analyze", *map(str, flags)])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    return int(end.value.code or 0)


@pytest.mark.parametrize("out", ["second", "second/figures/.."])
def test_a_comparison_does_not_replace_the_page_of_what_it_compares(
    out, tmp_path, monkeypatch, capsys
):
    for name in ("first", "second"):
        (tmp_path / name / "figures").mkdir(parents=True)
        (tmp_path / name / "lifecycle.json").write_text("{}")
        (tmp_path / name / "report.html").write_text("mine")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for runs in (("first", "second"), ("first/lifecycle.json", "second/lifecycle.json")):
        assert status(monkeypatch, compare.main, "--runs", *runs, "--out", out) == 2
        assert "is read" in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_sweeps_that_are_shown_again_stay(tmp_path, monkeypatch, capsys):
    read = [tmp_path / name / "variants_sweep.json" for name in ("a", "b")]
    for file in read:
        file.parent.mkdir()
        file.write_text("{}")
    before = tree(tmp_path)
    assert status(monkeypatch, variants.main, "--read", *read, "--out", tmp_path / "b") == 2
    assert "is read" in capsys.readouterr().err
    assert tree(tmp_path) == before


#: As the first version wrote them, and all later ones begin and end.
EARLIER_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<title>Lifecycle</title>
<style>
:root { --ink: #1a1a1a; --soft: #5a5a5a; --line: #d5d5d5; --tint: #f3f5f7; }
* { box-sizing: border-box; }
"""
EARLIER_JSON = """{
  "found": false,
  "figures": [
    "where"
  ],
  "settings": {
    "versions": {}
  }
}
"""
FOREIGN = {
    "report.html": "notes",
    "{}.json": EARLIER_JSON.replace("figures", "drawings"),
    "figures/where.png": "mine",
    "figures/mine.pdf": "mine",
}


@pytest.mark.parametrize("file", FOREIGN)
@pytest.mark.parametrize("name", ANALYSES)
def test_what_no_report_of_ours_has_written_stays(name, file, tmp_path, monkeypatch, capsys):
    mine = tmp_path / "mine" / file.format(name)
    mine.parent.mkdir(parents=True)
    mine.write_text(FOREIGN[file])
    before = tree(tmp_path)
    main = importlib.import_module(f"analyze.{name}").main
    assert call(monkeypatch, main, "--ckpt", "planted", "--out", tmp_path / "mine") == 2
    said = capsys.readouterr().err
    assert f"{file.format(name)} in it is not from a report of ours" in said
    assert said.startswith("error: --out ") and said.count("\n") == 1
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "flags", "file"),
    [
        ("lifecycle", ("--export", "npz"), "statistics.npz"),
        ("lifecycle", ("--export", "csv"), "mask.json"),
        ("variants", ("--steps", "all"), "variants_steps.json"),
        ("variants", ("--over", "seed"), "variants_sweep.md"),
        ("all", (), "positions/report.html"),
    ],
)
def test_nor_is_what_only_some_flags_write_replaced(
    name, flags, file, tmp_path, monkeypatch, capsys
):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    main = importlib.import_module(f"analyze.{name}").main
    assert call(monkeypatch, main, *flags, "--out", tmp_path) == 2
    assert f"{Path(file).name} in it is not from a report of ours" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_comparison_neither(tmp_path, monkeypatch, capsys):
    (tmp_path / "compare.json").write_text("{}")
    assert status(monkeypatch, compare.main, "--runs", "a", "b", "--out", tmp_path) == 2
    assert "compare.json in it is not from a report of ours" in capsys.readouterr().err


def test_a_link_is_nobodys_report(tmp_path):
    (tmp_path / "page").write_text(EARLIER_PAGE)
    (tmp_path / "report.html").symlink_to("page")
    with pytest.raises(InputError, match="report.html in it is not"):
        check_out(tmp_path, ["lifecycle.json"])


@pytest.mark.parametrize("left", ["report.html", "lifecycle.json"])
def test_a_report_of_an_earlier_version_may_be_replaced(left, tmp_path):
    """Also where only a part of it is left."""
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "where.png").write_bytes(b"drawn")
    (tmp_path / left).write_text(EARLIER_PAGE if left == "report.html" else EARLIER_JSON)
    check_out(tmp_path, ["lifecycle.json", "mask.json"])


def test_a_report_is_replaced_by_the_next(model, tmp_path, monkeypatch):
    """And stands beside that of another analysis, whose page it replaces."""
    for name in ("lifecycle", "lifecycle", "consistency"):
        main = importlib.import_module(f"analyze.{name}").main
        flags = ("--ckpt", model, "--prompt", "Summer is warm.", "--out", tmp_path / "out")
        assert call(monkeypatch, main, *flags) == 0
    (tmp_path / "out" / "report.html").unlink()
    assert call(monkeypatch, main, *flags) == 0
