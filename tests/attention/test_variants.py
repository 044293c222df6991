"""Every variant against the paper's formula written out, with the extra key appended, in whole models of both families."""

from __future__ import annotations

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.attention import VARIANTS, Attended, blocks, kernels, splash
from sysout_jax.attention.variants import Mixed
from sysout_jax.capture import COLLECTION, flatten_taps
from sysout_jax.config import ATTENTION
from sysout_jax.errors import InputError
from sysout_jax.families import config_from_dict
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.models import build, layers, parameter_shapes
from sysout_jax.platform import compiling_for
from sysout_jax.training.forward import applied
from tests.parameters import mostly_endurance

SIZES = {"vocab_size": 31, "context_length": 16, "d_model": 24, "d_ff": 40, "num_layers": 1}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_heads=4, num_kv_heads=2, head_dim=6),
    "gpt2": Gpt2Config(**SIZES, num_heads=4, activation="gelu"),
}
T = 11


def test_every_variant_has_a_name_in_configs():
    assert tuple(VARIANTS) == ATTENTION


def kernels_for(variant: str) -> list[str]:
    """Kernels that run on a CPU; `splash` has a test of its own, in Pallas's interpreter."""
    here = [n for n, k in kernels.KERNELS.items() if not k.refusal("cpu", jnp.float32)]
    return [n for n in here if kernels.KERNELS[n].rows or variant not in ("sigmoid", "softpick")]


# all kernels for one family; for the other only the one with a gradient of its own, and the rest when there is time
CASES = [("llama", v, kernels_for(v)) for v in ATTENTION] + [
    ("gpt2", v, ["blockwise"]) for v in ATTENTION
]
OTHER_CASES = [
    pytest.param(
        "gpt2", v, [n for n in kernels_for(v) if n != "blockwise"], marks=pytest.mark.endurance
    )
    for v in ATTENTION
]
EXTRA_KEYS = 3
# the others call the kernel as `default` does
SPLASH_CASES = ["default", "context_bias", "attention_bias", "learned_sink"] + [
    pytest.param(v, marks=pytest.mark.slow) for v in ("fixed_bias", "context_scale", "softmax1")
]


def case_name(value) -> str:
    return value if isinstance(value, str) else "+".join(value)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and spans even for a short sequence."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    monkeypatch.setitem(blocks.GROUPS, "cpu", 2)


def formula(module, x, q, k, v, kernel, spec) -> Mixed:
    """An et al., Table 2 and D.1, with explicit maps; parameters are declared under the names of the library."""
    cfg = module.cfg
    H, Dh, group = q.shape[2], q.shape[3], q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, 2), jnp.repeat(v, group, 2)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / Dh**0.5
    future = jnp.arange(q.shape[1])[:, None] < jnp.arange(q.shape[1])[None]
    logits = jnp.where(future[None, None], -jnp.inf, logits)

    def vector(name):
        return module.param(name, jax.nn.initializers.normal(0.02), (H, Dh), q.dtype)

    def with_extra_key(key, value):
        logit = jnp.einsum("bthd,hd->bht", q, key)[..., None] / Dh**0.5
        maps = jax.nn.softmax(jnp.concatenate([logit, logits], -1), -1)
        added = jnp.einsum("bht,hd->bthd", maps[..., 0], value)
        return jnp.einsum("bhts,bshd->bthd", maps[..., 1:], v), added

    out = jnp.einsum("bhts,bshd->bthd", jax.nn.softmax(logits, -1), v)
    if cfg.attention == "fixed_bias":
        out = out + vector("v_extra")[None, None]
    elif cfg.attention == "context_bias":
        out = out + with_extra_key(vector("k_extra"), vector("v_extra"))[1]
    elif cfg.extra_keys:  # more keys at the front
        own = {
            name: module.param(
                name, jax.nn.initializers.zeros, (EXTRA_KEYS, H // group, Dh), q.dtype
            )
            for name in ("k_extra", "v_extra")
        }
        keys, values = (jnp.repeat(own[name], group, 1) for name in own)
        extra = jnp.einsum("bthd,mhd->bhtm", q, keys) / Dh**0.5
        maps = jax.nn.softmax(jnp.concatenate([extra, logits], -1), -1)
        out = jnp.einsum("bhtm,mhd->bthd", maps[..., :EXTRA_KEYS], values)
        out = out + jnp.einsum("bhts,bshd->bthd", maps[..., EXTRA_KEYS:], v)
    elif cfg.attention == "attention_bias":
        out = sum(with_extra_key(vector("k_extra"), vector("v_extra")))
    elif cfg.attention == "context_scale":
        dense = module.param(
            "scale_proj",
            lambda key: {"kernel": jnp.zeros((x.shape[-1], H)), "bias": jnp.zeros(H)},
        )
        scale = 2 / (1 + jnp.exp(-(x @ dense["kernel"] + dense["bias"][None, None])))
        out = out * scale[..., None]
    elif cfg.attention == "sigmoid":
        weights = 1 / (1 + jnp.exp(-(logits - jnp.log(cfg.context_length))))
        out = jnp.einsum("bhts,bshd->bthd", weights, v)
    elif cfg.attention in ("softmax1", "learned_sink"):
        sink = jnp.zeros(H, q.dtype)
        if cfg.attention == "learned_sink":
            sink = module.param("sink", jax.nn.initializers.zeros, (H,), q.dtype)
        column = jnp.broadcast_to(sink[None, :, None, None], (*logits.shape[:3], 1))
        maps = jax.nn.softmax(jnp.concatenate([column, logits], -1), -1)
        out = jnp.einsum("bhts,bshd->bthd", maps[..., 1:], v)
    elif cfg.attention in ("gate", "gate_elements"):
        width = H if cfg.attention == "gate" else H * Dh
        kernel = module.param(
            "out_gate_proj", lambda key: {"kernel": jnp.zeros((x.shape[-1], width))}
        )["kernel"]
        out = out / (1 + jnp.exp(-(x @ kernel).reshape(*x.shape[:2], H, -1)))
    elif cfg.attention == "softpick":
        # ε is added where e^m is divided out, m a constant for the gradient
        top = jnp.exp(jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), 0)))
        less = jnp.where(
            future[None, None], 0, jnp.exp(jnp.where(future[None, None], 0, logits)) - 1
        )
        weights = jnp.maximum(less, 0) / (jnp.abs(less).sum(-1, keepdims=True) + 1e-6 * top)
        out = jnp.einsum("bhts,bshd->bthd", weights, v)
    return Mixed(Attended(out, None, None))


def random_params(config, rng, dtype=jnp.float32):
    # large, so that attention is far from uniform and g far from 0
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), dtype), parameter_shapes(config)
    )


def loss_and_gradients(config, params, tokens, kernel):
    model = build(config, jax.tree.leaves(params)[0].dtype, kernel=kernel)

    def loss(params):
        logits = model.apply({"params": params}, tokens)
        return (jax.nn.log_softmax(logits)[..., 0]).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, grads


def assert_equal_gradients(found, wanted, tolerance, kernel):
    (logits, grads), (want, want_grads) = found, wanted
    np.testing.assert_allclose(logits, want, rtol=tolerance, atol=tolerance, err_msg=kernel)
    flat, want_flat = (jax.tree.leaves_with_path(tree) for tree in (grads, want_grads))
    for (path, got), (_, value) in zip(flat, want_flat, strict=True):
        limit = tolerance * max(np.abs(value).max(), 1.0)
        np.testing.assert_allclose(got, value, 0, limit, err_msg=f"{kernel} {path}")


@pytest.mark.parametrize(("family", "variant", "names"), CASES + OTHER_CASES, ids=case_name)
def test_equals_the_formula(family, variant, names, monkeypatch):
    """Logits and all gradients, on every kernel."""
    rng = np.random.default_rng()
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIGS[family], attention=variant)
        params = random_params(config, rng, jnp.float64)
        tokens = rng.integers(0, config.vocab_size, (2, T))
        found = {name: loss_and_gradients(config, params, tokens, name) for name in names}
        monkeypatch.setattr(layers, "VARIANTS", dict.fromkeys(VARIANTS, formula))
        wanted = loss_and_gradients(config, params, tokens, "reference")
    assert_equal_to(wanted, found)


def assert_equal_to(wanted, found):
    for name, result in found.items():
        # jax's own attention works in float32 whatever it is given
        assert_equal_gradients(result, wanted, 2e-4 if name == "fused" else 1e-10, name)


def test_more_extra_keys_equal_the_formula(monkeypatch):
    """M keys per key head, on every kernel; with windows and distances see tests/compress/test_absorb.py."""
    rng = np.random.default_rng()
    with jax.enable_x64(True):
        config = dataclasses.replace(
            CONFIGS["llama"], attention="attention_bias", extra_keys=EXTRA_KEYS
        )
        params = random_params(config, rng, jnp.float64)
        assert params["layer_0"]["attn"]["k_extra"].shape == (EXTRA_KEYS, 2, 6)
        tokens = rng.integers(0, config.vocab_size, (2, T))
        names = kernels_for("attention_bias")
        found = {name: loss_and_gradients(config, params, tokens, name) for name in names}
        monkeypatch.setattr(layers, "VARIANTS", dict.fromkeys(VARIANTS, formula))
        assert_equal_to(loss_and_gradients(config, params, tokens, "reference"), found)


def test_extra_keys_belong_to_attention_bias():
    with pytest.raises(InputError, match="extra_keys is 2, which only attention_bias has"):
        dataclasses.replace(CONFIGS["llama"], attention="sigmoid", extra_keys=2)


@pytest.mark.parametrize("variant", SPLASH_CASES)
def test_splash_equals_the_formula(variant, monkeypatch):
    """The TPU's kernel, which knows neither float64 nor another platform, in Pallas's interpreter."""
    make = splash.library.make_splash_mha_single_device
    monkeypatch.setattr(
        splash.library, "make_splash_mha_single_device", partial(make, interpret=True)
    )
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS["llama"], attention=variant)
    params, tokens = random_params(config, rng), rng.integers(0, config.vocab_size, (2, T))
    with compiling_for("tpu"):
        found = loss_and_gradients(config, params, tokens, "splash")
    monkeypatch.setattr(layers, "VARIANTS", dict.fromkeys(VARIANTS, formula))
    wanted = loss_and_gradients(config, params, tokens, "reference")
    assert_equal_gradients(found, wanted, 2e-4, "splash")


@pytest.mark.parametrize(
    ("family", "variant", "names"),
    mostly_endurance(CASES, usual=[case for case in CASES if case[0] == "llama"]) + OTHER_CASES,
    ids=case_name,
)
def test_no_position_reads_the_future(family, variant, names):
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS[family], attention=variant)
    params = random_params(config, rng)
    x_TxD = jnp.asarray(rng.standard_normal((7, config.d_model)), jnp.float32)
    weights_D = jnp.asarray(rng.standard_normal(config.d_model), jnp.float32)
    for name in names:
        block = build(config, kernel=name).block(0)

        def one_number_per_token(x, block=block):
            return block.apply({"params": params["layer_0"]}, x[None])[0] @ weights_D

        jacobian_TxS = np.abs(jax.jit(jax.jacrev(one_number_per_token))(x_TxD)).sum(2)
        assert (np.triu(jacobian_TxS, 1) == 0).all(), name
        if variant != "softpick":  # a row of it may be 0
            assert (jacobian_TxS[np.tril_indices(7)] > 0).all(), name


@pytest.mark.parametrize(
    ("family", "variant"), zip(itertools.cycle(CONFIGS), ATTENTION, strict=False)
)
def test_rematerialised_equals_plain(family, variant):
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS[family], attention=variant)
    model, params = build(config), random_params(config, rng)["layer_0"]
    x_BxTxD = jnp.asarray(rng.standard_normal((2, T, config.d_model)), jnp.float32)

    def gradients(remat):
        block = applied(model.block(0), remat)
        return jax.jit(jax.grad(lambda p, x: jnp.sin(block(p, x)).sum(), (0, 1)))(params, x_BxTxD)

    plain, again = gradients(False), gradients(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        # the same operations, fused differently
        np.testing.assert_allclose(a, b, 1e-5, 1e-5 * np.abs(a).max())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("variant", ATTENTION)
def test_capture_tells_the_scale(family, variant):
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS[family], attention=variant)
    model = build(config)
    params = random_params(config, rng)
    tokens = rng.integers(0, config.vocab_size, (2, T))
    _, state = jax.jit(lambda: model.apply({"params": params}, tokens, mutable=[COLLECTION]))()
    taps = flatten_taps(state[COLLECTION]["layer_0"])
    shared = ("attention_bias", "softmax1", "learned_sink")
    scaled = (*shared, "context_scale", "gate", "gate_elements")
    assert ("attn_scale" in taps) == (variant in scaled)
    assert ("sink_mass" in taps) == (variant in (*shared, "context_bias"))
    assert ("lse" in taps) == (variant != "sigmoid")
    np.testing.assert_allclose(taps["attn_map"].sum(2), taps["attn_sums"], rtol=1e-5, atol=1e-6)
    if variant in shared:
        np.testing.assert_allclose(taps["attn_scale"] + taps["sink_mass"], 1.0, rtol=1e-6)
        x = np.asarray(taps["attn_scale"])
        assert x.shape == (2, 4, T)
        assert (x > 0).all() and (x < 1).all()


@pytest.mark.parametrize("variant", ATTENTION)
def test_prefix_keeps_its_meaning(variant):
    """What a token means does not depend on how much text follows, sigmoid's bias included."""
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS["gpt2"], attention=variant)
    model = build(config)
    params = random_params(config, rng)
    tokens = rng.integers(0, config.vocab_size, (1, T))
    whole = model.apply({"params": params}, tokens)
    part = model.apply({"params": params}, tokens[:, :5])
    np.testing.assert_allclose(whole[:, :5], part, rtol=1e-5, atol=1e-6)


def count(config) -> int:
    """As nanoGPT counts: without position embeddings."""
    shapes = parameter_shapes(config)
    return sum(
        x.size
        for name, tree in shapes.items()
        if name != "positions"
        for x in jax.tree.leaves(tree)
    )


def test_parameter_counts_of_the_paper():
    base = MODEL_SIZES["gpt2-nanogpt"]
    assert round(count(base) / 1e6, 2) == 123.59
    scaled = dataclasses.replace(base, attention="context_scale")
    assert round(count(scaled) / 1e6, 2) == 123.70


def test_unknown_variant_is_refused():
    with pytest.raises(ValueError, match=r"attention is 'flash'.*context_scale"):
        dataclasses.replace(CONFIGS["gpt2"], attention="flash")


def test_older_config_files_mean_default_attention():
    fields = dataclasses.asdict(CONFIGS["gpt2"])
    del fields["attention"], fields["sigmoid_bias"]
    assert config_from_dict(fields) == CONFIGS["gpt2"]
