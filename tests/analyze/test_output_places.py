"""Where no report could be written, every analysis says so before it opens a model."""

from __future__ import annotations

import importlib

import pytest

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
