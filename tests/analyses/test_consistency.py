"""Consistency against its formula, written out with Python sets, and against planted truth."""

import json

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analyses.consistency.measure import MEASURES, ROWS
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.testing import Birth, planted_llama
from tests.parameters import mostly_endurance
from tests.random_models import RANDOM, random_model


def indices(mask) -> set[int]:
    return {int(i) for i in np.flatnonzero(mask)}


def slow(lm, tokens, levels) -> dict[str, np.ndarray]:
    """(R, L, N) of the three measures, from raw tensors, one set at a time."""
    _, taps = so.capture(lm, tokens, names=("h", "x_down", "attn_map"))
    L, (N, T) = lm.num_layers, tokens.shape
    found = {measure: np.full((len(ROWS), L, N), np.nan) for measure in MEASURES}
    for layer in range(L):
        kernel = np.asarray(lm.params[f"layer_{layer}"]["mlp"]["down_proj"]["kernel"], np.float64)
        w = np.abs(kernel.T)  # (O, I), as the paper writes it
        heavy = w > levels["W_down"] * w.mean(axis=1)[:, None]
        for n in range(N):

            def over(place: str, at: int, n=n):
                x = np.abs(np.asarray(taps[place][at, n], np.float64))
                return x > levels[place] * x.mean()

            h, x_down = over("h", layer), over("x_down", layer)
            before = over("h", layer - 1) if layer else np.zeros_like(h)
            sums = np.asarray(taps["attn_map"][layer, n], np.float64).sum(1)
            keys = [indices(s > levels["attention"] * s.mean()) for s in sums]
            wide = [indices(sums.mean(axis=0) >= 0.1 * T)]
            dying = before.any() and not h.any()
            ratios = w.max(axis=0) / w.mean(axis=0)
            extremal = indices(ratios > 0.75 * ratios.max()) if x_down.any() else set()
            pairs = [
                (indices(heavy.any(0)), [indices(x_down.any(0))]),
                (indices(heavy.any(1)), [indices(h.any(0))]),
                (indices(x_down.any(1)), [indices((before if dying else h).any(1))]),
                (indices(h.any(1)), keys),
                (extremal, [indices(x_down.any(0))]),
                (
                    {int(w[:, c].argmax()) for c in extremal},
                    [indices((before if dying else h).any(0))],
                ),
                (indices(h.any(1)), wide),
                (indices(before.any(1)), keys),
                (indices(before.any(1)), wide),
            ]
            most = {"W_down": w.shape[1], "attention": T}  # what no ratio can exceed
            for r, (first, seconds) in enumerate(pairs):
                if any(levels[kind] >= most.get(kind, np.inf) for kind in ROWS[r].kinds):
                    continue
                values = {
                    "overlap": [len(first & s) / len(first) for s in seconds if first],
                    "reverse": [len(first & s) / len(s) for s in seconds if s],
                    "iou": [len(first & s) / len(first | s) for s in seconds if first | s],
                }
                for measure, each in values.items():
                    if each:
                        found[measure][r, layer, n] = np.mean(each)
    return found


@pytest.fixture(
    scope="module",
    params=mostly_endurance(sorted(RANDOM), usual=["gpt2", "llama-gqa", "llama-mqa"]),
)
def case(request):
    rng = np.random.default_rng()
    lm = random_model(request.param, seed=int(rng.integers(2**31)))
    tokens = rng.integers(0, lm.config.vocab_size, (4, int(rng.integers(20, 60))))
    size = int(rng.choice([1, 2, 4]))
    tau = float(rng.uniform(2.2, 3.5))
    return lm, tokens, so.consistency(lm.with_passes(batch_size=size), tokens, tau)


def test_every_measure_of_every_row_layer_and_sample(case):
    lm, tokens, report = case
    for agreement in (report.at_tau, report.candidate, report.others[100.0]):
        if agreement is None:
            continue
        want = slow(lm, tokens, agreement.levels)
        for measure in MEASURES:
            np.testing.assert_allclose(getattr(agreement, measure), want[measure], rtol=1e-6)
    assert np.isfinite(report.at_tau.overlap).any()
    assert tuple(report.others) == TAUS


def test_averages_are_means_of_layer_means(case):
    *_, report = case
    for measure in MEASURES:
        # over the same layers and samples, whatever is measured
        values = np.where(np.isnan(report.at_tau.overlap), np.nan, getattr(report.at_tau, measure))
        for row, average in zip(values, report.at_tau.averages(measure), strict=True):
            layers = [np.nanmean(v) for v in row if np.isfinite(v).any()]
            np.testing.assert_allclose(average.value, np.mean(layers) if layers else np.nan)


def test_intervals_hold_the_value_and_are_seeded(case):
    *_, report = case
    first, again, other = (report.at_tau.averages("iou", seed) for seed in (3, 3, 4))
    spread = 0
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal([a.value, a.low, a.high], [b.value, b.low, b.high])
        np.testing.assert_equal(a.value, c.value)
        if np.isfinite(a.value):
            assert a.low <= a.value + 1e-9 and a.value - 1e-9 <= a.high
            spread += a.low < a.high
    assert spread  # four different samples do differ


def test_bootstrap_is_that_of_resampled_samples():
    """Percentiles against resampling with explicit indices, on values with holes."""
    from sysout_jax.analyses.consistency.measure import _average
    from sysout_jax.numerics.intervals import bootstrap_weights

    rng = np.random.default_rng(5)
    values = rng.random((3, 40))
    values[0, ::3] = np.nan
    got = _average(values, bootstrap_weights(40, seed=0))
    draws = []
    for _ in range(4000):
        picked = values[:, rng.integers(0, 40, 40)]
        draws.append(np.mean([np.nanmean(row) for row in picked]))
    low, high = np.percentile(draws, [2.5, 97.5])
    assert got.low == pytest.approx(low, abs=0.01) and got.high == pytest.approx(high, abs=0.01)


@pytest.mark.parametrize(
    "_", range(3)
)  # ids must be the same in every worker: seeds are drawn below
def test_planted_truth(_):
    """A wide MLP, so that planted weights exceed τ times the mean of their row: everything coincides at the birth."""
    seed = int(np.random.default_rng().integers(2**20))
    print("seed", seed)
    planted = planted_llama(
        seed, num_layers=5, d_ff=4096, births=(Birth(1, 2, 2),), death_layer=3, placement="first"
    )
    tokens = planted.tokens(3, 256, seed)
    report = so.consistency(planted.lm, tokens)
    assert report.found and report.missing == ("attention",)
    assert report.out_of_reach(1000) == ("attention",)  # T is below τ
    assert np.isnan(report.at_tau.overlap[3]).all() and np.isnan(report.at_tau.overlap[7]).all()
    overlap, reverse = report.at_tau.layers("overlap"), report.at_tau.layers("reverse")
    nan = np.nan
    # layer 1 gives birth; layer 3 kills: its weights write the same dims, and nothing of h is left after it
    np.testing.assert_array_equal(overlap[0], [nan, 1, nan, 1, nan])
    np.testing.assert_array_equal(reverse[0], [nan, 1, nan, 1, nan])
    np.testing.assert_array_equal(overlap[1], [nan, 1, nan, 0, nan])
    np.testing.assert_array_equal(reverse[1], [nan, 1, 0, nan, nan])
    # the MLP that takes back writes for the tokens that enter it
    np.testing.assert_array_equal(overlap[2], [nan, 1, nan, 1, nan])
    np.testing.assert_array_equal(overlap[4], [nan, 1, nan, 1, nan])
    np.testing.assert_array_equal(overlap[5], [nan, 1, nan, 1, nan])
    # sinks, as the code's rule sees them in the attention that reads the outliers
    sinks = [sum(layer == l for layer, _ in planted.truth.sink_heads) for l in range(5)]
    np.testing.assert_array_equal(overlap[8], [nan, nan, *(float(s > 0) for s in sinks[2:4]), nan])
    assert report.at_tau.first_size[0, 1] == 2 and report.at_tau.first_size[1, 1] == 2
    json.dumps(report.to_dict(), allow_nan=False)


def test_nothing_to_compare():
    lm = planted_llama(strength=0.0).lm
    report = so.consistency(lm, np.random.default_rng(0).integers(0, 64, (2, 30)))
    assert not report.found and not np.isfinite(report.at_tau.overlap).any()
    assert report.candidate is not None and set(report.missing) == set(report.ratios)
    assert "num_layers" in report._repr_html_()  # in a notebook
    for kind, level in report.candidate.levels.items():
        assert level == pytest.approx(0.75 * report.ratios[kind])


def test_tau_must_be_positive():
    with pytest.raises(ValueError, match="tau is .*expected a finite number"):
        so.consistency(random_model("gpt2", seed=0), np.zeros((1, 4), int), 0.0)
