"""Which kernel runs where, what is refused, and what is special to a fused one."""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sysout_jax.attention import PLAIN, AttentionSpec, extra_key, resolve_kernel
from sysout_jax.attention.splash import BLOCKS, block_size
from sysout_jax.capture import COLLECTION, flatten_taps
from sysout_jax.config import ATTENTION
from sysout_jax.families.gpt2 import Gpt2Config
from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models import build, decoder, parameter_shapes
from sysout_jax.platform import compiling_for, target_platform
from sysout_jax.sharding import make_mesh
from tests.parameters import mostly_endurance

pytestmark = pytest.mark.optimised


def rule(variant: str) -> AttentionSpec:
    return AttentionSpec(sigmoid=-1.0) if variant == "sigmoid" else PLAIN


@pytest.mark.parametrize(
    ("platform", "dtype", "variant", "kernel"),
    [
        ("cpu", "float32", "default", "blockwise"),
        ("cpu", "bfloat16", "attention_bias", "blockwise"),
        ("gpu", "bfloat16", "context_bias", "fused"),
        ("gpu", "float32", "default", "blockwise"),
        ("gpu", "bfloat16", "sigmoid", "blockwise"),
        ("tpu", "bfloat16", "context_scale", "splash"),
        ("tpu", "float32", "sigmoid", "blockwise"),
    ],
)
def test_auto(platform, dtype, variant, kernel):
    assert resolve_kernel("auto", dtype, spec=rule(variant), platform=platform) == kernel
    with compiling_for(platform):
        assert resolve_kernel("auto", dtype, spec=rule(variant)) == kernel


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "variant", "reason"),
    [
        (
            "flash",
            "cpu",
            "float32",
            "default",
            "'flash' is unknown; expected auto or one of .*splash",
        ),
        (
            "splash",
            "cpu",
            "float32",
            "default",
            "'splash' runs on a TPU only.* for a cpu; use auto",
        ),
        ("splash", "tpu", "float32", "sigmoid", "'splash' does not compute attention with sigmoid"),
        ("fused", "gpu", "float32", "default", "'fused' is cuDNN's.* got float32; use"),
        (
            "fused",
            "cpu",
            "bfloat16",
            "sigmoid",
            "'fused' does not compute attention with sigmoid.*blockwise",
        ),
    ],
)
def test_refused_with_a_reason(kernel, platform, dtype, variant, reason):
    with pytest.raises(ValueError, match=reason):
        resolve_kernel(kernel, dtype, spec=rule(variant), platform=platform)


def test_a_model_refuses_what_its_kernel_cannot_do():
    config = Gpt2Config(
        vocab_size=7, context_length=8, d_model=4, d_ff=4, num_layers=1, num_heads=2
    )
    for kernel, attention in (("fused", "sigmoid"), ("splash", "default")):
        model = build(dataclasses.replace(config, attention=attention), kernel=kernel)
        with pytest.raises(ValueError, match=f"{kernel!r}.*use auto, blockwise or reference"):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), int))


def test_a_mesh_says_what_is_compiled_for():
    mesh = make_mesh(devices=jax.devices()[:1])
    assert target_platform() == jax.default_backend()
    elsewhere = mesh.abstract_mesh.update(
        abstract_device=jax.sharding.AbstractDevice("TPU v5 lite", 1, "tpu")
    )
    with jax.sharding.use_abstract_mesh(elsewhere):
        assert target_platform() == "tpu"


@pytest.mark.parametrize("length", [1, 127, 128, 256, 512, 1024, 1025, 2049, 4096])
def test_tiles_add_little_padding(length):
    block = block_size(length)
    assert block in BLOCKS
    assert block == BLOCKS[-1] or -length % block <= length / 8


@pytest.mark.parametrize("logit", [-30.0, 0.0, 8.0, 30.0])
def test_fused_extra_key_keeps_its_precision_in_bfloat16(logit):
    """Where k' takes nearly all attention, what the real keys give must not drown in rounding."""
    rng = np.random.default_rng()
    q = np.concatenate([np.ones((1, 9, 2, 1)), rng.standard_normal((1, 9, 2, 3))], -1)
    k, v = rng.standard_normal((2, 1, 9, 2, 4))
    key = np.array([[2 * logit, 0, 0, 0]] * 2)  # over √Dh = 2
    q, k, v, key = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v, key))

    def outputs(kernel, q, k, v, key):
        attended, g = extra_key.beside(q, k, v, key, kernel, PLAIN)
        return attended.out.astype(jnp.float32), g.astype(jnp.float32)

    want = outputs("reference", *(x.astype(jnp.float32) for x in (q, k, v, key)))
    got = outputs("fused", q, k, v, key)
    np.testing.assert_allclose(got[0], want[0], 0, 0.03)
    np.testing.assert_allclose(got[1], want[1], 0.03, 1e-30)
    grads = jax.grad(lambda *x: sum(part.sum() for part in outputs("fused", *x)), (0, 1, 2, 3))
    assert all(np.isfinite(np.asarray(g, np.float32)).all() for g in grads(q, k, v, key))


def test_fused_attention_bias_tells_its_scale():
    """1 − g is computed for the record only; the output is the same bit for bit."""
    config = LlamaConfig(
        vocab_size=7,
        context_length=16,
        d_model=12,
        d_ff=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=4,
        attention="attention_bias",
    )
    rng = np.random.default_rng()
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), jnp.float32), parameter_shapes(config)
    )
    tokens = rng.integers(0, 7, (2, 9))
    scales = []
    for kernel in ("fused", "reference"):
        apply = build(config, kernel=kernel).apply
        plain = jax.jit(apply)({"params": params}, tokens)
        recording = jax.jit(lambda p, t, apply=apply: apply({"params": p}, t, mutable=[COLLECTION]))
        seen, state = recording(params, tokens)
        assert np.asarray(plain).tobytes() == np.asarray(seen).tobytes(), kernel
        scales.append(flatten_taps(state[COLLECTION]["layer_0"])["attn_scale"])
    np.testing.assert_allclose(*scales, 1e-4)


LENGTH = 512  # longer than any other dimension of the attention below


def compile_for_tpu(kernel: str, attention: str) -> str:
    """The program text of the gradient of one attention layer on a v5e chip."""
    from jax.experimental import topologies

    config = Gpt2Config(
        vocab_size=64,
        context_length=LENGTH,
        d_model=128,
        d_ff=128,
        num_layers=1,
        num_heads=2,
        attention=attention,
    )
    found = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    mesh = make_mesh(devices=found.devices[:1])
    layer = decoder.Attention(
        config, config.layer(0), jnp.dtype("bfloat16"), jnp.dtype("float32"), kernel
    )
    params = parameter_shapes(config)["layer_0"]["attn"]
    x = jax.ShapeDtypeStruct((2, LENGTH, 128), jnp.bfloat16)
    arguments = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=NamedSharding(mesh, P())),
        (params, x),
    )

    def loss(params, x):
        return layer.apply({"params": params}, x).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        return jax.jit(jax.grad(loss, (0, 1))).lower(*arguments).compile().as_text()


def square_arrays(text: str) -> set[str]:
    shapes = set(re.findall(r"\b(?:f32|bf16|pred)\[([\d,]+)\]", text))
    return {s for s in shapes if sum(int(d) >= LENGTH for d in s.split(",")) >= 2}


@pytest.mark.parametrize(
    "attention",
    mostly_endurance(
        ["reference", *ATTENTION],
        usual=["reference", "default", "attention_bias", "sigmoid", "softpick"],
    ),
)
def test_no_map_in_memory_on_a_tpu(attention, monkeypatch):
    """Compiled ahead of time; `reference` shows that a map would be seen."""
    if not importlib.util.find_spec("libtpu"):
        pytest.skip("needs libtpu, from the tpu extra")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    # no chip is used, so that several processes may do this at once
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    if attention == "reference":
        assert square_arrays(compile_for_tpu("reference", "default"))
    else:
        assert not square_arrays(compile_for_tpu("auto", attention))
