"""Logits without a value that take part in the softmax: at their ends, in float32, and what is told of them; and norms of q and k."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.attention import PLAIN, attend, kernels
from sysout_jax.attention.extra_key import with_sink
from sysout_jax.attention.spec import AttentionSpec
from sysout_jax.checkpoints.formats.hf_export import check_exportable
from sysout_jax.errors import InputError
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.families.qwen3 import Qwen3Config
from sysout_jax.models import build, parameter_count, parameter_shapes
from sysout_jax.training.monitor import Monitor
from sysout_jax.training.optimizer import decayed
from sysout_jax.weights import InMemory

SIZES = {"vocab_size": 31, "context_length": 16, "d_model": 24, "d_ff": 40, "num_layers": 2}
LLAMA = {**SIZES, "num_heads": 4, "num_kv_heads": 2, "head_dim": 6}
GPT2 = {**SIZES, "num_heads": 4, "activation": "gelu"}
H = 4
ROWS = ("reference", "blockwise")


def drawn(seed: int, scale: float = 1.0, length: int = 7):
    """q, k and v in float64, and a weight for every output."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(0, scale, (2, length, heads, 6)) for heads in (H, 2, 2))
    return q, k, v, rng.standard_normal((2, length, H, 6))


def random_params(config):
    rng = np.random.default_rng()
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape), jnp.float32),
        parameter_shapes(config),
    )


def by_formula(q, k, v, sink_H, weights):
    """Softmax with one more column, in numpy float64: the output, g, and the gradient of sum(weights · out) towards the sink."""
    T = q.shape[1]
    k, v = np.repeat(k, 2, axis=2), np.repeat(v, 2, axis=2)
    logits = np.einsum("bthd,bshd->bhts", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(np.tri(T, dtype=bool), logits, -np.inf)
    column = np.broadcast_to(sink_H[None, :, None, None], (*logits.shape[:3], 1))
    both = np.concatenate([column, logits], -1)
    both = np.exp(both - both.max(-1, keepdims=True))
    both = both / both.sum(-1, keepdims=True)
    out, g = np.einsum("bhts,bshd->bthd", both[..., 1:], v), both[..., 0]
    return out, g, -(weights * out * g.transpose(0, 2, 1)[..., None]).sum((0, 1, 3))


def in_float32(q, k, v, sink_H, weights, kernel, spec=PLAIN):
    q, k, v, weights = (jnp.asarray(x, jnp.float32) for x in (q, k, v, weights))

    @jax.jit
    def run(sink_H):
        def loss(sink_H):
            among = with_sink(q, k, v, sink_H, kernel, spec)
            return (weights * among.attended.out).sum(), (among.attended.out, among.odds())

        return jax.value_and_grad(loss, has_aux=True)(sink_H)

    (_, (out, odds)), grad = run(jnp.asarray(sink_H, jnp.float32))
    return out, jax.nn.sigmoid(odds), grad


@pytest.mark.optimised
@pytest.mark.parametrize("kernel", ROWS)
def test_its_ends(kernel):
    """At −1e9 softmax bit for bit, its gradients too, at 0 softmax1."""
    q, k, v, weights = (jnp.asarray(x, jnp.float32) for x in drawn(1))
    sink_H = jnp.full(H, -1e9, jnp.float32)

    def values(attention):
        def loss(q, k, v):
            out = attention(q, k, v)
            return (weights * out).sum(), out

        return jax.jit(attention)(q, k, v), jax.jit(jax.grad(loss, (0, 1, 2), True))(q, k, v)

    sunk = values(lambda *qkv: with_sink(*qkv, sink_H, kernel, PLAIN).attended.out)
    plain = values(lambda *qkv: attend(*qkv, kernel=kernel).out)
    for a, b in zip(jax.tree.leaves(sunk), jax.tree.leaves(plain), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    def model(attention, sink):
        config = LlamaConfig(**LLAMA | {"num_layers": 1}, attention=attention)
        params = jax.tree.map(lambda leaf: leaf, weights_of_model)
        if sink is not None:
            params["layer_0"]["attn"]["sink"] = jnp.full(H, sink, jnp.float32)
        run = jax.jit(build(config, kernel=kernel).apply)
        return np.asarray(run({"params": params}, jnp.arange(22).reshape(2, 11))).tobytes()

    weights_of_model = random_params(LlamaConfig(**LLAMA | {"num_layers": 1}))
    assert model("learned_sink", -1e9) == model("default", None)
    assert model("learned_sink", 0.0) == model("softmax1", None) != model("default", None)


@pytest.mark.parametrize("kernel", [*ROWS, "fused"])
@pytest.mark.parametrize(("sink", "scale"), [(100.0, 6.0), (2.0, 1.0), (-40.0, 1.0)])
def test_neither_end_loses_the_gradient(kernel, sink, scale):
    """Where g or 1 − g is far below float32's resolution of 1, the gradient is still the true one."""
    q, k, v, weights = drawn(3, scale)
    # all logits of a head reach some tens, so that at 100 nothing underflows
    q, k = np.abs(q), np.abs(k)
    if kernel == "fused" and sink < 0:
        pytest.skip("a fused kernel has 1 − g only as a sum of weights")
    sinks = sink + np.arange(H) / 2
    want, share, gradient = by_formula(q, k, v, sinks, weights)
    assert (np.abs(gradient) > 1e-30).all()
    out, g, grad = in_float32(q, k, v, sinks, weights, kernel)
    assert np.isfinite(out).all()
    tiny = np.abs(want).max() * 1e-3
    np.testing.assert_allclose(out, want, 1e-3, tiny)
    np.testing.assert_allclose(g, share, 1e-3)
    np.testing.assert_allclose(grad, gradient, 1e-2, np.abs(gradient).max() * 1e-3)


def test_a_kernel_that_cannot_is_refused():
    capped = AttentionSpec(window=4)
    q, k, v, weights = drawn(1)
    with pytest.raises(ValueError, match="does not compute an extra key or a sink beside window"):
        in_float32(q, k, v, np.zeros(H), weights, "fused", capped)
    out, _, _ = in_float32(q, k, v, np.zeros(H), weights, "auto", capped)
    assert np.isfinite(out).all()
    with pytest.raises(ValueError, match="does not compute attention with softpick"):
        kernels.resolve_kernel("fused", spec=AttentionSpec(softpick=1e-6))


def test_softpick_stands_large_and_equal_logits():
    """e^200 is no float32, and where all logits are 0 nothing is divided by 0."""
    q, k, v, _ = (jnp.asarray(x, jnp.float32) for x in drawn(4))
    q, k = 40 * jnp.abs(q), jnp.abs(k)
    spec = AttentionSpec(softpick=1e-6)
    for kernel in ROWS:
        for queries in (q, -q, 0 * q):

            def loss(queries, k, v, kernel=kernel):
                return (attend(queries, k, v, kernel=kernel, spec=spec).out ** 2).sum()

            found, grads = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(queries, k, v)
            assert np.isfinite(found) and all(np.isfinite(grad).all() for grad in grads)
            assert (found > 0) == (queries is q)


MASSES = ["learned_sink", "context_bias"] + [
    pytest.param(each, marks=pytest.mark.slow) for each in ("softmax1", "attention_bias")
]


@pytest.mark.parametrize("attention", MASSES)
def test_the_mass_that_is_taken_has_its_column(attention):
    rng = np.random.default_rng()
    config = LlamaConfig(**LLAMA, attention=attention)
    params = random_params(config)
    lm = so.LanguageModel(config, InMemory(params))
    tokens = rng.integers(0, config.vocab_size, (3, 9))
    _, taps = so.capture(
        lm, tokens, ("sink_mass", "attn_scale")[: 1 + (attention != "context_bias")]
    )
    mass = np.asarray(taps["sink_mass"], np.float64).mean((1, 3))
    stats = so.collect(lm, tokens, names=("sink_mass",))
    np.testing.assert_allclose(stats.sink_mass.heads, mass, rtol=1e-5)
    np.testing.assert_allclose(stats.to_dict()["sink_mass"]["mean"], mass.mean(1), rtol=1e-5)
    monitored = Monitor(config, "float32")(params, jnp.asarray(tokens))
    np.testing.assert_allclose(monitored["sink_mass"], mass.mean(1), rtol=1e-5)
    if attention != "context_bias":
        np.testing.assert_allclose(monitored["scale_mean"], 1 - mass.mean(1), rtol=1e-5)


def test_a_model_without_sinks_has_no_such_column():
    config = Gpt2Config(**GPT2, attention="gate")
    lm = so.LanguageModel(config, InMemory(random_params(config)))
    stats = so.collect(lm, np.zeros((1, 4), np.int32), names=("sink_mass",))
    assert stats.sink_mass is None
    assert stats.to_dict() == {}


def test_parameters_of_the_variants():
    plain = parameter_count(parameter_shapes(Gpt2Config(**GPT2)))
    more = {
        "softmax1": 0,
        "softpick": 0,
        "learned_sink": H,
        "gate": 24 * H,
        "gate_elements": 24 * 24,
    }
    for attention, count in more.items():
        shapes = parameter_shapes(Gpt2Config(**GPT2, attention=attention))
        assert parameter_count(shapes) - plain == 2 * count, attention
        attn = decayed(shapes)["layer_0"]["attn"]
        assert attn.get("sink", False) is False
        assert attn.get("out_gate_proj", {}).get("kernel", True) is True
    assert parameter_count(parameter_shapes(Gpt2Config(**GPT2, qk_norm=True))) - plain == 2 * 2 * 6
    with pytest.raises(InputError, match="attention 'gate' has no class in transformers"):
        check_exportable(LlamaConfig(**LLAMA, attention="gate"))


@pytest.mark.parametrize("config", [Gpt2Config(**GPT2, qk_norm=True), LlamaConfig(**LLAMA, qk_norm=True)], ids=["gpt2", "llama"])  # fmt: skip
def test_normalised_queries_and_keys(config):
    """The model without norms, whose q and k are normalised by the written-out rule before they turn, forward and gradient."""
    rng = np.random.default_rng()
    with jax.enable_x64(True):
        params = jax.tree.map(
            lambda leaf: jnp.asarray(rng.normal(0, 0.4, leaf.shape)), parameter_shapes(config)
        )
        x_BxTxD = jnp.asarray(rng.standard_normal((2, 7, 24)))
        spec = config.layer(0)
        bare = dataclasses.replace(spec, heads=dataclasses.replace(spec.heads, norm=None))
        block = build(config, "float64").block(0)

        def outputs(params, by_hand: bool):
            if not by_hand:
                return block.apply({"params": params}, x_BxTxD)
            from sysout_jax.models import decoder

            def normalised(x, gain):
                return (
                    gain[None, None, None]
                    * x
                    / jnp.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
                )

            class Written(decoder.Attention):
                def _project(self, x):
                    q, k, v = super()._project(x)
                    attn = params["attn"]
                    return (
                        normalised(q, attn["q_norm"]["scale"]),
                        normalised(k, attn["k_norm"]["scale"]),
                        v,
                    )

            plain = decoder.Attention
            decoder.Attention = Written
            try:
                return block.clone(spec=bare).apply({"params": params}, x_BxTxD)
            finally:
                decoder.Attention = plain

        def both(by_hand):
            run = lambda params: (jnp.sin(y := outputs(params, by_hand)).sum(), y)  # noqa: E731
            return jax.jit(jax.value_and_grad(run, has_aux=True))(params["layer_0"])

        (_, found), grads = both(False)
        (_, want), wanted = both(True)
    np.testing.assert_allclose(found, want, rtol=1e-10, atol=1e-10)
    for (path, got), value in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted), strict=True
    ):
        np.testing.assert_allclose(got, value, 1e-9, 1e-9, err_msg=str(path))
    assert np.abs(grads["attn"]["q_norm"]["scale"]).min() > 0


def test_normalised_queries_of_other_families_are_refused():
    with pytest.raises(InputError, match="qk_norm is true; expected false, family qwen3"):
        Qwen3Config(**LLAMA, qk_norm=True)
    with pytest.raises(InputError, match="qk_norm = True cannot be said in a config.json"):
        check_exportable(LlamaConfig(**LLAMA, qk_norm=True))
