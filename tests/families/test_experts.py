"""Mixtures of experts: a planted outlier is found with its expert, statistics are of what the chosen experts hold, compression keeps what it must."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.compress.inputs import calibrate
from sysout_jax.compress.methods import METHODS, Compressor
from sysout_jax.compress.quantise import absmax_weights
from sysout_jax.compress.smooth import smooth
from sysout_jax.errors import InputError
from sysout_jax.families.mixtral import MixtralConfig
from sysout_jax.testing import Planted, planted_llama
from sysout_jax.weights import InMemory
from tests.families.cases import random_tokens
from tests.families.test_families import config_of, model_of

EXPERTS, USED = 4, 2


def planted_mixture(seed: int) -> tuple[so.LanguageModel, Planted, np.ndarray]:
    """A planted LLaMA whose MLPs are each one of several experts, and which one (L,); routers send outlier tokens there."""
    plant = planted_llama(seed=seed)
    rng, dense = np.random.default_rng(seed), plant.lm.config
    fields = {f.name: getattr(dense, f.name) for f in dataclasses.fields(dense)}
    config = MixtralConfig(**fields | {"family": "mixtral"}, num_experts=EXPERTS, experts_used=USED)
    chosen_L = rng.integers(EXPERTS, size=config.num_layers)
    tokens = plant.tokens(2, 96)
    _, taps = so.capture(plant.lm, tokens, ("mlp_in",))
    params = dict(plant.lm.params)
    for l, e in enumerate(chosen_L):
        mlp = {name: np.asarray(p["kernel"]) for name, p in params[f"layer_{l}"]["mlp"].items()}
        others = [
            {name: 0.01 * rng.standard_normal(k.shape).astype("f") for name, k in mlp.items()}
            for _ in range(EXPERTS)
        ]
        others[e] = mlp
        for i, other in enumerate(others):
            if i != e:
                other["down_proj"][:, list(plant.truth.dims)] = 0.0
        router = 0.1 * rng.standard_normal((config.d_model, EXPERTS)).astype("f")
        marked_D = taps["mlp_in"][l][plant.mask(tokens)].mean(0)
        router[:, e] += 20 * marked_D / (marked_D**2).sum()
        wide = {
            name: {"kernel": np.concatenate([o[name] for o in others], int(name != "down_proj"))}
            for name in mlp
        }
        params[f"layer_{l}"] = params[f"layer_{l}"] | {"mlp": wide | {"router": router}}
    return so.LanguageModel(config, InMemory(params), name="mixture"), plant, chosen_L


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_planted_outlier_is_found_with_its_expert(seed):
    lm, plant, chosen_L = planted_mixture(seed)
    tokens, (birth,) = plant.tokens(2, 96), plant.truth.births
    F, expert = lm.config.d_ff, int(chosen_L[birth.layer])
    report = so.lifecycle(lm, tokens)
    (event,) = report.birth.events
    assert (event.layer, event.dims) == (birth.layer, birth.dims)
    assert [c.index for c in event.channels] == [expert * F + c for c in birth.channels]
    assert [c.label for c in event.channels] == [f"{expert}:{c}" for c in birth.channels]
    assert event.explained == pytest.approx(1, abs=0.02)
    assert report.death.layer == plant.truth.death_layer
    (opposition,) = [o for o in report.death.oppositions if o.layer == plant.truth.death_layer]
    wanted = [f"{chosen_L[opposition.layer]}:{c}" for c in plant.truth.death_channels]
    assert [c.label for c in opposition.channels] == wanted
    assert report.cause.edits["element"].effect.outliers == 0
    shown = so.existence(lm, tokens, stats=report.stats)
    assert shown.h.elements[0].channel in birth.dims
    # of the weights the planted ones stand out, by their row and their column
    kernel = lm.config.layer(birth.layer).matrix("down").of(lm.params[f"layer_{birth.layer}"])
    column = expert * F + birth.channels[0]
    ratio_F = np.abs(kernel).max(1) / np.abs(kernel).mean(1)
    assert ratio_F.argmax() == column
    down = report.stats.weights.modules.index("down")
    assert report.stats.weights.column[birth.layer, down] == column
    assert report.stats.weights.row[birth.layer, down] in birth.dims


def test_statistics_are_of_what_the_chosen_experts_hold():
    lm, tokens = model_of("mixtral"), random_tokens(5)
    stats = so.collect(lm, tokens, tau=4.0).x_down
    _, taps = so.capture(lm, tokens, ("x_down", "expert", "expert_weight"))
    F, E = lm.config.d_ff, lm.config.num_experts
    np.testing.assert_allclose(taps["expert_weight"].sum(-1), 1, rtol=1e-6)
    for l in range(lm.num_layers):
        x_NxTxRxF, expert_NxTxR = taps["x_down"][l].astype(np.float64), taps["expert"][l]
        size = np.abs(x_NxTxRxF)
        mean_N = size.mean((1, 2, 3))
        np.testing.assert_allclose(stats.sequence_mean[l], mean_N, rtol=1e-6)
        np.testing.assert_allclose(stats.sequence_median[l], np.median(size, (1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(stats.token_max[l], size.max((2, 3)), rtol=1e-6)
        ratio, squares, reached = np.zeros((E, F)), np.zeros((E, F)), np.zeros((E, 1))
        for n, t, r in np.ndindex(expert_NxTxR.shape):
            e = expert_NxTxR[n, t, r]
            ratio[e] = np.maximum(ratio[e], size[n, t, r] / mean_N[n])
            squares[e] += size[n, t, r] ** 2
            reached[e] += 1
        np.testing.assert_allclose(stats.channel_ratio[l], ratio.ravel(), rtol=1e-5)
        power = (squares / np.maximum(reached, 1))[reached[:, 0] > 0]
        kurtosis = (power**2).mean() / power.mean() ** 2
        np.testing.assert_allclose(stats.neuron_kurtosis[l], kurtosis, rtol=1e-5)
        n, t, r, f = np.unravel_index(size.argmax(), size.shape)
        first = stats.top_sequences[l, 0], stats.top_tokens[l, 0], stats.top_channels[l, 0]
        assert first == (n, t, expert_NxTxR[n, t, r] * F + f)
        assert stats.label(first[2]) == f"{expert_NxTxR[n, t, r]}:{f}"


def test_where_an_expert_gives_nothing_finite():
    """A damaged weight of one expert is counted at the tokens that go there, and nowhere else."""
    lm, tokens = model_of("mixtral"), random_tokens(5)
    expert, unit, F = 1, 3, lm.config.d_ff

    def damage(params: dict) -> dict:
        kernel = np.array(params["mlp"]["up_proj"]["kernel"])
        kernel[0, expert * F + unit] = np.nan
        return params | {"mlp": params["mlp"] | {"up_proj": {"kernel": kernel}}}

    stats = so.collect(lm.with_edits({"layer_0": damage}), tokens)
    _, taps = so.capture(lm, tokens, ("expert",))
    here = (taps["expert"][0] == expert).any(-1)
    assert here.any() and not here.all()
    counts, (n, t) = stats.nonfinite.x_down, np.argwhere(here)[0]
    assert counts.nan[0] == here.sum() and counts.size == tokens.size * 2 * F
    at = (counts.first.sequence, counts.first.token, counts.first.channel)
    assert at == (n, t, expert * F + unit) == tuple(stats.x_down.first_nonfinite[0])


def test_compression_of_experts():
    """Smoothing changes nothing, router included; every expert is rounded by itself; inputs of experts are calibrated at their channels."""
    lm, tokens = model_of("mixtral"), random_tokens(6)
    maxima = calibrate(lm, tokens)
    _, taps = so.capture(lm, tokens, ("x_down", "expert"))
    E, F = lm.config.num_experts, lm.config.d_ff
    for e in range(E):
        rows = np.abs(taps["x_down"][1][taps["expert"][1] == e])
        want = rows.max(0) if len(rows) else np.zeros(F)
        np.testing.assert_allclose(maxima[1]["mlp/down_proj"].reshape(E, F)[e], want, rtol=1e-6)
    edits = {
        f"layer_{l}": lambda params, l=l: smooth(
            lm.config.layer(l), params, maxima[l], 0.5, down=True
        )[0]
        for l in range(lm.num_layers)
    }
    exact, smoothed = so.capture(lm, tokens, ())[0], so.capture(lm.with_edits(edits), tokens, ())[0]
    np.testing.assert_allclose(smoothed, exact, atol=2e-5 * np.abs(exact).max())
    rounded = Compressor(lm).model(METHODS["w8_tensor"]).read("layer_0")["mlp"]
    up = np.asarray(lm.params["layer_0"]["mlp"]["up_proj"]["kernel"])
    for e, part in enumerate(np.split(up, E, axis=1)):
        found = rounded["up_proj"]["kernel"][:, e * F : (e + 1) * F]
        np.testing.assert_array_equal(found, absmax_weights(part, bits=8))
    np.testing.assert_array_equal(rounded["router"], lm.params["layer_0"]["mlp"]["router"])


def test_more_experts_than_there_are():
    with pytest.raises(InputError, match="experts_used 9 must be at most num_experts 4"):
        dataclasses.replace(config_of("mixtral"), experts_used=9)


@pytest.mark.slow
def test_interventions_find_the_weight_in_its_expert():
    lm, plant, _ = planted_mixture(2)
    edited = so.intervene(
        lm, plant.tokens(2, 96), what=("zero",), where=("birth", "weight"), seeds=2
    )
    assert edited.found and edited.baseline.outliers.value > 0
    for outcome in edited.outcomes:
        whole = edited.baseline.outliers.value if outcome.target == "control" else 0
        assert outcome.outliers.value == whole
