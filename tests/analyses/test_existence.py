"""Existence: pooling that loses no peak, choices by their rules on raw tensors, and planted truth."""

import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.existence.measure import BINS, ELEMENTS, SHOWN, choose_tokens
from sysout_jax.numerics.pooling import pool_lines, pool_matrix
from sysout_jax.testing import Birth, planted_llama
from sysout_jax.weights import InMemory
from tests.random_models import random_model


@pytest.mark.parametrize(
    "channels, bins", [(1, 5), (5, 5), (7, 5), (64, 400), (11_008, 400), (999, 400)]
)
def test_pooled_lines_keep_every_peak(channels, bins):
    rng = np.random.default_rng()
    values = rng.random((9, channels)).astype(np.float32)
    peaks = [(int(rng.integers(9)), int(rng.integers(channels))) for _ in range(20)]
    for line, channel in peaks:
        values[line, channel] = 10 + rng.random()
    found = pool_lines(values, np.arange(9) + 3, bins)
    assert found.values.shape[1] == min(channels, bins)
    assert found.lines.tolist() == list(range(3, 12))
    # every drawn point is a true one, in ascending order
    rows = np.arange(9)[:, None]
    np.testing.assert_array_equal(found.values, values[rows, found.channels])
    assert (np.diff(found.channels, axis=1) > 0).all()
    # every channel has a point at least as high within its own group
    edges = np.linspace(0, channels, min(channels, bins) + 1).astype(int)
    for line in range(9):
        for b in range(len(edges) - 1):
            assert found.values[line, b] == values[line, edges[b] : edges[b + 1]].max()
    if channels <= bins:
        np.testing.assert_array_equal(found.values, values)
    assert np.isclose(found.values.max(1), values.max(1)).all()


@pytest.mark.parametrize("shape", [(3, 4), (64, 400), (1000, 1500), (65, 401)])
def test_pooled_matrices_keep_every_peak(shape):
    rng = np.random.default_rng()
    w = rng.standard_normal(shape).astype(np.float32)
    row, column = (int(rng.integers(n)) for n in shape)
    w[row, column] = -77.0
    w[0, 0], w[-1, -1] = np.nan, np.inf
    if (row, column) in ((0, 0), (shape[0] - 1, shape[1] - 1)):
        w[row, column] = -77.0
    found = pool_matrix(w, 64, 400)
    line, point = np.unravel_index(found.values.argmax(), found.values.shape)
    assert found.values.max() == 77.0
    assert found.lines[line] == row and found.channels[line, point] == column
    assert np.isfinite(found.values).all() and (np.diff(found.lines) > 0).all()


def test_chosen_tokens():
    strength = np.zeros(200)
    assert choose_tokens(strength).tolist() == list(range(SHOWN))
    strength[[0, 90, 150]] = 2.0, 5.0, 3.0
    chosen = choose_tokens(strength).tolist()
    assert {0, 1, 89, 90, 91, 149, 150, 151} <= set(chosen) and len(chosen) == SHOWN
    assert chosen == sorted(chosen)
    strength[:] = 2.0 + np.arange(200)
    assert set(range(192, 200)) <= set(choose_tokens(strength).tolist())
    assert choose_tokens(np.ones(3)).tolist() == [0, 1, 2]


def model(name: str, seed: int) -> so.LanguageModel:
    if name != "sigmoid":
        return random_model(name, seed)
    return random_model("llama-gqa", seed, attention="sigmoid")


@pytest.mark.parametrize("name", ["llama-gqa", "gpt2", "sigmoid"])
def test_layers_elements_and_values_on_raw_tensors(name):
    rng = np.random.default_rng()
    lm = model(name, int(rng.integers(2**31)))
    tokens = rng.integers(0, 61, (3, int(rng.integers(10, 50))))
    tau = float(rng.uniform(2.5, 4.5))
    report = so.existence(lm, tokens, tau)
    _, taps = so.capture(lm, tokens, names=("h", "x_down", "attn_map"))
    ratio = {}
    for place in ("h", "x_down"):
        x = np.abs(np.asarray(taps[place], np.float64))
        ratio[place] = x / x.mean((2, 3), keepdims=True)
    n = int(ratio["h"].max((0, 2, 3)).argmax())
    assert report.sequence == n
    for place in ("h", "x_down"):
        surface, r = getattr(report, place), ratio[place][:, n]
        layer = int(r.max((1, 2)).argmax())
        assert surface.layer == layer and surface.found == (r.max() > tau)
        assert surface.level == pytest.approx(tau if r.max() > tau else 0.75 * r.max(), rel=1e-5)
        raw = np.asarray(taps[place][layer, n])
        found = {(e.line, e.channel) for e in surface.elements}
        want = [
            (int(t), int(c)) for t, c in np.argwhere(r[layer] > surface.level) if t in report.shown
        ]
        want.sort(key=lambda e: -r[layer][e])
        assert found == set(want[:ELEMENTS])
        for e in surface.elements:
            assert e.value == pytest.approx(raw[e.line, e.channel], rel=1e-5)
            assert e.ratio == pytest.approx(r[layer, e.line, e.channel], rel=1e-5)
        # few channels: nothing is pooled
        assert surface.channels <= BINS
        np.testing.assert_allclose(
            surface.pooled.values, np.abs(raw[report.shown]), rtol=1e-5, atol=1e-6
        )
    maps = np.asarray(taps["attn_map"], np.float64)[:, n].mean(1)  # (L, T, T)
    layer = int(maps.sum(1).max(1).argmax())
    assert report.attention.layer == layer
    shown = report.shown
    np.testing.assert_allclose(report.attention.map, maps[layer][np.ix_(shown, shown)], atol=1e-5)
    np.testing.assert_allclose(
        report.attention.received, maps[layer].sum(0)[shown] / tokens.shape[1], rtol=1e-4
    )
    # weights
    h = np.abs(np.asarray(taps["h"], np.float64))[:, n]
    largest = (h / h.mean((1, 2), keepdims=True)).max((1, 2))
    assert report.w_down.layer == np.flatnonzero(largest > report.h.level)[0]
    params = lm.params[f"layer_{report.w_down.layer}"]
    w = np.abs(np.asarray(params["mlp"]["down_proj"]["kernel"], np.float64).T)
    rows, columns = w / w.mean(1, keepdims=True), w.max(0) / w.mean(0)
    assert report.w_down.found == (rows.max() > tau)
    if report.w_down.found:
        want = [tuple(e) for e in np.argwhere(rows > tau).tolist()]
        want.sort(key=lambda e: -rows[e])
    else:
        over = w / w.mean(0)
        want = [tuple(e) for e in np.argwhere(over > 0.75 * columns.max()).tolist()]
        want.sort(key=lambda e: -over[e])
    assert [(e.line, e.channel) for e in report.w_down.elements] == want[:ELEMENTS]
    json.dumps(report.to_dict(), allow_nan=False)


@pytest.mark.parametrize("draw", range(3))
def test_planted_truth(draw):
    """Wide enough to be pooled, and for weight outliers at τ: all places name the planted channels, dims and tokens."""
    seed = int(np.random.default_rng().integers(2**20))
    print("seed", seed)
    planted = planted_llama(
        seed, num_layers=4, d_ff=4096, births=(Birth(1, 2, 1),), death_layer=None, placement="both"
    )
    tokens = planted.tokens(2, 200, seed)
    report = so.existence(planted.lm, tokens)
    (birth,) = planted.truth.births
    assert report.found and report.x_down.layer == 1 and report.w_down.layer == 1
    strong = {int(t) for t in np.flatnonzero(planted.mask(tokens)[report.sequence])}
    assert {e.line for e in report.h.elements} <= strong
    assert {e.channel for e in report.h.elements} == set(birth.dims)
    assert {(e.line, e.channel) for e in report.x_down.elements} == {
        (t, birth.channels[0]) for t in strong
    }
    assert {(e.line, e.channel) for e in report.w_down.elements} == {
        (d, birth.channels[0]) for d in birth.dims
    }
    assert set(report.shown[report.outliers].tolist()) == strong
    for surface in (report.x_down, report.w_down):
        assert surface.channels == 4096 and surface.pooled.values.shape[1] == BINS
        line, point = np.unravel_index(surface.pooled.values.argmax(), surface.pooled.values.shape)
        assert surface.pooled.channels[line, point] == birth.channels[0]


def test_nan_weights_do_not_crash():
    import jax

    lm = random_model("llama-mha", seed=1)
    broken = so.LanguageModel(lm.config, InMemory(jax.tree.map(lambda x: x * np.nan, lm.params)))
    report = so.existence(broken, np.random.default_rng(0).integers(0, 61, (1, 9)))
    assert not report.found and not report.h.elements and not report.w_down.elements
    json.dumps(report.to_dict(), allow_nan=False)
