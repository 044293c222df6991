"""The census against planted writers, whose effects are computed a second time from weights edited by hand."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.census.figures import EDIT_LOOKS, effects
from sysout_jax.analyses.census.page import _effects, _reading, summary
from sysout_jax.analyses.census.writers import find_writers
from sysout_jax.analyses.measured import measured_by_census
from sysout_jax.interventions.weights import CONTROLLED, CONTROLS, EDITS
from sysout_jax.numerics.intervals import Interval
from sysout_jax.testing import planted_llama
from sysout_jax.weights import InMemory

TWIN = 7  # channel that undoes what the planted one writes


def with_params(lm: so.LanguageModel, params: dict) -> so.LanguageModel:
    return dataclasses.replace(lm, source=InMemory(params))


@pytest.fixture(scope="module")
def masked():
    """A planted outlier and its twin of the opposite sign: one channel writes what the other takes back at once."""
    planted = planted_llama(3, num_layers=4, d_model=64, d_ff=96, context_length=128, death_layer=None, vocab_size=32)  # fmt: skip
    (birth,) = planted.truth.births
    (channel,), (row,) = birth.channels, birth.dims
    assert channel != TWIN
    params = jax.tree.map(np.array, planted.lm.params)
    mlp = params[f"layer_{birth.layer}"]["mlp"]
    for reader in ("gate_proj", "up_proj"):
        mlp[reader]["kernel"][:, TWIN] = mlp[reader]["kernel"][:, channel]
    down = mlp["down_proj"]["kernel"]
    down[TWIN] = 0
    down[TWIN, row] = -down[channel, row]
    lm = with_params(planted.lm, params)
    tokens = planted.tokens(2, 64)
    return lm, tokens, (birth.layer, row, channel), so.census(lm, tokens, count=2, seeds=2)


def test_sentences_stand_beside_what_they_explain(masked):
    """Brackets and controls are in the page's table, not in the terminal's; of one sequence there are no intervals."""
    *_, result = masked
    told, page = summary(result), _effects(result)
    assert "rackets" not in told and "ontrols" not in told and "Loss unedited: " in told
    assert (
        "In brackets: 95%" in page.note
        and "[" in str(page.rows)
        and "Controls: mean over 2 seeds" in page.note
    )
    alone = _effects(dataclasses.replace(result, num_sequences=1))
    assert "rackets" not in alone.note and "Controls: mean over 2 seeds" in alone.note


def test_no_mark_is_cut_off():
    """One effect is far beyond the others: the axis has room behind it, on its own scale."""

    def effect(edit: str, value: float):
        change = SimpleNamespace(value=value, low=np.nan, high=np.nan)
        return SimpleNamespace(edit=edit, loss_change=change)

    sizes = dict(zip(EDIT_LOOKS, (0.4, 0.03, 0.02, 3.4), strict=True))
    entry = SimpleNamespace(
        writer=SimpleNamespace(layer=11, row=507, column=1229),
        controls=[],
        effects=[effect(edit, size) for edit, size in sizes.items()],
    )
    (axes,) = effects(SimpleNamespace(entries=[entry])).axes
    right = axes.transData.transform((3.4, 0))[0]
    assert right < axes.bbox.x1 - 0.03 * axes.bbox.width


def loss(lm: so.LanguageModel, tokens, layer: int, edit) -> float:
    """Of the model whose W_down (F, D) of a layer went through `edit`: logits of a whole pass, −log softmax in float64."""
    params = jax.tree.map(np.array, lm.params)
    edit(params[f"layer_{layer}"]["mlp"]["down_proj"]["kernel"])
    logits, _ = so.capture(with_params(lm, params), tokens, ("h",))
    logits = np.asarray(logits, np.float64)[:, :-1]
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    right = np.take_along_axis(logits, np.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    return float((log_sum - right).mean())


def set_to(kernel, place, factor=0.0):
    kernel[place] *= factor


def test_both_planted_writers_are_found_first(masked):
    _, _, (layer, row, channel), found = masked
    places = {entry.writer.place for entry in found.entries[:2]}
    assert places == {(layer, row, channel), (layer, row, TWIN)}
    weights = [entry.writer.weight for entry in found.entries[:2]]
    assert weights[0] == -weights[1] != 0
    assert {entry.writer.write_rank for entry in found.entries[:2]} == {1}  # as large as each other
    assert measured_by_census(found)["strongest writers (layer from 0, row, column)"][:2] == tuple(
        entry.writer.place for entry in found.entries[:2]
    )


def test_effects_are_those_of_weights_edited_by_hand(masked):
    lm, tokens, (layer, row, _), found = masked
    base = loss(lm, tokens, layer, lambda kernel: None)
    assert found.loss == pytest.approx(base, rel=1e-5)
    for entry in found.entries[:2]:
        column = entry.writer.column
        by_hand = {
            "element": lambda kernel, c=column: set_to(kernel, (c, row)),
            "half": lambda kernel, c=column: set_to(kernel, (c, row), 0.5),
            "column": lambda kernel, c=column: set_to(kernel, c),
            "row": lambda kernel: set_to(kernel, (slice(None), row)),
        }
        assert list(EDITS) == list(by_hand) == [effect.edit for effect in entry.effects]
        for name, edit in by_hand.items():
            want = loss(lm, tokens, layer, edit) / base - 1
            assert entry.effect(name).loss_change.value == pytest.approx(want, abs=2e-5), name


def test_the_pair_undoes_itself(masked):
    lm, tokens, (layer, row, channel), found = masked
    pairs = [pair for pair in found.pairs if (pair.first, pair.second) == (0, 1)]
    elements, columns = pairs
    assert (elements.edit, columns.edit) == ("element", "column")
    base = loss(lm, tokens, layer, lambda kernel: None)
    want = loss(lm, tokens, layer, lambda kernel: set_to(kernel, ([channel, TWIN], row))) / base - 1
    assert elements.together.loss_change.value == pytest.approx(want, abs=2e-5)
    alone = [entry.effect("element").loss_change.value for entry in found.entries[:2]]
    # each alone leaves an outlier that nothing takes back; together they leave nothing
    assert min(abs(change) for change in alone) > 20 * abs(elements.together.loss_change.value)
    assert elements.excess.value == pytest.approx(want - sum(alone), abs=1e-4)
    assert found.entries[0].effect("element").ratio > 1000 > 100 > found.largest


def test_controls_leave_the_writer_alone(masked):
    _, _, _, found = masked
    first = found.entries[0]
    assert [(c.effect.edit, c.kind) for c in first.controls] == [
        (edit, kind) for edit in CONTROLLED for kind in CONTROLS
    ]
    harmless = [c.effect for c in first.controls if c.kind == "random"]
    assert all(len(effect.perplexity.seeds) == 2 for effect in harmless)
    change = abs(first.effect("element").loss_change.value)
    assert all(abs(e.loss_change.value) < change / 5 for e in harmless if e.edit == "element")


def test_ranks_are_those_of_the_matrices(masked):
    lm, tokens, _, _ = masked
    stats = so.collect(lm, tokens)
    kernels = [np.abs(lm.params[f"layer_{l}"]["mlp"]["down_proj"]["kernel"]) for l in range(4)]
    columns = np.stack([k.max(1) / k.mean(1) for k in kernels])
    rows = np.stack([k.max(0) / k.mean(0) for k in kernels])
    for writer in find_writers(lm, stats, 3):
        size = kernels[writer.layer][writer.column, writer.row]
        assert abs(writer.weight) == size
        assert writer.column_ratio == pytest.approx(columns[writer.layer, writer.column], rel=1e-5)
        assert writer.column_rank == 1 + (columns > columns[writer.layer, writer.column]).sum()
        assert writer.row_rank == 1 + (rows > rows[writer.layer, writer.row]).sum()


def test_a_reading_needs_an_interval():
    """Together 253 %, alone 51 % in all; with one sequence nothing is said to stand in for the other."""

    def reading(low: float, high: float) -> str:
        together = SimpleNamespace(loss_change=SimpleNamespace(value=2.53))
        return _reading(SimpleNamespace(together=together, excess=Interval(2.02, low, high, ())))

    assert reading(1.5, 2.5) == "+51% as the sum of both alone: each stands in for the other"
    assert reading(np.nan, np.nan) == reading(-1.0, 5.0) == "+51% as the sum of both alone"


def test_a_window_of_one_token_is_refused_before_any_pass(masked):
    lm = masked[0].with_passes(on_layer=lambda: pytest.fail("a pass was made"))
    with pytest.raises(so.InputError, match="windows of one token"):
        so.census(lm, [[1], [2]])


@pytest.mark.parametrize("count", [0, -1, 1.5, 10**6])
def test_a_bad_count_is_refused(masked, count):
    lm, tokens, _, _ = masked
    with pytest.raises(so.InputError, match="count is .*; expected a whole number"):
        so.census(lm, tokens, count=count)


@pytest.mark.parametrize(("count", "seeds"), [(1, 1), (3, 2)])
def test_progress_is_told_how_many_layers_are_to_come(count, seeds, masked):
    """Said once, before the first edit; the passes then take exactly so many."""
    lm, tokens, _, _ = masked
    done, plans = [], []
    watched = lm.with_passes(
        on_layer=lambda: done.append(0), on_plan=lambda layers: plans.append(len(done) + layers)
    )
    so.census(watched, tokens, count=count, seeds=seeds)
    assert plans == [len(done)]
