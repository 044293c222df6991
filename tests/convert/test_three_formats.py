"""The same weights as safetensors, GGUF and Orbax give the same report; a real model's report from its GGUF file is what REFERENCE.md says."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.lifecycle.measure import follow
from sysout_jax.data.text import read_text, text_windows
from sysout_jax.engine import Stream
from sysout_jax.errors import RunError
from tests.analyze.command import write_model
from tests.convert.command import run_here
from tests.convert.gguf_writer import write_gguf

pytestmark = pytest.mark.optimised


def report_of(path: Path, tokens: np.ndarray, tau: float = 1000.0) -> dict:
    found = json.loads(so.lifecycle(so.load(path), tokens, tau, cause=False).to_json())
    assert found.pop("model") == str(path)
    return found


def reports_of(path: Path, tokens: np.ndarray, tau: float) -> dict[str, dict]:
    """All that reads activations, weights and attention, with edits and compression; without the name of the model."""
    lm = so.load(path)
    life = so.lifecycle(lm, tokens, tau)
    made = {
        "lifecycle": life,
        "existence": so.existence(lm, tokens, tau, stats=life.stats),
        "consistency": so.consistency(lm, tokens, tau),
        "intervene": so.intervene(lm, tokens, tau, report=life, seeds=1),
        "census": so.census(lm, tokens, tau, count=1),
        "compression": so.compression(lm, tokens, methods=("w8_channel", "prune_matrix")),
    }
    found = {name: report.to_dict() for name, report in made.items()}
    assert [report.pop("model") for report in found.values()] == [str(path)] * len(found)
    return found


@pytest.mark.slow
def test_reports_of_a_small_model_are_equal(tmp_path, monkeypatch):
    hf, file, orbax = write_model(tmp_path / "hf"), tmp_path / "m.gguf", tmp_path / "orbax"
    write_gguf(hf, file)
    assert run_here(monkeypatch, "--src", file, "--out", orbax) == 0
    tokens = np.random.default_rng(0).integers(0, 256, (2, 48), dtype=np.int32)
    first, *others = (reports_of(path, tokens, tau=4.0) for path in (hf, file, orbax))
    assert first["lifecycle"]["found"] and first["lifecycle"]["cause"]
    for other in others:
        for name, report in first.items():
            assert other[name] == report, name


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("how", ["overwritten", "replaced", "removed"])
def test_a_file_that_changes_after_it_was_opened_is_told(tmp_path, kind, how):
    """Layers are read one at a time, in every pass again: some would be of one model and some of another."""
    hf, gguf = write_model(tmp_path / "hf"), tmp_path / "m.gguf"
    write_gguf(hf, gguf)
    file = gguf if kind == "gguf" else hf / "model.safetensors"
    lm = so.load(gguf if kind == "gguf" else hf)
    lm.read("layer_0")
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    if how == "overwritten":
        file.write_bytes(raw)
    else:
        file.rename(tmp_path / "away")
        if how == "replaced":
            file.write_bytes(raw)
    with pytest.raises(RunError, match="has changed since it was opened|can no longer be read"):
        lm.read("layer_1")


@pytest.mark.slow
def test_smollm2_from_its_gguf_file(smollm2, shared_data):
    """The table of REFERENCE.md, layers counted from 1 there: 4 × 512 tokens of WikiText-2, without BOS."""
    lm = so.load(smollm2)
    assert lm.stored_as["mlp/down_proj/kernel"] == "Q4_1"
    text = read_text(shared_data / "text" / "wikitext2-test.txt")
    tokens = text_windows(lm.tokenizer, text, 4, 512, bos=False)
    assert so.perplexity(lm, tokens).value == pytest.approx(25.494, abs=6e-4)
    report = so.lifecycle(lm, tokens, cause=False)
    h = report.stats.h
    largest = {1: 31.9, 2: 273, 3: 938, 4: 935, 9: 765, 10: 395, 11: 112, 12: 25_686, 13: 25_677}
    largest |= {20: 25_587, 28: 25_299, 29: 10_943, 30: 5_063}
    ratios = {1: 27, 2: 186, 3: 549, 4: 487, 9: 286, 10: 141, 11: 39, 12: 8_365, 13: 8_156}
    ratios |= {20: 4_947, 28: 1_749, 29: 701, 30: 236}
    for layer, value in largest.items():
        assert abs(h.top_values[layer - 1, 0]) == pytest.approx(value, rel=2e-3)
        assert h.ratio[layer - 1] == pytest.approx(ratios[layer], rel=2e-2 if layer < 12 else 2e-3)
    assert h.top_channels[:, 0].tolist() == [308] + [507] * 29
    first = report.stats.attention.cumulative[..., 0].mean(1) / 512
    masses = {1: 0.01, 2: 0.01, 3: 0.07, 4: 0.19, 9: 0.15, 10: 0.14, 11: 0.04, 12: 0.0, 13: 0.38}
    masses |= {20: 0.41, 28: 0.47, 29: 0.47, 30: 0.37}
    for layer, mass in masses.items():
        assert first[layer - 1] == pytest.approx(mass, abs=6e-3)
    (event,) = report.birth.events
    assert (event.layer + 1, event.dims) == (12, (507,))
    assert [c.index for c in event.channels] == [1229, 1487]
    assert [c.column_rank for c in event.channels] == [1, 0]
    np.testing.assert_allclose([c.column_ratio for c in event.channels], [195, 198], rtol=3e-3)
    np.testing.assert_allclose([c.share for c in event.channels], [0.73, 0.27], atol=6e-3)
    assert report.death.layer + 1 == 29
    assert [c.index for c in report.death.oppositions[0].channels] == [678]

    _waves_are_those_of_the_reference(report, [lm.tokenizer.token(int(t)) for t in tokens.ravel()])
    # one story at every τ: what L19H8 looks at are the live tokens
    for tau in (100.0, 300.0):
        assert follow(Stream(lm, tokens), report.stats, tau).drain[18, 2] == pytest.approx(0.074, abs=6e-4)  # fmt: skip

    x_down = so.collect(lm, text_windows(lm.tokenizer, text, 2, 256, bos=False)).x_down
    for layer, channel, value in ((3, 90, 82), (10, 200, 85), (12, 1229, 3_010), (29, 678, 2_377)):
        assert x_down.top_channels[layer - 1, 0] == channel
        assert abs(x_down.top_values[layer - 1, 0]) == pytest.approx(value, rel=5e-3)
    assert x_down.ratio[11] == pytest.approx(28_895, rel=1e-4)


def _waves_are_those_of_the_reference(report: so.Lifecycle, texts: list[str]) -> None:
    """Two strong lives of dim 507; layers counted from 0 here."""
    early, late, *weak = report.waves.waves
    assert all(wave.ratio < 150 for wave in weak)
    assert early.dims[0] == late.dims[0] == 507 and (early.above, late.above) == (False, True)
    assert (early.born, early.ended) == ((1, 2), (9, 10)) and (late.born, late.ended) == ((11,), (28, 29))  # fmt: skip
    assert early.ratio == pytest.approx(549, rel=2e-3) and late.ratio == pytest.approx(8_365, rel=2e-3)  # fmt: skip
    assert [c for c, _ in early.births[1].channels] == [90, 430]
    assert [write.channels[0][0] for write in early.deaths] == [200, 222]
    assert [c for c, _ in late.births[0].channels] == [1229, 1487]
    assert late.deaths[0].channels[0][0] == 678
    # two of its tokens live on where others are written again
    assert np.nanmax(early.living[11:]) < 300 < 5000 < early.course[11]
    firsts = {(n, 0) for n in range(4)}
    assert set(late.tokens) == firsts and firsts < set(early.tokens)
    others = Counter(texts[n * 512 + t] for n, t in early.tokens if t)
    assert set(others) == {"_the", "_"}
    # attention per layer as in the table, on the tokens alive there: all heads of layer 13, and L19H8
    assert early.spread.layers[0] == 2 and late.spread.layers == tuple(range(12, 30))
    assert late.spread.mass[0].mean() == pytest.approx(0.38, abs=6e-3)
    at = late.spread.layers.index(18)
    assert late.spread.strongest == (at, 8)
    # its tokens are those over τ: one head has one set of dims and lengths, however it is asked for
    (pooled,) = (head for head in report.spread.heads if (head.layer, head.head) == (18, 8))
    sink = late.spread.sink_at(at, 8)
    assert sink.dims == pooled.dims and sink.update == pytest.approx(pooled.update, rel=1e-5)
    assert late.spread.mass[at, 8] == pytest.approx(0.9999, abs=6e-5)
    assert late.spread.drain_of(at, 8) == pytest.approx(0.074, abs=6e-4)


@pytest.mark.endurance
def test_reports_of_smollm2_are_equal(smollm2, shared_data, tmp_path, monkeypatch):
    for form in ("hf", "orbax"):
        args = ("--src", smollm2, "--out", tmp_path / form, "--format", form)
        assert run_here(monkeypatch, *args) == 0
    text = read_text(shared_data / "text" / "wikitext2-test.txt")
    paths = (smollm2, tmp_path / "hf", tmp_path / "orbax")
    tokens, *cut = (text_windows(so.load(path).tokenizer, text, 2, 128, False) for path in paths)
    assert all((other == tokens).all() for other in cut)
    first, *others = (report_of(path, tokens) for path in paths)
    assert first["found"] and all(other == first for other in others)
