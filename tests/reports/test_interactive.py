"""Tokens, curves and tables that move: right values, nothing but our own script, and all of it in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from sysout_jax.reports import interactive
from sysout_jax.reports.interactive import Curves, Heads, Measure, TokenView
from sysout_jax.reports.page import FOLD, Section, Table, page
from sysout_jax.reports.script import CONTENT, source_hash

EVIL = "</script><script>alert(1)</script>]]>&\u2028\ud800"
L, N, T, H = 3, 2, 4, 2
VALUES = np.arange(1.0, 1 + L * N * T).reshape(L, N, T) ** 3
TEXTS = [["a", EVIL, "c", "d"], ["e", "f", "g", "h"]]
TABLE = Table(("name", "count"), tuple((f"row {i}", (7 * i) % 31) for i in range(FOLD + 1)))


def view(**changes):
    heads = Heads("sinks", np.full((L, H), 0.5), np.full((L, H, T), 0.25), "%")
    arguments = {"texts": TEXTS, "measures": (Measure("size", VALUES, " times"),), "heads": heads}
    return TokenView(**arguments | changes)


def html(*blocks) -> str:
    return page("t", "h", [Section("s", blocks or (view(), TABLE))], {}, {"evil": EVIL}, "thing")


def data(block: TokenView) -> dict:
    root = ET.fromstring(f"<x>{block.html()}</x>")
    return json.loads(root.find(".//script").text)


def test_the_data_are_those_of_the_view():
    found = data(view(start=1))
    assert found["texts"] == [["a", EVIL.replace("\ud800", "?"), "c", "d"], TEXTS[1]]
    values = np.array(found["measures"][0]["values"])
    np.testing.assert_allclose(values, VALUES, rtol=5e-3)
    assert found["start"] == 1 and found["measures"][0]["unit"] == " times"
    assert found["heads"]["share"] == [[0.5] * H] * L
    assert np.shape(found["heads"]["values"]) == (L, H, T)


def test_what_is_not_finite_is_null_and_colours_nothing():
    values = VALUES.copy()
    values[0, 0, :2] = np.nan, np.inf
    found = data(view(measures=(Measure("size", values),)))["measures"][0]
    assert found["values"][0][0][:2] == [None, None] and found["high"] == VALUES.max()
    everything = data(view(measures=(Measure("size", np.full_like(values, np.nan)),)))
    assert everything["measures"][0]["high"] == 1.0


def test_a_long_text_is_cut_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(interactive, "MOST_NUMBERS", 16 * L)
    texts = [["x"] * 40] * 3
    long = np.ones((L, 3, 40))
    block = view(texts=texts, measures=(Measure("size", long),), heads=None)
    assert np.shape(data(block)["measures"][0]["values"]) == (L, 1, 16)
    assert "Shown: 1 of 3 sequences, 16 of their 40 tokens each." in block.html()
    assert "Shown" not in view().html()


def test_only_our_own_script_may_run():
    text = html()
    root = ET.fromstring(text)
    policy = root.find(".//meta[@http-equiv='Content-Security-Policy']").get("content")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    scripts = list(root.iter("script"))
    assert [script.get("type") for script in scripts] == ["application/json", None]
    written = re.search(r"<script>(.*)</script>\n</body>", text, re.DOTALL)
    assert rules["script-src"] == source_hash(written[1]) == source_hash(CONTENT)
    style = re.search(r"<style>(.*)</style>", text, re.DOTALL)
    assert rules["style-src"] == source_hash(style[1])
    assert "alert" in text and text.count("<script") == 2  # escaped wherever it stands
    assert not re.search(r"(https?:)?//[a-z]", text)
    for element in root.iter():
        assert not any(name.startswith("on") or name == "style" for name in element.attrib)


def test_a_page_with_nothing_to_move_has_no_script():
    assert "<script" not in html("text", Table(("a",), (("b",),)))


def test_names_have_no_separators_and_counts_do():
    root = ET.fromstring(html(Table(("channel", "times"), ((1229, 1229),))))
    assert [cell.text for cell in root.iter("td")] == ["1229", "1,229"]


def test_long_tables_are_folded():
    root = ET.fromstring(html(TABLE))
    table = root.find(".//details//table")
    assert table.get("class") == "sortable" and len(list(table.iter("tr"))) == FOLD + 2
    assert root.find(".//summary").text == f"Table of {FOLD + 1} rows"


@pytest.mark.parametrize("linear", [False, True])
def test_curves_go_through_their_values(linear):
    values = np.array([1.0, 1e4, np.nan, 100.0])
    block = Curves("c", (("<a>", values), ("zero", np.zeros(4))), linear)
    root = ET.fromstring(block.html())
    groups = root.findall(".//g")
    assert groups[1].find("title").text == "layer 2\n<a>: 10,000\nzero: 0"
    assert groups[2].find("title").text == "layer 3\n<a>: n/a\nzero: 0"
    ys = [float(group.find("circle").get("cy")) for group in (groups[0], groups[3], groups[1])]
    share = (ys[0] - ys[1]) / (ys[0] - ys[2])
    assert share == pytest.approx(99 / 9999 if linear else 0.5, abs=2e-3)
    assert Curves("c", (("a", np.full(3, np.nan)),)).html() == ""


@pytest.fixture(scope="module")
def dom(tmp_path_factory):
    """The page's document after a browser has run its scripts, as text."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("needs chromium (Debian's package)")
    folder = tmp_path_factory.mktemp("browser")

    def load(text: str) -> str:
        (folder / "page.html").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}",
             "--virtual-time-budget=2000", "--dump-dom", (folder / "page.html").as_uri()],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return done.stdout

    return load


def spans(document: str) -> list[str]:
    return re.findall(r'<span[^>]*title="([^"]*)"', document)


@pytest.mark.slow
def test_a_browser_shows_the_tokens_and_runs_nothing_else(dom):
    intruder = "<script>document.title = 'taken over'</script>"
    document = dom(html().replace("</body>", f"{intruder}</body>"))
    assert spans(document) == ["1 times", "8 times", "27 times", "64 times"]
    assert document.count("<rect") == L * H
    assert document.count('title="sort by this column"') == 2
    assert "<title>t</title>" in document and "taken over</title>" not in document


@pytest.mark.slow
def test_a_reader_moves_the_layer_picks_a_head_and_sorts(dom):
    acts = """<script>
    function set(element, value, event) { element.value = value; element.dispatchEvent(new Event(event)); }
    const view = document.querySelector(".tokens"), [what, which] = view.querySelectorAll("select");
    const [layer, head] = view.querySelectorAll("input");
    set(which, 1, "change");
    set(layer, 3, "input");
    const moved = [...view.querySelectorAll(".text span")].map(span => span.textContent + "=" + span.title);
    view.querySelectorAll("rect")[1].dispatchEvent(new Event("click"));
    const picked = [layer.value, head.value, view.querySelectorAll(".chosen").length, view.querySelector(".text span").title];
    const count = document.querySelectorAll("table.sortable button")[1];
    const column = () => [...document.querySelectorAll("table.sortable td.number")].map(cell => cell.textContent);
    count.click();
    const down = column();
    count.click();
    document.body.dataset.found = JSON.stringify({moved, picked, down, up: column()});
    </script></body>"""
    text = re.sub(r'<meta http-equiv="Content-Sec[^>]*>', "", html()).replace("</body>", acts)
    found = re.search(r'data-found="([^"]*)"', dom(text))[1]
    found = json.loads(found.replace("&quot;", '"'))
    rounded = [f"{t}={float(f'{v:.3g}'):,.0f} times" for t, v in zip("efgh", VALUES[2, 1], strict=True)]  # fmt: skip
    assert found["moved"] == rounded
    assert found["picked"] == ["1", "1", 1, "0.25%"]
    numbers = [int(cell) for cell in found["down"]]
    assert numbers == sorted(numbers) or numbers == sorted(numbers)[::-1]
    assert found["up"] == found["down"][::-1]
