"""Figures and pages of positions, consistency, existence and length: drawn without a warning for every kind of report."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

import sysout_jax as so
from sysout_jax.analyses.consistency.figures import CONSISTENCY
from sysout_jax.analyses.consistency.page import consistency_summary, write_consistency_report
from sysout_jax.analyses.existence.figures import EXISTENCE, NAME
from sysout_jax.analyses.existence.page import existence_summary, write_existence_report
from sysout_jax.analyses.length.figures import LENGTH
from sysout_jax.analyses.length.page import length_summary, write_length_report
from sysout_jax.analyses.positions.figures import POSITIONS
from sysout_jax.analyses.positions.page import positions_summary, write_positions_report
from sysout_jax.data.demo import byte_tokenizer
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.figures.spec import FigureSpec, draw_figures
from sysout_jax.outliers.tokens import TokenClasses
from sysout_jax.provenance import run_settings
from sysout_jax.reports.script import CONTENT
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.weights import InMemory
from tests.parameters import mostly_endurance
from tests.random_models import random_params

pytestmark = pytest.mark.slow

EVIL = "a$b_{<script>}\n\u4e2d\x00"
SIZE = {"vocab_size": 257, "context_length": 64, "d_model": 16, "d_ff": 24}


def text(sequence: int, position: int) -> str:
    return EVIL


@dataclasses.dataclass(frozen=True)
class Analysis:
    specs: dict[str, FigureSpec[Any]]
    run: Callable[[so.LanguageModel, np.ndarray, float], Any]
    write: Callable[[Path, Any, dict], list[Path]]
    summary: Callable[[Any], str]


ANALYSES = {
    "positions": Analysis(
        POSITIONS,
        so.positions,
        lambda out, report, settings: write_positions_report(out, report, TokenClasses(), text, settings),
        lambda report: positions_summary(report, text),
    ),
    "consistency": Analysis(
        CONSISTENCY,
        so.consistency,
        lambda out, report, settings: write_consistency_report(out, report, text, settings),
        consistency_summary,
    ),
    "existence": Analysis(
        EXISTENCE,
        so.existence,
        lambda out, report, settings: write_existence_report(out, report, text, settings),
        lambda report: existence_summary(report, text),
    ),
    "length": Analysis(
        LENGTH,
        lambda lm, tokens, tau: so.by_length(lm, tokens, tau, sentences=("a\u4e2d$.", "b. c"), lengths=sorted({1, tokens.shape[1]})),
        lambda out, report, settings: write_length_report(out, report, text, settings),
        length_summary,
    ),
}  # fmt: skip


def random(config, name: str) -> so.LanguageModel:
    return so.LanguageModel(config, InMemory(random_params(config, 0)), byte_tokenizer(), name=name)


@cache
def plant() -> so.LanguageModel:
    """Wide enough for weight outliers at τ; its outlier token is the letter A."""
    planted = planted_llama(
        d_ff=2048, vocab_size=257, births=(Birth(1, 2, 1),), outlier_tokens=(65,), placement="both"
    )
    planted.lm.tokenizer = byte_tokenizer()
    return planted.lm


def broken() -> so.LanguageModel:
    lm = random(LlamaConfig(**SIZE, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8), "nan")
    params = jax.tree.map(lambda x: x * np.nan, lm.params)
    return so.LanguageModel(lm.config, InMemory(params), byte_tokenizer(), name="nan")


CASES: dict[str, tuple[Callable[[], so.LanguageModel], tuple[int, int], float]] = {
    "planted": (plant, (2, 128), 1000.0),
    "nothing at τ": (plant, (1, 20), 1e6),
    "many": (lambda: random(Gpt2Config(**SIZE, num_layers=2, num_heads=2), "gpt2"), (2, 24), 1.5),
    "one layer, head and token": (
        lambda: random(LlamaConfig(**SIZE, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2), "one"),
        (1, 1),
        1000.0,
    ),
    "48 layers": (
        lambda: random(LlamaConfig(**SIZE, num_layers=48, num_heads=2, num_kv_heads=1, head_dim=4), "deep"),
        (1, 12),
        3.0,
    ),
    "all NaN": (broken, (2, 9), 1000.0),
}  # fmt: skip


@cache
def report_of(analysis: str, case: str) -> Any:
    build, shape, tau = CASES[case]
    tokens = np.random.default_rng(0).integers(66, 120, shape)
    if case == "planted":
        tokens[:, [0, 40]] = 65
    return ANALYSES[analysis].run(build(), tokens, tau)


@cache
def figures_of(analysis: str, case: str) -> dict[str, Figure]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph or a collapsed layout is a warning
        figures = draw_figures(ANALYSES[analysis].specs, report_of(analysis, case), text)
        for figure in figures.values():
            figure.draw_without_rendering()
    return figures


SLOW_TO_MAKE = [("positions", "many"), ("positions", "all NaN")]
SLOW_TO_MAKE += [("length", case) for case in CASES if case not in ("planted", "nothing at τ")]
EVERY = list(itertools.product(ANALYSES, CASES))


@pytest.mark.parametrize(
    ("analysis", "case"),
    mostly_endurance(EVERY, usual=[case for case in EVERY if case not in SLOW_TO_MAKE]),
)
def test_figures_are_drawn_and_say_one_sentence(analysis, case):
    report, specs = report_of(analysis, case), ANALYSES[analysis].specs
    assert set(figures_of(analysis, case)) <= set(specs)
    for spec in specs.values():
        if spec.applies(report):
            sentence = spec.sentence(report, text)
            assert sentence.endswith(".") and "nan" not in sentence and "None" not in sentence
    summary = ANALYSES[analysis].summary(report)
    assert "nan" not in summary.replace("nan:", "") and summary.count("\n") < 30
    assert report.found == (case in ("planted", "many", "48 layers"))
    assert report.to_dict()["found"] == report.found


@pytest.mark.parametrize(
    ("analysis", "case"),
    mostly_endurance(
        itertools.product(ANALYSES, ["planted", "all NaN"]),
        usual=[("consistency", "all NaN"), *((name, "planted") for name in ANALYSES)],
    ),
)
def test_pages_are_well_formed(analysis, case, tmp_path):
    ANALYSES[analysis].write(tmp_path, report_of(analysis, case), run_settings())
    root = ET.fromstring((tmp_path / "report.html").read_text(encoding="utf-8"))
    ours = ET.fromstring(f"<x>{CONTENT}</x>").text
    assert [script.text for script in root.iter("script")] in ([], [ours])
    assert [h.text for h in root.iter("h2")][-2:] == ["Definitions", "Settings"]
    assert "Layers are counted from 1" in "".join(root.itertext())


def test_a_threshold_that_no_key_can_reach_has_no_column(tmp_path):
    """Of 128 keys; the column said 0."""
    ANALYSES["positions"].write(tmp_path, report_of("positions", "planted"), run_settings())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "keys τ=100<" in page and "keys τ=300" not in page
    assert "Of 128 keys none can take 300, 1000 and 3000 times the mean." in page


@pytest.mark.parametrize("analysis", ["positions", "consistency"])
@pytest.mark.parametrize("case", ["planted", "48 layers", "one layer, head and token"])
def test_layer_axes_count_from_1(analysis, case):
    report = report_of(analysis, case)
    panels = [
        axes
        for figure in figures_of(analysis, case).values()
        for axes in figure.axes
        if axes.get_xlabel() == "layer"
    ]
    assert len(panels) == {"positions": 6, "consistency": 1}[analysis]
    for axes in panels:
        assert axes.get_xlim() == (0.5, report.num_layers + 0.5)


def test_candidates_are_called_candidates():
    for analysis in ANALYSES:
        report = report_of(analysis, "nothing at τ")
        titles = [figure.get_suptitle() for figure in figures_of(analysis, "nothing at τ").values()]
        assert any(title.startswith("no outlier at τ = 1e+06") for title in titles)
        assert "no activation outlier at τ = 1e+06" in ANALYSES[analysis].summary(report)
        for figure in figures_of(analysis, "planted").values():
            title = figure.get_suptitle()
            # attention cannot exceed τ in so short a text
            assert not title or (title.endswith("are shown") and "in attention:" in title)


def test_existence_draws_planted_channels_at_their_place():
    report = report_of("existence", "planted")
    figure = figures_of("existence", "planted")["h"]
    (axes,) = figure.axes
    dims = {e.channel for e in report.h.elements}
    named = {t.get_text() for t in axes.texts} & {str(d) for d in dims}
    assert named and len(dims) == 2
    highest = max((line.get_data_3d() for line in axes.get_lines()), key=lambda d: np.max(d[2]))
    assert int(highest[0][np.argmax(highest[2])]) in dims


@pytest.mark.parametrize("case", ["planted", "many", "48 layers"])
@pytest.mark.parametrize("figure", ["overview", "x-down", "h"])
def test_names_of_tokens_in_landscapes_stay_apart(case, figure, monkeypatch):
    """Boxes of the names as they are drawn; the token of the strongest element keeps its name."""
    report, drawn = report_of("existence", case), figures_of("existence", case)[figure]
    boxes: dict[Any, dict[str, Bbox]] = {}
    draw = Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_gid() == NAME:
            boxes.setdefault(self.axes, {})[self.get_text()] = self.get_window_extent(renderer)
        return draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    drawn.draw(drawn.canvas.get_renderer())
    assert len(boxes) == (2 if figure == "overview" else 1)
    for named in boxes.values():
        assert len(named) >= 5
        assert not any(a.overlaps(b) for a, b in itertools.combinations(named.values(), 2))
    if figure == "h":
        assert any(name.endswith(f" {report.h.elements[0].line}") for name in named)


def test_the_papers_values_are_drawn_beside_ours():
    (axes,) = CONSISTENCY["table"].draw(report_of("consistency", "planted"), text).axes
    (paper,) = (each for each in axes.collections if each.get_label() == "paper, LLaMA2-7B")
    lines = paper.get_segments()
    assert [x for ((x, _), _) in lines] == [100.0, 100.0, 100.0, 95.0]
    ticks = axes.get_yticks()[:4]
    np.testing.assert_allclose([(low + high) / 2 for ((_, low), (_, high)) in lines], ticks)
    assert "100%, 100%, 100%, 95%" in CONSISTENCY["table"].sentence(report_of("consistency", "planted"), text)  # fmt: skip
