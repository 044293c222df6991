"""The report: files that appear all together or not at all, and a page that needs nothing but itself."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures import FIGURES
from sysout_jax.analyses.lifecycle.page import COUNTING, lifecycle_sections, write_lifecycle_report
from sysout_jax.errors import InputError, RunError
from sysout_jax.provenance import run_settings, versions_and_device
from sysout_jax.reports import report as report_module
from sysout_jax.reports.page import Picture, Section, Table, page
from sysout_jax.reports.report import check_out, write_report
from sysout_jax.storage import workspaces
from tests.figures.test_figures import CASES, report_of

EVIL = "<script>alert('&')</script>\x00\ud800"
SECTIONS = (
    Section("First & foremost", ("A paragraph.", Picture("one", 'What "to" see.'))),
    Section("Numbers", (Table(("name", "count"), (("a", 1200), (EVIL, 3)), "A note."),)),
)


def write(
    out: Path, name: str = "thing", figures=("one",), drawing=Figure, **changes
) -> list[Path]:
    arguments = {
        "headline": "It works.",
        "payload": {"value": np.float32(1.5), "missing": float("nan"), "big": float("inf")},
        "sections": SECTIONS,
        "figures": {figure: drawing(figsize=(2, 1)) for figure in figures},
        "settings": {"command": "python -m thing <here>", "tau": 1000.0},
    }
    return write_report(out, name, "A <title>", **arguments | changes)


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def parse(path: Path) -> ET.Element:
    """The page as XML: fails on anything unbalanced or unescaped."""
    return ET.fromstring(path.read_text(encoding="utf-8"))


def test_writes_all_files(tmp_path):
    out = tmp_path / "deep" / "out"
    paths = write(out, figures=("one", "two"))
    assert sorted(str(p.relative_to(out)) for p in paths) == [
        "figures/one.pdf",
        "figures/one.png",
        "figures/two.pdf",
        "figures/two.png",
        "report.html",
        "thing.json",
    ]
    assert all(path.is_file() for path in paths)
    assert sorted(p.name for p in out.iterdir()) == ["figures", "report.html", "thing.json"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_json_is_strict(tmp_path):
    write(tmp_path)

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads((tmp_path / "thing.json").read_text(), parse_constant=refuse)
    assert found["value"] == 1.5 and found["missing"] is None and found["big"] is None
    assert found["settings"] == {"command": "python -m thing <here>", "tau": 1000.0}


def test_page_is_well_formed_and_self_contained(tmp_path):
    write(tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    root = parse(tmp_path / "report.html")
    anchors = {element.get("id") for element in root.iter() if element.get("id")}
    for element in root.iter():
        assert element.tag not in {"script", "link", "iframe", "object"}
        assert (element.get("src") or "data:image/png;base64,").startswith("data:image/png;base64,")
        href = element.get("href")
        assert href is None or href.removeprefix("#") in anchors or (tmp_path / href).is_file()
        assert not any(name.startswith("on") for name in element.attrib)
    assert "url(" not in text and "@import" not in text
    assert not re.search(r"(https?:)?//[a-z]", re.sub(r"base64,[^\"]*", "", text))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "It works." in text and "A &lt;title&gt;" in text and "python -m thing" in text
    assert [h.text for h in root.iter("h2")] == ["First & foremost", "Numbers", "Settings"]
    assert len(list(root.iter("img"))) == 1 == len(list(root.iter("figcaption")))


def test_a_second_run_replaces_and_drops_what_it_no_longer_draws(tmp_path):
    write(tmp_path, figures=("one", "two"))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "figures" / "other.png").write_bytes(b"of another analysis")
    write(tmp_path, figures=("one",), headline="Again.")
    names = set(snapshot(tmp_path))
    assert "figures/two.png" not in names and "figures/two.pdf" not in names
    assert {"notes.txt", "figures/other.png", "figures/one.png", "thing.json"} <= names
    assert "Again." in (tmp_path / "report.html").read_text()


class Broken(Figure):
    def draw(self, renderer):
        raise RuntimeError("the disk is full")


@pytest.mark.parametrize("before", [False, True])
def test_failure_while_drawing_changes_nothing(tmp_path, before):
    out = tmp_path / "out"
    if before:
        write(out, figures=("one", "two"))
    expected = snapshot(tmp_path)
    with pytest.raises(RuntimeError, match="disk is full"):
        write(out, figures=("one", "two"), drawing=Broken)
    with pytest.raises(KeyError):  # a picture that nobody drew
        write(out, figures=())
    assert snapshot(tmp_path) == expected


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_failure_while_moving_changes_nothing(tmp_path, monkeypatch, before, at):
    out = tmp_path / "out" / "deeper"
    if before:
        write(out, figures=("one", "two"))
    expected = snapshot(tmp_path)
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == at + 1:
            raise OSError("gone")
        replace(source, target)

    monkeypatch.setattr(report_module.os, "replace", failing)
    with pytest.raises(RunError, match="not written.*gone.*as it was"):
        write(out, headline="Changed.")
    assert snapshot(tmp_path) == expected


def test_what_a_killed_run_left_goes_with_the_next(tmp_path, monkeypatch):
    """And nothing else: not what only looks like it."""
    with monkeypatch.context() as killed, pytest.raises(RuntimeError):
        killed.setattr(workspaces, "_remove", lambda path: None)
        write(tmp_path / "out", drawing=Broken)
    (left,) = tmp_path.iterdir()
    mine = tmp_path / f"{left.name}-1"
    mine.mkdir()
    write(tmp_path / "out")
    assert not left.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", mine.name}


def test_an_earlier_report_that_cannot_be_read_is_replaced(tmp_path):
    (tmp_path / "thing.json").write_text("[" * 100_000)
    write(tmp_path)
    assert json.loads((tmp_path / "thing.json").read_text())["value"] == 1.5


def test_links_in_the_output_are_replaced_and_not_followed(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("report.html", "thing.json"):
        (tmp_path / name).write_text("elsewhere")
        (out / name).symlink_to(tmp_path / name)
    before = snapshot(tmp_path)
    with pytest.raises(RuntimeError):
        write(out, drawing=Broken)
    assert snapshot(tmp_path) == before and (out / "report.html").is_symlink()
    write(out)
    assert not (out / "report.html").is_symlink()
    assert (tmp_path / "report.html").read_text() == "elsewhere"


def test_a_link_in_the_place_of_the_figures_is_refused(tmp_path):
    out, mine = tmp_path / "out", tmp_path / "mine"
    for folder in (out, mine):
        folder.mkdir()
    (out / "figures").symlink_to(mine)
    with pytest.raises(InputError, match="figures in it is a link"):
        check_out(out)
    assert not list(mine.iterdir())


@pytest.mark.parametrize("name", ["report.html", "thing.json", "figures"])
def test_what_stands_in_the_way_of_a_report_is_said_before(name, tmp_path):
    if name == "figures":
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match=name):
        report_module.check_out(tmp_path)
    with pytest.raises(RunError):
        write(tmp_path)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["../thing", "Thing", "", "a b", "a/b"])
def test_names_that_are_no_file_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="file name"):
        write(tmp_path, name=name)
    with pytest.raises(ValueError, match="file name"):
        write(tmp_path, figures=(name,))
    assert not list(tmp_path.iterdir())


def test_settings_name_versions_device_and_kernel():
    found = versions_and_device()
    assert {"python", "jax", "flax", "numpy", "sysout_jax"} <= set(found["versions"])
    assert found["device"]["platform"] == "cpu"
    settings = run_settings(config={"num_layers": 4}, tau=float("nan"))
    assert settings["kernel"] == "blockwise" and settings["config"] == {"num_layers": 4}
    assert settings["command"] and settings["time"] and settings["tau"] is None
    json.dumps(settings, allow_nan=False)


def lifecycle_page(case: str) -> ET.Element:
    sections = lifecycle_sections(report_of(case), lambda n, t: EVIL)
    return ET.fromstring(page("title", "headline", sections, dict.fromkeys(FIGURES, b""), {}))


def test_lifecycle_report_on_disk(tmp_path):
    paths = write_lifecycle_report(
        tmp_path, report_of("no trace"), lambda n, t: EVIL, run_settings()
    )
    found = json.loads((tmp_path / "lifecycle.json").read_text())
    assert found["found"] is False and found["settings"]["kernel"] == "blockwise"
    assert found["figures"] == ["where", "waves", "activations", "weights", "attention"]
    root = parse(tmp_path / "report.html")
    assert len(list(root.iter("img"))) == 5 and len(paths) == 12
    assert [h.text for h in root.iter("h2")][-2:] == ["Definitions", "Settings"]


def test_lifecycle_tables_count_layers_from_1():
    report, root = report_of("planted"), lifecycle_page("planted")
    assert COUNTING in "".join(root.itertext())
    rows = {
        section.find("h2").text: [
            [cell.text for cell in row.iter("td")]
            for row in section.iter("tr")
            if row.find("td") is not None
        ]
        for section in root.iter("section")
    }
    assert report.birth.layer == 1 and [row[0] for row in rows["Birth"]] == ["2"]
    assert [row[0] for row in rows["Death"]] == [str(report.death.layer + 1)]
    strongest = max(report.spread.heads, key=lambda head: head.mass)
    assert rows["Spread"][0][:2] == [str(strongest.layer + 1), str(strongest.head)]
    assert len(rows["Spread"]) == len(report.spread.heads)
    flagged = report.flags["h"]["1000"]
    assert {int(row[0]): int(row[3]) for row in rows["Activations per layer"]}[2] == flagged[1] > 0
    assert [row[5] for row in rows["Cause"]][:2] == [str(report.cause.baseline.outliers), "0"]


@pytest.mark.parametrize("case", CASES)
def test_lifecycle_page_of_every_kind_of_report(case):
    report, root = report_of(case), lifecycle_page(case)
    text = "".join(root.itertext())
    assert (f"No outlier at τ = {report.tau:g}" in text) == (not report.found)
    assert ("Cause" in text) == (report.cause is not None)
    assert ("NaN or inf" in text) == (case == "all NaN")
    kinds = [script.get("type") for script in root.iter("script")]
    assert kinds == ["application/json", None]  # data, and the one script
