"""Every family against transformers, and what holds for every model: streaming, capture, causality."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.capture import COLLECTION, TAPS
from sysout_jax.checkpoints.formats.hf_config import read_config
from sysout_jax.config import config_to_dict
from sysout_jax.families import FAMILIES, config_from_dict
from sysout_jax.models import parameter_shapes
from sysout_jax.sharding import lay, make_mesh, parameter_specs
from sysout_jax.training.config import OptimizerConfig, TrainConfig
from sysout_jax.training.step import make_program
from sysout_jax.weights import InMemory
from tests.families.cases import (
    BATCH,
    CASES,
    LENGTH,
    OTHERS,
    computed,
    random_tokens,
    save,
    transformers_model,
)
from tests.parameters import mostly_endurance
from tests.random_models import random_params

#: One shape of each family; the others are for make test.
FIRST = list({case.kind: name for name, case in reversed(CASES.items())}.values())
EACH = [*FIRST, *OTHERS]
#: One family of every wiring: gated, without a gate, parallel, with ALiBi, norms after, caps and windows, experts, sinks. Tests that compile
#: many programs run over these; over all others they are endurance.
WIRINGS = ["llama", "gpt2", "phi", "mpt", "olmo2", "gemma2", "mixtral", "gpt_oss", "minicpm"]
EVERY = [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


def config_of(name: str):
    case = (CASES | OTHERS)[name]
    return read_config({"model_type": case.kind, **case.settings}, name).config


@cache
def model_of(name: str) -> so.LanguageModel:
    config = config_of(name)
    params = random_params(config, 0, std=0.3, scale=1.0)
    return so.LanguageModel(config, InMemory(params), name=name)


def captured(lm: so.LanguageModel, tokens: np.ndarray) -> tuple:
    """Logits and taps: one set of names in every test of a case, so that its steps are compiled once."""
    spec = lm.config.layer(0)
    names = ["h", "x_down", "attn_map", "attn_out", "down"]
    names += ["attn_scale"] if spec.heads.sink else []
    names += ["down_gain"] if spec.writers[1].gain else []
    names += ["expert", "expert_weight"] if spec.mlp.experts else []
    return so.capture(lm, tokens, names)


def test_every_family_has_a_case():
    assert {config_of(name).family for name in CASES | OTHERS} == set(FAMILIES)


@pytest.mark.parity
@pytest.mark.parametrize("name", EVERY)
def test_equals_transformers(name, tmp_path):
    """The tolerance is float32's over a few hundred products; a wrong pairing, scale, window or order of parts is a thousand times that."""
    pytest.importorskip("transformers")
    model, tokens = transformers_model(CASES[name], 0), random_tokens(0)
    want = computed(model, tokens)
    lm = so.load(save(model, tmp_path / "model"))
    logits, taps = captured(lm, tokens)
    if "attn_scale" in taps:  # theirs leaves to the sink what ours has as a scale
        taps["attn_map"] = taps["attn_map"] * taps["attn_scale"][..., None]
    compared = {name: taps[name] for name in ("h", "x_down", "attn_map")}
    for what, found in {"logits": logits, **compared}.items():
        scale = max(1.0, float(np.abs(want[what]).max()))
        assert found.shape == want[what].shape, what
        np.testing.assert_allclose(found, want[what], atol=1e-4 * scale, err_msg=what)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", mostly_endurance(FIRST, usual=[name for name in WIRINGS if name in FIRST])
)
def test_bfloat16(name, tmp_path):
    """What bfloat16 is off float32 by is no more than 1.5 times what it is in transformers, and 1 % of the length of all; with experts of
    logits alone: a token near the border between two goes to another one."""
    pytest.importorskip("transformers")
    model, tokens = transformers_model(CASES[name], 0), random_tokens(0)
    directory = save(model, tmp_path / "model")
    want = computed(model, tokens)
    theirs = computed(model.bfloat16(), tokens)
    logits, taps = captured(so.load(directory, "bfloat16"), tokens)
    ours = {"logits": logits}
    if config_of(name).layer(0).mlp.experts is None:
        ours |= {what: taps[what] for what in ("h", "x_down", "attn_map")}

    def off(given, what: str) -> float:
        exact = want[what]
        return float(np.linalg.norm(np.float32(given) - exact) / np.linalg.norm(exact))

    for what, given in ours.items():
        ours_off, theirs_off = off(given, what), off(theirs[what], what)
        assert ours_off < 1.5 * theirs_off + 0.01, (what, ours_off, theirs_off)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_endurance(EACH, usual=WIRINGS))
def test_how_sequences_are_cut_into_steps_changes_no_bit(name):
    lm, tokens = model_of(name), random_tokens(1)
    together, apart = captured(lm, tokens), captured(lm.with_passes(batch_size=1), tokens)
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_endurance(EACH, usual=WIRINGS))
def test_training(name, tmp_path):
    """The loss of the first step is that of the streamed pass, and steps on one batch lower it."""
    lm, tokens = model_of(name), random_tokens(5)
    likelihood, mesh = so.perplexity(lm, tokens).value, make_mesh(devices=jax.devices()[:1])
    config = TrainConfig(
        model=lm.config,
        data=tmp_path,
        steps=5,
        batch_size=BATCH,
        seq_len=LENGTH - 1,
        optimizer=OptimizerConfig(lr=1e-2, warmup_steps=0, weight_decay=0.0),
        dtype="float32",
    )
    with jax.set_mesh(mesh):
        program = make_program(config, mesh)
        params = jax.tree.map(jnp.copy, lm.params)  # steps take over what they are given
        state = program.init(jax.random.key(0)) | {"params": lay(params, mesh)}
        losses = []
        for _ in range(config.steps):
            state, metrics = program.train(state, tokens[None])
            losses.append(float(metrics["loss"]))
            assert all(np.isfinite(norms).all() for norms in metrics["grad_norms"].values())
    assert losses[0] == pytest.approx(np.log(likelihood), rel=1e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", CASES | OTHERS)
def test_config(name):
    config = config_of(name)
    assert config_from_dict(config_to_dict(config)) == config
    shapes = parameter_shapes(config)
    assert parameter_specs(shapes, make_mesh(devices=jax.devices()[:1]))
    for l in range(config.num_layers):
        spec = config.layer(l)
        for matrix in spec.matrices:
            assert len(matrix.of(_arrays(shapes[f"layer_{l}"])).shape) == 2
        for writer in spec.writers:
            assert {writer.input, writer.added, writer.gain or "h"} <= set(TAPS)
            assert spec.matrix(writer.matrix)


def _arrays(shapes: dict) -> dict:
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.int8), shapes)


@pytest.mark.parametrize("name", EACH)
def test_streaming_capture_and_causality(name):
    """Layer by layer gives what the whole model gives; recording changes no bit; no position reads the future."""
    lm, tokens = model_of(name), random_tokens(1)
    recorded = jax.jit(
        lambda params, tokens: lm.module.apply({"params": params}, tokens, mutable=[COLLECTION])
    )
    plain = jax.jit(lambda params, tokens: lm.module.apply({"params": params}, tokens))
    logits, _ = recorded(lm.params, tokens)
    assert np.asarray(logits).tobytes() == np.asarray(plain(lm.params, tokens)).tobytes()
    streamed, taps = captured(lm, tokens)
    scale = float(np.abs(np.asarray(logits)).max())
    np.testing.assert_allclose(streamed, logits, atol=1e-5 * scale)
    np.testing.assert_allclose(taps["attn_map"].sum(-1), 1.0, atol=1e-5)
    assert (np.triu(taps["attn_map"], 1) == 0).all()
    # what attention and MLP add is all that a layer adds
    added = taps["h"][1] - taps["h"][0] - taps["attn_out"][1] - taps["down"][1]
    np.testing.assert_allclose(added, 0.0, atol=1e-5 * np.abs(taps["h"]).max())
    changed = tokens.copy()
    changed[:, -1] = (changed[:, -1] + 1) % lm.config.vocab_size
    later = np.asarray(plain(lm.params, changed))
    np.testing.assert_array_equal(later[:, :-1], np.asarray(logits)[:, :-1])
    assert (later[:, -1] != np.asarray(logits)[:, -1]).any()


@pytest.mark.parametrize("name", EACH)
def test_carriers_of_the_mlp_add_up(name):
    """W_down[c, d] · x_down[c], times the gain of a norm after it, summed over channels and with the bias is what the MLP adds."""
    lm, tokens = model_of(name), random_tokens(2)
    spec = lm.config.layer(0)
    writer = spec.writers[1]
    _, taps = captured(lm, tokens)
    params = lm.params["layer_0"]
    x = taps[writer.input][0]
    if spec.mlp.experts:  # the rows of the chosen experts, weighted, at their channels
        wide = np.zeros((*x.shape[:2], spec.mlp.experts.total, x.shape[-1]), np.float32)
        weighted = x * taps["expert_weight"][0][..., None]
        np.put_along_axis(wide, taps["expert"][0][..., None], weighted, axis=2)
        x = wide.reshape(*x.shape[:2], -1)
    written = x @ np.asarray(spec.matrix(writer.matrix).of(params))
    bias = np.asarray(params["mlp"]["down_proj"].get("bias", 0.0))
    if bias.ndim == 2:
        bias = (taps["expert_weight"][0][..., None] * bias[taps["expert"][0]]).sum(2)
    written = written + bias
    gain = taps[writer.gain][0] if writer.gain else 1.0
    scale = np.abs(taps[writer.added][0]).max()
    np.testing.assert_allclose(gain * written, taps[writer.added][0], atol=1e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_endurance(EACH, usual=WIRINGS))
def test_every_analysis(name):
    lm, tokens = model_of(name), random_tokens(3)
    stats = so.collect(lm, tokens, tau=4.0)
    report = so.lifecycle(lm, tokens, 4.0, stats=stats)
    life = report if report.found else report.candidate
    for event in life.birth.events:
        assert event.from_mlp + event.from_attention + event.from_before == pytest.approx(
            1, abs=1e-3
        )
    assert so.existence(lm, tokens, 4.0, stats=stats).h.pooled is not None
    assert so.consistency(lm, tokens, 4.0).ratios["h"] == pytest.approx(
        stats.h.ratio.max(), rel=1e-5
    )
    profile = so.variant_profile(lm, tokens, 4.0)
    assert (profile.near_zero is None) == lm.config.layer(0).parallel
    assert so.perplexity(lm, tokens).value > 1
    study = so.compression(lm, tokens, methods=("w8_channel", "smooth_static", "prune_matrix"))
    assert study.outcomes


def test_slopes_of_mpt():
    """Those of Press et al. (2022), down to 2^-alibi_max; transformers ignores that setting, the models were trained with it."""
    slopes = config_of("mpt").slopes()
    assert slopes == (0.25, 0.0625, 0.015625, 0.00390625)
    wide = dataclasses.replace(config_of("mpt"), alibi_max=16.0).slopes()
    assert wide == tuple(slope**2 for slope in slopes)
    assert config_of("mpt-odd-heads").slopes() == (0.0625, 0.00390625, 0.25)
