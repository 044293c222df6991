"""Every figure that a report writes says what it was made from."""

from __future__ import annotations

import re
from pathlib import Path

import sysout_jax
from sysout_jax.figures.stamp import ROOM, origin, stamp
from sysout_jax.figures.style import body, new_figure
from sysout_jax.words import named, runs


def settings(**flags):
    return {"models": ["models/tiny"], "flags": {"tau": 1000.0} | flags, "sequences": 2, "length": 1024}  # fmt: skip


def test_the_line_names_model_text_and_threshold():
    assert origin(settings()) == "tiny · the package's text, 2 × 1,024 tokens · τ = 1000"
    assert origin(settings(text="some/where.txt")).startswith("tiny · where.txt, 2 ×")
    assert "prompt “a\\$b” " not in origin(settings(prompt="a$b"))
    assert "prompt “a\\$b”, 2" in origin(settings(prompt="a$b"))
    assert origin({"a": 1}) == ""


def test_many_models_are_counted():
    many = settings() | {"models": [f"x/m{i}" for i in range(5)]}
    assert origin(many).startswith("m0, m1, m2 and 2 other models · ")


def test_the_line_is_on_the_figure_and_takes_no_room_from_it():
    figure = new_figure(2.0)
    figure.subplots()
    assert stamp(figure, "a line") is figure
    assert figure.get_supxlabel() == "a line" and figure.get_figheight() == 2.0 + ROOM
    assert stamp(new_figure(2.0), "").get_figheight() == 2.0


def test_the_line_is_apart_from_a_legend_of_all_panels():
    """At the lower edge of the figure itself it stood on the line."""
    figure = new_figure(2.0, "a remark")
    part = body(figure)
    axes = part.subplots()
    axes.plot([0, 1], label="a long name of a curve")
    axes.set_xlabel("something")
    legend = part.legend(loc="outside lower center")
    stamp(
        figure,
        "a line so long that it reaches the middle of the figure, and further, to the left of it",
    )
    figure.draw_without_rendering()
    line, *others = (t.get_window_extent() for t in (figure._supxlabel, legend, axes.xaxis.label))
    assert line.x0 < legend.get_window_extent().x1
    assert all(line.y1 < other.y0 for other in others) and not others[0].overlaps(others[1])


def test_legends_at_the_lower_edge_are_not_the_figures_own():
    sources = list((Path(sysout_jax.__file__).parent / "analyses").rglob("*.py"))
    texts = [source.read_text() for source in sources]
    assert sum("outside lower" in text for text in texts) >= 5
    assert not [text for text in texts if re.search(r"figure\.legend\([^)]*\)?[^)]*outside lower", text)]  # fmt: skip


def test_names_in_words():
    assert named("dim", [507]) == "dim 507" and named("dim", [1, 2]) == "dims 1, 2"
    assert named("dim", range(6)) == "dims 0, 1, 2, 3 and 2 more"
    assert runs([4, 2, 3, 9]) == [(2, 4), (9, 9)]
