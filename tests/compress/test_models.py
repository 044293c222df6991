"""Compressed models: what reaches which matrix, simulated inputs, SmoothQuant, and what is kept."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

import sysout_jax as so
from sysout_jax.analyses.compression.keeps import find_keeps, kept_weights, random_others
from sysout_jax.compress.block_formats import block_weights
from sysout_jax.compress.inputs import QuantisedInputs, calibrate
from sysout_jax.compress.methods import METHODS, Compressor, Kept, Method, Settings
from sysout_jax.compress.smooth import folds, smooth
from sysout_jax.engine import Stream, observe_nothing
from sysout_jax.families.gpt2 import Gpt2Config
from tests.compress.direct import absmax, assert_nearest, pruned, rounded
from tests.random_models import random_model

FAMILIES = ["llama-mqa", "gpt2", "gpt2-scaled"]


def model(name: str, seed: int) -> so.LanguageModel:
    if name != "gpt2-scaled":
        return random_model(name, seed)
    return random_model("gpt2-nobias", seed, attention="context_scale")


@pytest.fixture(params=FAMILIES)
def case(request):
    seed = int(np.random.default_rng().integers(2**31))
    print("seed", seed)
    lm = model(request.param, seed)
    return lm, np.random.default_rng(seed).integers(0, lm.config.vocab_size, (3, 17))


def logits(lm, tokens) -> np.ndarray:
    stream = Stream(lm, tokens)
    for _ in stream.layers(observe_nothing):
        pass
    return np.asarray(stream.logits())


def weights(lm) -> dict[str, np.ndarray]:
    names = [f"layer_{layer}" for layer in range(lm.num_layers)] + ["embed"]
    return {
        k: np.asarray(v) for n in names for k, v in flatten_dict({n: lm.read(n)}, sep="/").items()
    }


def test_weight_methods_reach_all_linear_layers_and_nothing_else(case):
    lm, _ = case
    compressed = weights(Compressor(lm, Settings(group_size=16)).model(METHODS["w4_group"]))
    kernels = 0
    for name, before in weights(lm).items():
        if name.endswith("kernel"):
            kernels += 1
            assert_nearest(compressed[name], before, absmax(before, 4, "group", 16))
        else:
            np.testing.assert_array_equal(compressed[name], before)
    per_layer = 4 if isinstance(lm.config, Gpt2Config) else 7
    assert kernels == lm.num_layers * (per_layer + (lm.config.attention == "context_scale"))


def test_embeddings_only_when_asked_for(case):
    lm, _ = case
    settings = Settings(sparsity=0.4, embeddings=True)
    table = weights(lm)["embed/embedding"]
    quantised = weights(Compressor(lm, settings).model(METHODS["w8_channel"]))
    assert_nearest(quantised["embed/embedding"], table, absmax(table.T, 8, "channel", 0).T)
    cut = weights(Compressor(lm, settings).model(METHODS["prune_matrix"]))["embed/embedding"]
    np.testing.assert_array_equal(cut, pruned([table], round(0.4 * table.size))[0])


def test_global_pruning_is_one_threshold_over_all_layers(case):
    lm, _ = case
    before = {k: v for k, v in weights(lm).items() if k.endswith("kernel")}
    found = weights(Compressor(lm, Settings(sparsity=0.6)).model(METHODS["prune_model"]))
    count = round(0.6 * sum(v.size for v in before.values()))
    assert sum((found[k] == 0).sum() for k in before) == count
    largest_cut = max(np.abs(before[k][found[k] == 0]).max() for k in before)
    assert largest_cut < min(np.abs(found[k][found[k] != 0]).min() for k in before)
    shares = [(found[k] == 0).mean() for k in before]
    assert max(shares) > 0.6 > min(shares)


def test_only_chosen_layers(case):
    lm, tokens = case
    made = Compressor(lm, calibration=calibrate(lm, tokens))
    for name in ("w4_tensor", "w8a8_static", "prune_model"):
        found, before = weights(made.model(METHODS[name], (1,))), weights(lm)
        changed = {k.split("/")[0] for k, v in before.items() if not np.array_equal(found[k], v)}
        assert changed == {"layer_1"}
        marked = {k.split("/")[0] for k in found if k.endswith("input_kept")}
        assert marked == ({"layer_1"} if name == "w8a8_static" else set())


@pytest.mark.parametrize("inputs", ["static", "token"])
@pytest.mark.parametrize("kept", [(), (2, 5)])
def test_simulated_inputs_against_numpy(case, inputs, kept):
    """What the up projection gives, from what it was given."""
    lm, tokens = case
    recorded = calibrate(lm, tokens)
    linear = [
        {p.removesuffix("/kernel") for p in flatten_dict(lm.read(f"layer_{l}"), sep="/") if p.endswith("kernel")}
        for l in range(lm.num_layers)
    ]  # fmt: skip
    assert [set(layer) for layer in recorded] == linear
    made = Compressor(lm, calibration=recorded)
    keep = {(0, "mlp/up_proj"): Kept(inputs=kept)}
    params = made.model(Method("", 8, "channel", inputs), keep=keep).read("layer_0")
    passed = {}

    def watch(call, args, kwargs, context):  # stands around the quantising one: sees what comes in
        result = call(*args, **kwargs)
        if isinstance(context.module, nn.Dense) and context.module.name == "up_proj":
            passed.update(x=args[0], y=result)
        return result

    x = np.random.default_rng().standard_normal((1, 9, lm.config.d_model)).astype(np.float32) * 5
    with nn.intercept_methods(watch):
        QuantisedInputs(lm.module.block(0)).apply({"params": params}, x, mutable=["intermediates"])
    seen = np.asarray(passed["x"][0])
    free = np.setdiff1d(np.arange(seen.shape[1]), kept)
    expected = seen.astype(np.float64)
    if inputs == "token":
        for t in range(len(seen)):
            expected[t, free] = rounded(seen[t, free], 8)
    else:
        scale = recorded[0]["mlp/up_proj"][free].max() / 127
        expected[:, free] = scale * np.clip(np.round(seen[:, free] / scale), -127, 127)
    up = params["mlp"]["up_proj"]
    y = expected @ np.asarray(up["kernel"], np.float64) + np.asarray(up.get("bias", 0))
    np.testing.assert_allclose(passed["y"][0], y, rtol=1e-4, atol=1e-4)
    assert np.abs(expected - seen).max() > 0


@pytest.mark.parametrize("alpha, down", [(0.5, False), (0.8, True)])
def test_smoothing_alone_changes_nothing(case, alpha, down):
    lm, tokens = case
    recorded, spec = calibrate(lm, tokens), lm.config.layer(0)
    edits = {
        f"layer_{l}": lambda params, l=l: smooth(spec, params, recorded[l], alpha, down)[0]
        for l in range(lm.num_layers)
    }
    smoothed = lm.with_edits(edits)
    before, after = weights(lm), weights(smoothed)
    assert not np.allclose(
        before["layer_0/mlp/up_proj/kernel"], after["layer_0/mlp/up_proj/kernel"]
    )
    exact, found = logits(lm, tokens), logits(smoothed, tokens)
    np.testing.assert_allclose(found, exact, atol=1e-5 * np.abs(exact).max(), rtol=1e-5)
    again = calibrate(
        smoothed, tokens
    )  # the maxima that smoothing predicts are those that are found
    for l in range(lm.num_layers):
        _, maxima = smooth(spec, lm.read(f"layer_{l}"), recorded[l], alpha, down)
        for name in maxima:
            np.testing.assert_allclose(again[l][name], maxima[name], rtol=1e-3, atol=1e-6)


def test_what_is_folded():
    llama, gpt2 = random_model("llama-gqa", 0), random_model("gpt2", 0)
    assert folds(llama.config.layer(0), llama.read("layer_0"), down=True) == {
        "attn_norm": ("attn/q_proj", "attn/k_proj", "attn/v_proj"),
        "mlp_norm": ("mlp/gate_proj", "mlp/up_proj"),
        "mlp/up_proj": ("mlp/down_proj",),
    }
    assert folds(gpt2.config.layer(0), gpt2.read("layer_0"), down=True) == {
        "attn_norm": ("attn/qkv_proj",),
        "mlp_norm": ("mlp/up_proj",),
    }
    scaled = model("gpt2-scaled", 0)
    assert "attn/scale_proj" in folds(scaled.config.layer(0), scaled.read("layer_0"))["attn_norm"]
    with pytest.raises(ValueError, match="from 0 to 1"):
        smooth(gpt2.config.layer(0), gpt2.read("layer_0"), {}, 1.5)


def test_smoothing_equalises_at_one_half(case):
    lm, tokens = case
    params, recorded = lm.read("layer_1"), calibrate(lm, tokens)[1]
    smoothed, maxima = smooth(lm.config.layer(1), params, recorded, 0.5)
    kernel = np.abs(np.asarray(smoothed["mlp"]["up_proj"]["kernel"])).max(1)
    if "gate_proj" in smoothed["mlp"]:
        kernel = np.maximum(kernel, np.abs(smoothed["mlp"]["gate_proj"]["kernel"]).max(1))
    np.testing.assert_allclose(maxima["mlp/up_proj"], kernel, rtol=1e-3)


def test_kept_parts_are_exact_and_controls_as_many(case):
    lm, tokens = case
    report = so.lifecycle(lm, tokens, 4.0, cause=False)
    life = report if report.found else report.candidate
    made = Compressor(lm, calibration=calibrate(lm, tokens))
    before = weights(lm)
    for what, keep in find_keeps(life, lm.config).items():
        others = random_others(keep, lm.config, np.random.default_rng())
        for one in (keep, others):
            found = weights(made.model(METHODS["w4_tensor"], keep=one))
            for (layer, path), kept in one.items():
                name = f"layer_{layer}/{path}/kernel"
                mask = kept.mask(before[name].shape)
                np.testing.assert_array_equal(found[name][mask], before[name][mask])
                expected = absmax(before[name], 4, "tensor", 0, mask)
                assert_nearest(found[name], before[name], expected)
        for place, kept in keep.items():
            control = others[place]
            assert not set(kept.inputs) & set(control.inputs)
            assert not set(kept.outputs) & set(control.outputs)
        size = kept_weights(keep, lm.config)
        if what != "birth_weights" or size == kept_weights(others, lm.config):
            assert size == kept_weights(others, lm.config)


def test_what_cannot_be():
    lm = random_model("gpt2", 0)
    with pytest.raises(ValueError, match="needs a calibration"):
        Compressor(lm).model(METHODS["w8a8_static"])
    with pytest.raises(ValueError, match="not when pruning"):
        Compressor(lm).model(METHODS["prune_model"], keep={(0, "mlp/up_proj"): Kept((1,))})


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_block_formats_round_every_kernel(kind):
    lm = random_model("llama-gqa", 0)
    found, before = weights(Compressor(lm).model(METHODS[kind])), weights(lm)
    for name, value in before.items():
        if name.startswith("layer_") and name.endswith("/kernel"):
            want = block_weights(jnp.asarray(value), kind=kind)
            np.testing.assert_array_equal(found[name], want, err_msg=name)
            assert (found[name] != value).any(), name
        else:
            np.testing.assert_array_equal(found[name], value, err_msg=name)
