"""Streaming statistics against their definitions, computed slowly in numpy from raw captured tensors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.statistics.collect import STATISTICS
from sysout_jax.statistics.statistic import Statistic
from tests.outliers import rules
from tests.random_models import RANDOM, random_model

TAU = 3.0  # low enough for random models to have outliers


def place(stats, taps, name):
    return getattr(stats, name), np.asarray(taps[name], np.float64)


@pytest.fixture(scope="module", params=sorted(RANDOM))
def case(request):
    rng = np.random.default_rng()
    lm = random_model(request.param, seed=int(rng.integers(2**31)))
    tokens = rng.integers(0, lm.config.vocab_size, (5, int(rng.integers(20, 70))))
    _, taps = so.capture(lm, tokens, names=("h", "x_down", "attn_map"))
    return lm, tokens, taps, so.collect(lm, tokens, TAU)


def test_value_statistics(case):
    lm, tokens, _, stats = case
    _, taps = so.capture(lm, tokens, names=("v",))
    norm = np.linalg.norm(np.asarray(taps["v"], np.float64), axis=-1).mean(-1)
    np.testing.assert_allclose(stats.values.norm, norm, rtol=2e-5)
    over = norm / norm.mean(-1, keepdims=True)
    np.testing.assert_allclose(stats.values.over_mean, over, rtol=2e-5)
    columns = stats.to_dict()["values"]
    np.testing.assert_allclose(columns["norm"], norm.mean((1, 2)), rtol=2e-5)
    np.testing.assert_allclose(columns["first_token_over_mean"], over[:, :, 0].mean(1), rtol=2e-5)


def test_value_norms_leave_out_what_is_not_finite():
    v = jnp.asarray([[[[3.0, 4.0]], [[jnp.inf, 1.0]], [[1e30, 0.0]], [[0.0, 0.0]]]])
    norm = np.asarray(STATISTICS["values"].reduce(None, {"v": v})["norm"])
    assert (
        norm[0, 0] == 5 and not np.isfinite(norm[0, 1]) and norm[0, 2] == 1e30 and norm[0, 3] == 0
    )
    kept = norm[:, [0, 1, 3]]
    stats = STATISTICS["values"].join([{"norm": kept}], None)
    np.testing.assert_allclose(stats.over_mean, [[[2.0, np.nan, 0.0]]])
    assert STATISTICS["values"].columns(stats)["norm"] == [2.5]


@pytest.mark.parametrize("name", ["h", "x_down"])
def test_activation_statistics(case, name):
    _, _, taps, stats = case
    got, x = place(stats, taps, name)
    a = np.abs(x)
    np.testing.assert_allclose(got.mean, a.mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(got.sequence_mean, a.mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(got.sequence_median, np.median(a, (2, 3)), rtol=1e-6)
    np.testing.assert_allclose(got.median, np.median(a, (2, 3)).mean(1), rtol=1e-6)
    np.testing.assert_allclose(got.token_max, a.max(3), rtol=1e-6)
    np.testing.assert_allclose(
        got.channel_ratio, (a.max(2) / a.mean((2, 3))[:, :, None]).max(1), rtol=1e-5
    )
    np.testing.assert_allclose(
        got.sequence_top, -np.sort(-a.reshape(*a.shape[:2], -1))[..., :3], rtol=1e-6
    )
    pooled_LxXxC = x.reshape(len(x), -1, x.shape[-1])
    gamma = [np.linalg.norm(p.mean(0)) / np.linalg.norm(p.std(0)) for p in pooled_LxXxC]
    np.testing.assert_allclose(got.severity, gamma, rtol=1e-4)
    np.testing.assert_allclose(got.channel_max, a.max(2), rtol=1e-6)
    for layer in range(len(x)):
        order = np.argsort(-a[layer].ravel(), kind="stable")[: got.top_values.shape[1]]
        where = np.unravel_index(order, a[layer].shape)
        np.testing.assert_allclose(got.top_values[layer], a[layer][where], rtol=1e-6)
        for found, want in zip(
            (got.top_sequences, got.top_tokens, got.top_channels), where, strict=True
        ):
            np.testing.assert_array_equal(found[layer], want)
        np.testing.assert_array_equal(got.top_signs[layer], np.sign(x[layer][where]))
        np.testing.assert_allclose(
            got.excess_kurtosis[layer],
            np.mean([rules.excess_kurtosis(s) for s in x[layer]]),
            rtol=1e-5,
            atol=3e-5,  # the kurtosis itself is near 3
        )
        pooled = x[layer].reshape(-1, x.shape[-1])
        np.testing.assert_allclose(
            got.neuron_kurtosis[layer], rules.neuron_rms_kurtosis(pooled), rtol=1e-4
        )
        flagged = np.stack([rules.activation_outliers(s, TAU) for s in x[layer]])
        np.testing.assert_array_equal(got.outlier_tokens(TAU)[layer], flagged.any(-1))
        np.testing.assert_array_equal(got.outlier_channels(TAU)[layer], flagged.any((0, 1)))
        for i, tau in enumerate(TAUS):
            assert got.counts[layer, i] == sum(
                rules.activation_outliers(s, tau).sum() for s in x[layer]
            )
        assert got.massive[layer] == sum(rules.massive_activations(s).sum() for s in x[layer])
    assert not got.nonfinite.any() and (got.first_nonfinite == -1).all()


def test_attention_statistics(case):
    _, tokens, taps, stats = case
    sums = np.asarray(taps["attn_map"], np.float64).sum(3)  # (L, N, H, S)
    got, T = stats.attention, tokens.shape[1]
    np.testing.assert_allclose(got.cumulative, sums.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.sums, sums, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.head_mean, sums.mean(2), rtol=1e-4, atol=1e-5)
    for layer in range(len(sums)):
        tokens_flagged = np.stack(
            [rules.activation_outliers(s, TAU).any(-1) for s in np.asarray(taps["h"][layer])]
        )
        keys = np.stack([rules.attention_outliers(s, TAU) for s in sums[layer]])
        wide = sums[layer].mean(axis=1, keepdims=True) >= 0.1 * T
        for found, flagged, measure in (
            (got.overlap, keys, rules.overlap),
            (got.overlap_code, wide, rules.overlap),
            (got.iou, keys, rules.intersection_over_union),
            (got.iou_code, wide, rules.intersection_over_union),
        ):
            values = [
                measure(t, k) for t, k in zip(tokens_flagged, flagged, strict=True) if t.any()
            ]
            want = np.nanmean(values) if values and np.isfinite(values).any() else np.nan
            np.testing.assert_allclose(found[layer], want, rtol=1e-6)
        np.testing.assert_array_equal(
            got.code_outlier_tokens[layer],
            np.stack([rules.attention_outliers_of_code(s) for s in sums[layer]]),
        )
        assert got.sink_rate[layer] == pytest.approx((sums[layer][..., 0] / T > 0.3).mean())


def test_weight_statistics(case):
    lm, _, _, stats = case
    for layer in range(lm.num_layers):
        params = lm.params[f"layer_{layer}"]
        kernels = {
            name.removesuffix("_proj"): np.asarray(p["kernel"]) for name, p in params["mlp"].items()
        }
        for name, p in params["attn"].items():
            name = name.removesuffix("_proj")
            if name == "qkv":
                kernels |= dict(
                    zip("qkv", np.split(np.asarray(p["kernel"]), 3, axis=1), strict=True)
                )
            else:
                kernels[name] = np.asarray(p["kernel"])
        assert set(kernels) == set(stats.weights.modules)
        for m, name in enumerate(stats.weights.modules):
            w = kernels[name].T.astype(np.float64)  # (O, I), as the paper writes it
            columns, rows = rules.extremal_ratios(w, axis=0), rules.extremal_ratios(w, axis=1)
            np.testing.assert_allclose(
                stats.weights.column_ratio[layer, m], columns.max(), rtol=1e-5
            )
            assert stats.weights.column[layer, m] == columns.argmax()
            np.testing.assert_allclose(stats.weights.row_ratio[layer, m], rows.max(), rtol=1e-5)
            assert stats.weights.row[layer, m] == rows.argmax()
            np.testing.assert_array_equal(
                stats.weights.counts[layer, m], [rules.weight_outliers(w, t).sum() for t in TAUS]
            )
            found = stats.weights.column_ratios[name][layer]
            np.testing.assert_allclose(found, columns, rtol=1e-5)
            if name == "down":
                row_mean = np.abs(w).mean(1, keepdims=True)
                np.testing.assert_allclose(stats.weights.down_row_ratios[layer], rows, rtol=1e-5)
                over = (np.abs(w) / row_mean).max(0)
                np.testing.assert_allclose(stats.weights.down_weight_ratios[layer], over, rtol=1e-5)
                np.testing.assert_array_equal(
                    stats.weights.down_largest_rows[layer], np.abs(w).argmax(0)
                )


def test_any_split_into_batches_gives_the_same(case):
    lm, tokens, _, whole = case
    for size in (1, 2):
        parts = so.collect(lm.with_passes(batch_size=size), tokens, TAU)
        for group in ("h", "x_down", "attention"):
            for name, want in vars(getattr(whole, group)).items():
                found = vars(getattr(parts, group))[name]
                if want is None:
                    assert found is None
                    continue
                if want.dtype.kind in "iub":
                    np.testing.assert_array_equal(found, want, err_msg=f"{group}.{name}")
                else:  # kurtosis multiplies rounding by four
                    tolerance = 1e-5 if "kurtosis" in name else 1e-6
                    scale = np.nanmax(np.abs(want)) if np.isfinite(want).any() else 1.0
                    np.testing.assert_allclose(
                        found,
                        want,
                        rtol=tolerance,
                        atol=tolerance * scale,
                        err_msg=f"{group}.{name}",
                    )


def test_counts_of_planted_values():
    """Every threshold crossed, so that the sweeps that are usually skipped run."""
    from sysout_jax.statistics.activations import join_activations, reduce_activations

    rng = np.random.default_rng()
    x = rng.standard_normal((3, 200, 300)).astype(np.float32)
    for size in (150.0, 500.0, 2000.0, 9000.0):
        x[rng.integers(3), rng.integers(200), rng.integers(300)] = size * rng.choice([-1, 1])
    found = {k: np.asarray(v) for k, v in reduce_activations(x, 16).items()}
    stats = join_activations([found], 16)
    for i, tau in enumerate(TAUS):
        assert stats.counts[0, i] == sum(rules.activation_outliers(s, tau).sum() for s in x)
    assert stats.massive[0] == sum(rules.massive_activations(s).sum() for s in x) > 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_values_are_counted_located_and_left_out(bad):
    from sysout_jax.statistics.activations import join_activations, reduce_activations

    rng = np.random.default_rng()
    x = rng.standard_normal((3, 20, 31)).astype(np.float32) + 0.5
    x[1, 7, 30] = x[1, 9, 2] = x[2, 0, 0] = bad
    stats = join_activations([{k: np.asarray(v) for k, v in reduce_activations(x, 8).items()}], 8)
    assert stats.nonfinite[0] == 3
    assert stats.first_nonfinite[0].tolist() == [1, 7, 30]
    for n in range(3):
        kept = x[n][np.isfinite(x[n])].astype(np.float64)
        np.testing.assert_allclose(stats.sequence_mean[0, n], np.abs(kept).mean(), rtol=1e-5)
        np.testing.assert_allclose(stats.sequence_median[0, n], np.median(np.abs(kept)), rtol=1e-6)
    kurtosis = np.mean([rules.excess_kurtosis(s[np.isfinite(s)]) for s in x])
    np.testing.assert_allclose(stats.excess_kurtosis[0], kurtosis, rtol=1e-3, atol=1e-3)
    assert np.isfinite(stats.top_values).all()


@pytest.mark.parametrize("exponent", [-100, -40, 20, 60, 110])
def test_kurtoses_do_not_depend_on_the_unit(exponent):
    """Their fourth powers are no float32."""
    from sysout_jax.statistics.activations import join_activations, reduce_activations

    x = np.random.default_rng().standard_normal((2, 20, 31)).astype(np.float32) + 0.5
    x[1, 3, 4] = 1000
    here, there = (
        join_activations([{k: np.asarray(v) for k, v in reduce_activations(y, 8).items()}], 8)
        for y in (x, np.ldexp(x, exponent))
    )
    np.testing.assert_array_equal(here.excess_kurtosis, there.excess_kurtosis)
    np.testing.assert_array_equal(here.neuron_kurtosis, there.neuron_kurtosis)
    assert here.neuron_kurtosis[0] > 5


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_tau_must_be_positive(tau):
    lm = random_model("llama-gqa", seed=0)
    with pytest.raises(ValueError, match="tau is .*expected a finite number"):
        so.collect(lm, np.zeros((1, 4), int), tau)


@pytest.mark.parametrize("name", ["gpt2", "llama-mqa"])
def test_jax_in_64_bits_changes_nothing(name):
    """It was a TypeError: counts of booleans became int64."""
    lm = random_model(name, seed=1)
    tokens = np.random.default_rng(1).integers(0, lm.config.vocab_size, (2, 17))
    stats = so.collect(lm, tokens, TAU)
    with jax.enable_x64(True):
        wide = so.collect(lm, tokens, TAU)
    for one, other in zip(_leaves(stats), _leaves(wide), strict=True):
        np.testing.assert_array_equal(one, other)


def _leaves(value) -> list:
    if dataclasses.is_dataclass(value):
        return [leaf for f in dataclasses.fields(value) for leaf in _leaves(getattr(value, f.name))]
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    return [np.asarray(value)]


def test_a_new_statistic_is_one_entry(monkeypatch):
    """It reads what the others read, and lands in `Stats` and in the JSON; one whose taps a model lacks is left out."""
    lm = random_model("llama-mqa", 0)
    tokens = np.random.default_rng(0).integers(0, lm.config.vocab_size, (3, 20))
    lengths = Statistic(
        "lengths",
        taps=("h", "h_mid"),
        reduce=lambda spec, taps: {"mean": jnp.linalg.norm(taps["h"], axis=-1).mean(-1)},
        row=lambda layer: {"mean": layer.seen["lengths"]["mean"].mean()},
        join=lambda rows, config: np.array([row["mean"] for row in rows]),
        columns=lambda lengths: {"mean": lengths},
    )
    monkeypatch.setitem(STATISTICS, "lengths", lengths)
    without = dataclasses.replace(lengths, name="none", taps=("down_gain",))
    monkeypatch.setitem(STATISTICS, "none", without)
    jax.clear_caches()  # what was compiled knows the old entries
    stats = so.collect(lm, tokens, TAU)
    _, taps = so.capture(lm, tokens, ("h",))
    want = np.linalg.norm(taps["h"], axis=-1).mean((1, 2))
    np.testing.assert_allclose(stats.gathered["lengths"], want, rtol=1e-5)
    assert stats.to_dict()["lengths"]["mean"] == pytest.approx(want.tolist(), rel=1e-5)
    assert "none" not in stats.gathered and {"h", "weights"} < stats.gathered.keys()
    jax.clear_caches()
