"""Interventions: known answers on planted models, and a slow direct implementation on random ones."""

from __future__ import annotations

import copy
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.intervene.runs import (
    CONTROL,
    OUTLIERS,
    USUAL_PLACES,
    WHAT,
    Bench,
    Run,
    plan,
)
from sysout_jax.engine import Stream
from sysout_jax.interventions.effects import Unedited
from sysout_jax.interventions.elements import (
    Elements,
    draw_others,
    edits,
    read_elements,
    write_elements,
)
from sysout_jax.interventions.heads import (
    other_heads,
    other_tokens,
    silence_heads,
    silence_values,
    write_silence,
)
from sysout_jax.interventions.weights import edit_down_weights, others
from sysout_jax.numerics.intervals import RESAMPLES, bootstrap_weights, interval
from sysout_jax.outliers.definitions import entering
from sysout_jax.testing import planted_llama, random_plant
from sysout_jax.weights import InMemory
from tests.outliers import rules
from tests.parameters import mostly_endurance
from tests.random_models import random_model

TAU = 4.0  # low enough for random models to have outliers


def observe_h(x_in, taps, extra):
    return {"h": taps["h"]}


def run_layers(lm, tokens, **arguments) -> np.ndarray:
    """(L, N, T, D) what every layer gives to the next one."""
    return np.stack([seen["h"] for _, _, seen in Stream(lm, tokens).layers(observe_h, **arguments)])


def entering_of(bench: Bench) -> np.ndarray:
    return entering(bench.life.stats.h.outlier_tokens(bench.life.tau))


def by_hand(lm, tokens, edit) -> np.ndarray:
    """The same, block by block on the whole batch, with `edit(layer, h)` on numpy arrays in between."""
    params, module, block = lm.params, lm.module, lm.module.block(0)
    found = []
    with jax.default_matmul_precision("highest"):
        x = module.apply({"params": params}, jnp.asarray(tokens), method="embed_tokens")
        for layer in range(lm.num_layers):
            x = np.array(block.apply({"params": params[f"layer_{layer}"]}, x))
            edit(layer, x)
            found.append(x.copy())
        logits = module.apply({"params": params}, x, method="unembed")
    return np.stack(found), np.asarray(logits, np.float64)


@pytest.fixture(scope="module", params=["llama-gqa", "gpt2"])
def case(request):
    rng = np.random.default_rng()
    seed = int(rng.integers(2**31))
    print("seed", seed)
    lm = random_model(request.param, seed)
    tokens = rng.integers(0, lm.config.vocab_size, (4, int(rng.integers(12, 40))))
    report = so.lifecycle(lm, tokens, TAU, cause=False)
    life = report if report.found else report.candidate
    return lm, tokens, report, Bench(lm, life, seed % 1000)


@pytest.mark.parametrize("offset", [0, 1, 4])  # which case is planted; the seed is drawn below
def test_planted_answers(offset):
    """Without the planted outliers nothing is left of them and heads look elsewhere; as many others change nothing."""
    seed = int(np.random.default_rng().integers(10_000)) * 16 + offset
    print("seed", seed)
    planted = random_plant(seed)
    truth = planted.truth
    tokens = planted.tokens(2, 256, seed)
    found = so.intervene(planted.lm, tokens, seeds=2, seed=seed)
    json.dumps(found.to_dict(), allow_nan=False)

    assert found.found == truth.has_outlier == (offset != 4)
    assert found.birth_layers == truth.birth_layers
    assert found.dims == truth.dims and found.dims_left_out == 0
    assert found.tokens == planted.mask(tokens).sum()
    assert found.elements == found.tokens * len(truth.dims)
    assert set(found.sinks) == truth.sink_heads
    alive = [found.tokens * bool(truth.dims_after(l)) for l in range(found.num_layers)]
    np.testing.assert_array_equal(found.baseline.outliers_per_layer, alive)
    assert found.baseline.mass.value > 0.8 and found.baseline.ratio.value == 1.0
    assert [(o.where, o.what, o.target) for o in found.outcomes] == [
        (where, what, target)
        for where in USUAL_PLACES
        for what in WHAT
        for target in (OUTLIERS, CONTROL)
    ]
    for outcome in found.outcomes:
        name = (outcome.where, outcome.what, outcome.target)
        births = [truth.dims_after(b.layer) for b in truth.births]
        if outcome.where == "birth":
            assert outcome.edited == found.tokens * sum(map(len, births)), name
        elif outcome.where == "all":
            every = sum(len(truth.dims_after(l)) for l in range(found.num_layers))
            assert outcome.edited == found.tokens * every, name
        else:
            assert outcome.edited == sum(len(b.dims) * len(b.channels) for b in truth.births)
        kept = outcome.target == CONTROL or (outcome.what == "mean" and outcome.where != "weight")
        want = found.baseline.outliers_per_layer if kept else np.zeros(found.num_layers)
        np.testing.assert_array_equal(outcome.outliers_per_layer, want, err_msg=str(name))
        if kept:
            assert outcome.mass.value == pytest.approx(found.baseline.mass.value, abs=0.02), name
            np.testing.assert_allclose(
                outcome.mass_per_sink, found.baseline.mass_per_sink, atol=0.05
            )
            assert outcome.ratio.value == pytest.approx(1.0, abs=2e-3), name
        else:
            assert outcome.mass.value < 0.3 and (outcome.mass_per_sink < 0.5).all(), name
        assert len(outcome.outliers.seeds) == (
            2 if outcome.target == CONTROL or outcome.what == "resample" else 1
        )


EDITS = list(itertools.product(["birth", "all"], WHAT, [OUTLIERS, CONTROL]))


@pytest.mark.parametrize(
    ("where", "what", "target"),
    mostly_endurance(
        EDITS, usual=[edit for edit in EDITS if edit[2] == OUTLIERS or edit[0] == "all"]
    ),
)
def test_edited_model_equals_blocks_applied_by_hand(case, where, what, target):
    """Positions, values, h of every layer, and all that is measured, from raw captured h and a plain loop."""
    lm, tokens, _, bench = case
    life = bench.life
    N, T = tokens.shape
    _, taps = so.capture(lm, tokens, ("h",))
    h = np.asarray(taps["h"])
    flagged = np.stack([[rules.activation_outliers(s, life.tau) for s in layer] for layer in h])
    dims = life.trace.targets.dims
    kept = flagged & np.isin(np.arange(h.shape[-1]), dims)
    marked = flagged.any((0, 3))

    run = Run(where, what, target, 1)
    elements = bench.elements(target, 1)
    if target == OUTLIERS:
        active = np.zeros_like(kept)
        active[:, *elements.places.T] = elements.active
        np.testing.assert_array_equal(active, kept)
    donated = bench.donated([run])

    def edit(layer, x_NxTxD):
        if where == "birth" and layer not in life.birth.layers:
            return
        before = h[layer].astype(np.float64)
        for k, (n, t, d) in enumerate(elements.places):
            if not elements.active[layer, k]:
                continue
            if what == "zero":
                x_NxTxD[n, t, d] = 0
            elif what == "mean":
                same = kept[layer, :, :, d] if target == OUTLIERS else np.ones((N, T), bool)
                x_NxTxD[n, t, d] = before[:, :, d][same].mean()
            else:
                value = donated[target, 1][layer, k]
                ordinary = [m for m in range(N) if m != n]
                pool = h[layer, ordinary, :, d][~marked[ordinary]]
                assert np.isclose(pool, value, rtol=1e-5, atol=1e-6).any()
                x_NxTxD[n, t, d] = value

    want, logits = by_hand(lm, tokens, edit)
    if (what, target) != ("mean", OUTLIERS):  # a single outlier of its dim is its own mean
        assert np.abs(want - h).max() > 1e-3
    written = {}

    edited = Unedited.edited

    def spy(*args, **kwargs):
        written.update(kwargs)
        return edited(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unedited, "edited", spy)
        count, found = bench.run(run, donated)
    only = elements.only(life.birth.layers) if where == "birth" else elements
    assert count == only.active.sum()
    got = run_layers(lm, tokens, write=written["write"], extra=written["extra"])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5 * np.abs(want).max())
    outliers = [[rules.activation_outliers(s, life.tau).any(-1).sum() for s in x] for x in want]
    near = np.abs(np.abs(want) / np.abs(want).mean((2, 3), keepdims=True) - life.tau).min() < 1e-3
    if not near:  # within rounding of the threshold either count is right
        np.testing.assert_array_equal(found.outliers, outliers)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(found.nll, nll.mean(1), rtol=2e-4, atol=2e-4)


def test_attention_on_marked_tokens_from_maps(case):
    lm, tokens, _, bench = case
    _, taps = so.capture(lm, tokens, ("attn_map",))
    maps = np.asarray(taps["attn_map"], np.float64)  # (L, N, H, T, S)
    living = bench.life.stats.h.outlier_tokens(bench.life.tau)
    for layer, m in enumerate(maps):
        # those that enter the layer, all there ever are where none does
        marked = living[layer - 1] if layer and living[layer - 1].any() else bench.ever
        given = np.einsum("nhts,ns->hn", m, marked)
        np.testing.assert_allclose(bench.baseline.attention[layer], given, rtol=1e-4, atol=1e-5)
        sees = np.cumsum(marked, 1) > 0
        np.testing.assert_array_equal(bench.baseline.queries[layer], sees.sum(1))
        share = given.sum(1) / sees.sum()
        np.testing.assert_allclose(bench.baseline.mass[layer], share, rtol=1e-4)


def test_attention_on_marked_tokens_in_a_window_is_of_the_queries_that_see_them():
    """Queries without direction attend evenly to the keys of their window, so every number is known."""
    lm = random_model("llama-gqa", 0, sliding_window=3)

    def even(layer):
        zero = jax.tree.map(jnp.zeros_like, layer["attn"]["q_proj"])
        return layer | {"attn": layer["attn"] | {"q_proj": zero}}

    lm = lm.with_edits({f"layer_{l}": even for l in range(lm.num_layers)})
    marked = np.zeros((lm.num_layers, 1, 8), bool)
    marked[0, 0, 0] = True  # queries 0, 1, 2 see one of 1, 2, 3 keys
    marked[1, 0, [2, 5]] = True  # queries 2 to 7 see one of 3 keys each
    found = Unedited.run(lm, np.arange(8)[None], marked, TAU, [0]).measured
    assert found.queries[:2, 0].tolist() == [3, 6] and not found.queries[2:].any()
    share = (1 + 1 / 2 + 1 / 3) / 3
    np.testing.assert_allclose(found.mass[0], share, rtol=1e-5)
    np.testing.assert_allclose(found.mass[1], 1 / 3, rtol=1e-5)
    np.testing.assert_allclose(found.even, [share, 1 / 3, *[np.nan] * (lm.num_layers - 2)])


def test_nothing_to_edit_changes_no_bit(case):
    lm, tokens, _, bench = case
    plain = run_layers(lm, tokens)
    idle = Elements(bench.outliers.places, np.zeros_like(bench.outliers.active))
    extra = edits(idle, np.ones(idle.active.shape), tokens.shape)
    np.testing.assert_array_equal(run_layers(lm, tokens, write=write_elements, extra=extra), plain)
    own = edits(bench.outliers, bench.values, tokens.shape)  # every outlier keeps its value
    np.testing.assert_array_equal(run_layers(lm, tokens, write=write_elements, extra=own), plain)
    whole = Unedited.run(lm, tokens, entering_of(bench), bench.life.tau, [0])
    again = whole.edited(write=write_elements, extra=extra)
    for name, want in vars(bench.baseline).items():
        np.testing.assert_array_equal(getattr(again, name), want)


def test_what_lies_before_an_edit_is_computed_once_and_changes_no_bit(case):
    lm, tokens, _, bench = case
    last = lm.num_layers - 1
    entries = {last: (np.arange(3), np.arange(4))}
    edited = edit_down_weights(lm, entries, lambda layer, kernel: np.zeros((1, 1)))
    found = [
        Unedited.run(lm, tokens, entering_of(bench), bench.life.tau, [first]).edited(edited)
        for first in range(last + 1)
    ]
    for other in found[1:]:
        for name, want in vars(found[0]).items():
            np.testing.assert_array_equal(getattr(other, name), want)
    assert (found[0].nll != bench.baseline.nll).any()


def test_an_edit_reaches_the_next_layer_and_observers_only_from_its_layer_on(case):
    lm, tokens, _, _ = case
    layer = 1
    places = np.array([[2, 3, 5], [0, 0, 1]])
    active = np.zeros((lm.num_layers, 2), bool)
    active[layer] = True
    extra = edits(Elements(places, active), np.full((lm.num_layers, 2), 7.5), tokens.shape)
    plain, found = run_layers(lm, tokens), run_layers(lm, tokens, write=write_elements, extra=extra)
    np.testing.assert_array_equal(found[:layer], plain[:layer])
    assert (found[layer, *places.T] == 7.5).all()
    changed = np.zeros(plain.shape[1:], bool)
    changed[*places.T] = True
    np.testing.assert_array_equal(found[layer][~changed], plain[layer][~changed])
    np.testing.assert_array_equal(found[:, 1], plain[:, 1])  # another sequence
    np.testing.assert_array_equal(found[layer + 1, 2, :3], plain[layer + 1, 2, :3])  # causality
    assert (found[layer + 1, 2, 3:] != plain[layer + 1, 2, 3:]).any(-1).all()


def test_controls_are_as_many_others(case):
    lm, tokens, _, bench = case
    outliers, T = bench.outliers, tokens.shape[1]
    others = bench.elements(CONTROL, 3)
    assert len(np.unique(others.places, axis=0)) == len(others.places) == len(outliers.places)
    for n in range(len(tokens)):
        mine, theirs = outliers.places[:, 0] == n, others.places[:, 0] == n
        np.testing.assert_array_equal(
            outliers.active[:, mine].sum(1), others.active[:, theirs].sum(1)
        )
    assert (others.places[:, 1] < T).all()
    _, taps = so.capture(lm, tokens, ("h",))
    for layer in np.asarray(taps["h"]):
        found = np.stack([rules.activation_outliers(s, bench.life.tau) for s in layer])
        assert not found[*others.places.T].any()
    again, other = bench.elements(CONTROL, 3), bench.elements(CONTROL, 4)
    np.testing.assert_array_equal(again.places, others.places)
    assert (other.places != others.places).any()


def test_fewer_controls_where_a_sequence_has_no_more():
    places = np.array([[0, t, d] for t in range(3) for d in (0, 1)])
    crowded = Elements(places, np.ones((2, 6), bool))
    found = draw_others(np.random.default_rng(), crowded, 3, np.array([2]))
    assert sorted(map(tuple, found.places)) == [(0, 0, 2), (0, 1, 2), (0, 2, 2)]
    assert found.active.shape == (2, 3)
    none = draw_others(np.random.default_rng(), crowded, 3, np.array([], int))
    assert none.places.shape == (0, 3) and none.active.shape == (2, 0)


def test_read_elements(case):
    lm, tokens, _, _ = case
    rng = np.random.default_rng()
    sizes = (*tokens.shape, lm.config.d_model)
    places = np.stack([rng.integers(0, size, 11) for size in sizes], 1)
    _, taps = so.capture(lm, tokens, ("h",))
    want = np.asarray(taps["h"])[:, *places.T]
    np.testing.assert_allclose(read_elements(lm, tokens, places), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("what", list(WHAT))
@pytest.mark.parametrize("target", [OUTLIERS, CONTROL])
def test_weight_edits(what, target):
    """Only the entries of the birth change, or as many others of the same rows; to what is said."""
    planted = planted_llama(seed=int(np.random.default_rng().integers(10_000)))
    tokens = planted.tokens(2, 64)
    bench = Bench(planted.lm, so.lifecycle(planted.lm, tokens, cause=False))
    (birth,) = planted.truth.births
    seen = {}

    def spy(_, lm):
        for layer in range(lm.num_layers):
            seen[layer] = np.asarray(lm.read(f"layer_{layer}")["mlp"]["down_proj"]["kernel"])
        return bench.baseline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unedited, "edited", spy)
        count, _ = bench.run(Run("weight", what, target, 2), {})
    assert count == len(birth.channels) * len(birth.dims)
    for layer in range(planted.lm.num_layers):
        old = np.asarray(planted.lm.read(f"layer_{layer}")["mlp"]["down_proj"]["kernel"])
        changed = np.argwhere(seen[layer] != old)  # (channel, dim)
        if layer != birth.layer:
            assert not len(changed)
            continue
        assert len(changed) == count and set(changed[:, 1]) == set(birth.dims)
        assert (set(changed[:, 0]) == set(birth.channels)) == (target == OUTLIERS)
        assert target == OUTLIERS or not set(changed[:, 0]) & set(birth.channels)
        for c, d in changed:
            edited = {*birth.channels, *changed[:, 0]}
            rest = [old[f, d] for f in range(len(old)) if f not in edited]
            if what == "resample":
                assert seen[layer][c, d] in rest
            else:
                want = np.mean(rest) if what == "mean" else 0.0
                assert seen[layer][c, d] == pytest.approx(want, abs=1e-6)


def test_batch_splits_and_seeds_reproduce(case):
    lm, tokens, report, _ = case
    arguments = {"what": ("resample",), "where": ("birth", "weight"), "seeds": 2}
    first, split = (
        so.intervene(
            lm.with_passes(batch_size=size), tokens, TAU, report=report, seed=9, **arguments
        )
        for size in (4, 1)
    )
    assert first.to_dict() == split.to_dict()
    other = so.intervene(lm, tokens, TAU, report=report, seed=10, **arguments)
    assert other.baseline.perplexity == first.baseline.perplexity
    assert any(
        a.perplexity.seeds != b.perplexity.seeds
        for a, b in zip(other.outcomes, first.outcomes, strict=True)
    )


def test_columns_rows_heads_and_values_of_a_planted_model():
    """Each edit does what follows from how the model was made; as many others change nothing."""
    seed = int(np.random.default_rng().integers(10_000)) * 16
    print("seed", seed)
    planted = planted_llama(seed=seed)
    tokens = planted.tokens(2, 64, seed)
    places = ("column", "row", "head", "value")
    found = so.intervene(planted.lm, tokens, what=("zero", "mean"), where=places, seeds=2)
    births, config = planted.truth.births, planted.lm.config
    channels, dims = (sum(len(getattr(b, name)) for b in births) for name in ("channels", "dims"))
    spec = config.layer(0).heads
    groups = spec.heads // spec.kv_heads
    heads = {(layer, head // groups) for layer, head in found.sinks}
    want = {
        "column": channels * config.d_model,
        "row": dims * config.layer(0).mlp.channels,
        "head": len(found.sinks),
        "value": len(heads) * found.tokens,
    }
    assert [(o.where, o.what) for o in found.outcomes] == [
        (p, "zero") for p in places for _ in "oc"
    ]
    for outcome in found.outcomes:
        assert outcome.edited == want[outcome.where]
        gone = outcome.where in ("column", "row") and outcome.target == OUTLIERS
        alive = np.zeros(found.num_layers) if gone else found.baseline.outliers_per_layer
        np.testing.assert_array_equal(outcome.outliers_per_layer, alive)


def test_values_are_silenced_at_the_tokens_that_enter_the_layer(case):
    """The tokens that the attention of sink heads is asked about; a token that is an outlier elsewhere keeps its values."""
    _, _, _, bench = case
    bench = copy.copy(bench)
    bench.sinks = np.zeros_like(bench.sinks)
    bench.sinks[1:, 0] = True
    marked = entering_of(bench)
    given = {}

    def spy(self, lm=None, *, write=None, extra=None, start=None):
        given["tokens"] = np.stack([layer["tokens"] for layer in extra])
        return bench.baseline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unedited, "edited", spy)
        count, _ = bench.run(Run("value", "zero", OUTLIERS, 0), {})
        np.testing.assert_array_equal(given["tokens"], marked)
        assert count == marked[1:].sum()
        assert bench.run(Run("value", "zero", CONTROL, 0), {})[0] <= count
        assert not (given["tokens"] & marked.any(0)).any()
    assert (marked[1:] != bench.ever).any()  # some come or go between the layers


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_a_silent_head_is_one_whose_output_weights_are_zero(name):
    lm = random_model(name, 3)
    heads = lm.config.layer(0).heads
    silent = np.random.default_rng(3).random((lm.num_layers, heads.heads)) < 0.4
    tokens = np.random.default_rng(4).integers(0, lm.config.vocab_size, (2, 12))
    silenced = silence_heads(silent, heads.kv_heads, tokens.shape)
    assert silenced.count == silent.sum()

    def without(layer: int):
        def edit(params):
            matrix = params["attn"]["o_proj"]["kernel"]
            rows = np.repeat(silent[layer], heads.head_dim)
            kernel = np.where(rows[:, None], 0, np.array(matrix))
            return params | {"attn": params["attn"] | {"o_proj": params["attn"]["o_proj"] | {"kernel": kernel}}}  # fmt: skip

        return edit

    edited = lm.with_edits({f"layer_{l}": without(l) for l in range(lm.num_layers)})
    got = run_layers(lm, tokens, write=write_silence, extra=silenced.extra())
    np.testing.assert_allclose(got, run_layers(edited, tokens), atol=1e-5)
    assert np.abs(got - run_layers(lm, tokens)).max() > 1e-3


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2"])
def test_silent_values_give_nothing_to_those_who_look_at_them(name):
    """In the first layer, where all else is as it was: attention · v over the tokens that are left."""
    lm = random_model(name, 5)
    heads = lm.config.layer(0).heads
    silent = np.zeros((lm.num_layers, heads.heads), bool)
    silent[0, 1] = True
    tokens = np.random.default_rng(6).integers(0, lm.config.vocab_size, (2, 12))
    marked = np.zeros(tokens.shape, bool)
    marked[0, [0, 3]], marked[1, 5] = True, True
    of_layers = np.stack([marked, *[np.ones_like(marked)] * (lm.num_layers - 1)])
    silenced = silence_values(silent, heads.kv_heads, of_layers)
    groups = heads.heads // heads.kv_heads
    assert silenced.count == 3

    def observe(x_in, taps, extra):
        return {name: taps[name] for name in ("attn_map", "v", "attn_heads")}

    _, _, before = next(iter(Stream(lm, tokens).layers(observe)))
    stream = Stream(lm, tokens).layers(observe, extra=silenced.extra(), write=write_silence)
    _, _, after = next(iter(stream))
    values = np.array(before["v"])  # (N, T, K, Dh)
    values[:, :, 1 // groups] *= ~marked[..., None]
    want = np.einsum("nhts,nshd->nthd", before["attn_map"], np.repeat(values, groups, axis=2))
    np.testing.assert_allclose(after["attn_heads"], want, atol=1e-5)
    assert np.abs(want - before["attn_heads"]).max() > 1e-4


def test_random_others():
    rng = np.random.default_rng(8)
    heads, tokens = rng.random((5, 4)) < 0.2, rng.random((5, 3, 20)) < 0.1
    tokens[:, :, 10:] = False  # so that each finds another
    silent = other_heads(heads, 2, rng)
    assert not (silent & heads).any() and not silent[:2].any()
    assert silent.sum() == min(heads.sum(), (~heads[2:]).sum())
    drawn = other_tokens(tokens, rng)
    ever = tokens.any(0)
    assert not (drawn & ever).any() and (drawn.any(0).sum(1) == ever.sum(1)).all()
    for mine, theirs in zip(tokens.swapaxes(0, 1), drawn.swapaxes(0, 1), strict=True):
        lives, others_lives = (sorted(map(tuple, x.T[x.any(0)])) for x in (mine, theirs))
        assert lives == others_lives  # each in the layers of the one that it stands for
    crowded = np.ones((2, 1, 3), bool)
    crowded[:, 0, 2] = False
    assert other_tokens(crowded, rng).tolist() == [[[False, False, True]]] * 2
    born = {1: (np.array([3, 4]), np.array([2, 7]))}
    lm = random_model("llama-gqa", 0)
    channels, rows = others(lm, born, "row", rng, np.array([2, 7, 8]))[1]
    assert len(channels) == lm.config.d_ff and len(set(rows) - {2, 7, 8}) == 2
    for edit in ("element", "column"):
        channels, rows = others(lm, born, edit, rng)[1]
        assert len(set(channels) - {3, 4}) == 2
        assert rows.tolist() == ([2, 7] if edit == "element" else list(range(lm.config.d_model)))


def test_a_mean_that_is_the_outlier_itself_is_said():
    planted = planted_llama(seed=3)
    tokens = planted.tokens(1, 32, 3)
    found = so.intervene(planted.lm, tokens, what=("mean",), where=("birth",), seeds=1)
    assert any("shows nothing" in note for note in found.notes)


def test_a_report_of_other_tokens_or_another_threshold_is_refused(case):
    lm, tokens, report, _ = case
    for other, tau in ((tokens[:2], TAU), (np.roll(tokens, 1), TAU), (tokens, 2 * TAU)):
        with pytest.raises(so.InputError, match="report was measured"):
            so.intervene(lm, other, tau, report=report)
    for call in (so.lifecycle, so.existence, so.consistency, so.variant_profile):
        with pytest.raises(so.InputError, match="stats was measured on other tokens"):
            call(lm, np.roll(tokens, 1), TAU, stats=report.stats)
    with pytest.raises(so.InputError, match="stats was measured at tau = 4, not 8"):
        so.lifecycle(lm, tokens, 2 * TAU, stats=report.stats)


def test_plan():
    runs = plan(("zero", "resample"), ("all",), 3)
    assert [(r.what, r.target, r.seed) for r in runs] == [
        ("zero", OUTLIERS, 0), *(("zero", CONTROL, s) for s in range(3)),
        *(("resample", OUTLIERS, s) for s in range(3)), *(("resample", CONTROL, s) for s in range(3)),
    ]  # fmt: skip
    assert {(r.where, r.what) for r in plan(tuple(WHAT), ("row", "head"), 1)} == {("row", "zero"), ("head", "zero")}  # fmt: skip
    for bad in (
        ((), ("all",), 1),
        (("mean",), ("head", "row"), 1),
        (("mean", "resample"), ("birth", "row"), 1),  # birth would run, row would not
        (("zero",), ("here",), 1),
        (("zero",), ("all",), 0),
    ):
        with pytest.raises(ValueError, match="expected|can only be set to zero"):
            plan(*bad)


def test_one_token_has_nobody_to_give():
    lm = random_model("gpt2", seed=2)
    found = so.intervene(lm, np.array([[3]]), seeds=1)
    assert not found.found and any("No resample" in note for note in found.notes)
    assert {o.what for o in found.outcomes if o.where != "weight"} == {"zero", "mean"}
    assert np.isnan(found.baseline.perplexity.value)
    json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_to_intervene_on():
    lm = random_model("llama-gqa", seed=1)
    params = jax.tree.map(lambda x: x * np.nan, lm.params)
    broken = so.LanguageModel(lm.config, InMemory(params), name="broken")
    with pytest.raises(so.InputError, match="nothing to intervene on"):
        so.intervene(broken, np.zeros((2, 5), int))


def test_editing_weights_leaves_the_model_alone():
    lm = random_model("llama-mha", seed=5)
    before = np.array(lm.read("layer_1")["mlp"]["down_proj"]["kernel"])
    entries = {1: (np.array([3, 4]), np.array([0]))}
    edited = edit_down_weights(lm, entries, lambda layer, kernel: np.full((1, 1), 9.0))
    after = np.asarray(edited.read("layer_1")["mlp"]["down_proj"]["kernel"])
    assert (after[[3, 4], 0] == 9.0).all() and (after != before).sum() == 2
    np.testing.assert_array_equal(lm.read("layer_1")["mlp"]["down_proj"]["kernel"], before)


def test_intervals():
    rng = np.random.default_rng()
    values_NxS = rng.exponential(size=(9, 3))
    weights = bootstrap_weights(9)
    assert weights.shape == (RESAMPLES + 1, 9) and (weights.sum(1) == 9).all()
    found = interval(weights @ values_NxS / 9)
    assert found.seeds == pytest.approx(values_NxS.mean(0))
    assert found.value == pytest.approx(values_NxS.mean())
    # an independent bootstrap of the same means
    drawn = rng.integers(0, 9, (20_000, 9))
    low, high = np.percentile(values_NxS.mean(1)[drawn].mean(1), [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))
    single = interval(bootstrap_weights(1) @ values_NxS[:1])
    assert np.isnan([single.low, single.high]).all() and single.value == values_NxS[0].mean()
