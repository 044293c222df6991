"""Every figure that a report writes says what it was made from."""

from __future__ import annotations

from sysout_jax.figures.select import named, runs
from sysout_jax.figures.stamp import ROOM, origin, stamp
from sysout_jax.figures.style import new_figure


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


def test_names_in_words():
    assert named("dim", [507]) == "dim 507" and named("dim", [1, 2]) == "dims 1, 2"
    assert named("dim", range(6)) == "dims 0, 1, 2, 3 and 2 more"
    assert runs([4, 2, 3, 9]) == [(2, 4), (9, 9)]
