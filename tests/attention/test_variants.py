"""Every variant against the paper's formula written out, with the extra key appended, in whole models of both families."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.attention import VARIANTS, Attended, blocks, kernels
from sysout_jax.attention.variants import Mixed
from sysout_jax.capture import COLLECTION, flatten_taps
from sysout_jax.config import ATTENTION, MODEL_SIZES, Gpt2Config, LlamaConfig, config_from_dict
from sysout_jax.models import build, layers, parameter_shapes

SIZES = {"vocab_size": 31, "context_length": 16, "d_model": 24, "d_ff": 40, "num_layers": 1}
CONFIGS = {
    "llama": LlamaConfig(**SIZES, num_heads=4, num_kv_heads=2, head_dim=6),
    "gpt2": Gpt2Config(**SIZES, num_heads=4, activation="gelu"),
}
T = 11


def supported(family: str, variant: str) -> list[str]:
    """All kernels that compute the variant, for one family; the one with a gradient of its own for both."""
    able = [
        name
        for name, kernel in kernels.KERNELS.items()
        if (kernel.rows or variant != "sigmoid") and not kernel.refusal("cpu", jnp.float32)
    ]
    return able if family == "llama" else ["blockwise"]


CASES = [(f, v) for f in CONFIGS for v in ATTENTION]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and spans even for a short sequence."""
    monkeypatch.setattr(blocks, "BLOCK", 3)
    monkeypatch.setitem(blocks.GROUPS, "cpu", 2)


def formula(module, x, q, k, v, kernel) -> Mixed:
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
    return Mixed(Attended(out, None, None))


def random_params(config, rng):
    # large, so that attention is far from uniform and g far from 0
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float64),
        parameter_shapes(config),
    )


def loss_and_gradients(config, params, tokens, kernel):
    model = build(config, jnp.float64, kernel=kernel)

    def loss(params):
        logits = model.apply({"params": params}, tokens)
        return (jax.nn.log_softmax(logits)[..., 0]).sum(), logits

    (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    return logits, grads


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_equals_the_formula(family, variant, monkeypatch):
    """Logits and all gradients, on every kernel."""
    rng = np.random.default_rng()
    with jax.enable_x64(True):
        config = dataclasses.replace(CONFIGS[family], attention=variant)
        params = random_params(config, rng)
        tokens = rng.integers(0, config.vocab_size, (2, T))
        found = {
            k: loss_and_gradients(config, params, tokens, k) for k in supported(family, variant)
        }
        monkeypatch.setattr(layers, "VARIANTS", dict.fromkeys(VARIANTS, formula))
        want, want_grads = loss_and_gradients(config, params, tokens, "reference")
    for kernel, (logits, grads) in found.items():
        # jax's own attention works in float32 whatever it is given
        tolerance = 2e-4 if kernel == "fused" else 1e-10
        np.testing.assert_allclose(logits, want, rtol=tolerance, atol=tolerance, err_msg=kernel)
        flat, want_flat = (jax.tree.leaves_with_path(tree) for tree in (grads, want_grads))
        for (path, got), (_, wanted) in zip(flat, want_flat, strict=True):
            limit = tolerance * max(np.abs(wanted).max(), 1.0)
            np.testing.assert_allclose(got, wanted, 0, limit, err_msg=f"{kernel} {path}")


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_no_position_reads_the_future(family, variant):
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS[family], attention=variant)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: x.astype(jnp.float32), random_params(config, rng))
    x_TxD = jnp.asarray(rng.standard_normal((7, config.d_model)), jnp.float32)
    weights_D = jnp.asarray(rng.standard_normal(config.d_model), jnp.float32)
    for kernel in supported(family, variant):
        block = build(config, kernel=kernel).block()

        def one_number_per_token(x, block=block):
            return block.apply({"params": params["layer_0"]}, x[None])[0] @ weights_D

        jacobian_TxS = np.abs(jax.jit(jax.jacrev(one_number_per_token))(x_TxD)).sum(2)
        assert (np.triu(jacobian_TxS, 1) == 0).all(), kernel
        assert (jacobian_TxS[np.tril_indices(7)] > 0).all(), kernel


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("variant", ATTENTION)
def test_capture_changes_no_bit_and_tells_the_scale(family, variant):
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS[family], attention=variant)
    model = build(config)
    params = model.init(jax.random.key(int(rng.integers(1000))), jnp.zeros((1, 1), int))["params"]
    tokens = rng.integers(0, config.vocab_size, (2, T))
    plain = jax.jit(lambda: model.apply({"params": params}, tokens))()
    seen, state = jax.jit(lambda: model.apply({"params": params}, tokens, mutable=[COLLECTION]))()
    assert np.asarray(plain).tobytes() == np.asarray(seen).tobytes()
    taps = flatten_taps(state[COLLECTION]["layer_0"])
    assert ("attn_scale" in taps) == (variant in ("attention_bias", "context_scale"))
    assert ("lse" in taps) == (variant != "sigmoid")
    np.testing.assert_allclose(taps["attn_map"].sum(2), taps["attn_sums"], rtol=1e-5, atol=1e-6)
    if variant == "attention_bias":
        x = np.asarray(taps["attn_scale"])
        assert x.shape == (2, 4, T)
        assert (x > 0).all() and (x < 1).all()


@pytest.mark.parametrize("variant", ATTENTION)
def test_prefix_keeps_its_meaning(variant):
    """What a token means does not depend on how much text follows, sigmoid's bias included."""
    rng = np.random.default_rng()
    config = dataclasses.replace(CONFIGS["gpt2"], attention=variant)
    model = build(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), int))["params"]
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


def test_sigmoid_on_a_softmax_kernel_is_refused():
    config = dataclasses.replace(CONFIGS["gpt2"], attention="sigmoid")
    with pytest.raises(ValueError, match=r"'fused'.*blockwise"):
        jax.eval_shape(
            build(config, kernel="fused").init, jax.random.key(0), jnp.zeros((1, 4), int)
        )


def test_older_config_files_mean_default_attention():
    fields = dataclasses.asdict(CONFIGS["gpt2"])
    del fields["attention"], fields["sigmoid_bias"]
    assert config_from_dict(fields) == CONFIGS["gpt2"]
