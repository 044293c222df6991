"""Every rule of `AttentionSpec` against its formula written out in float64, forward and gradients, in every kernel that computes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.attention import PLAIN, AttentionSpec, attend, attention_map, blocks, resolve_kernel
from sysout_jax.attention.logits import logit_range

H, K, DH = 4, 2, 8
SLOPES = (0.5, 0.25, 0.125, 0.0625)
SPECS = {
    "plain": PLAIN,
    "scale": AttentionSpec(scale=0.3),
    "softcap": AttentionSpec(softcap=1.5),
    "window": AttentionSpec(window=5),
    "window of one": AttentionSpec(window=1),
    "window beyond the text": AttentionSpec(window=1000),
    "alibi": AttentionSpec(alibi=SLOPES),
    "sigmoid": AttentionSpec(sigmoid=-2.0),
    "everything": AttentionSpec(scale=0.7, softcap=2.0, window=7, alibi=SLOPES),
    "sigmoid in a window": AttentionSpec(sigmoid=-1.0, softcap=2.0, window=6, alibi=SLOPES),
}


def drawn(T: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    shapes = ((2, T, H, DH), (2, T, K, DH), (2, T, K, DH))
    return tuple(jnp.asarray(rng.standard_normal(shape) * 1.5) for shape in shapes)


def written_out(q, k, v, spec: AttentionSpec):
    """Weights (B, H, T, S) and output by the docstring of AttentionSpec."""
    T = q.shape[1]
    k, v = (jnp.repeat(x, H // K, axis=2) for x in (k, v))
    logits = jnp.einsum("bthd,bshd->bhts", q, k) * (spec.scale or DH**-0.5)
    if spec.softcap:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    if spec.alibi:
        slopes = jnp.asarray(spec.alibi)
        logits = logits - slopes[None, :, None, None] * distance[None, None]
    seen = (distance >= 0) & (distance < (spec.window or T))
    if spec.sigmoid is not None:
        weights = jnp.where(seen[None, None], jax.nn.sigmoid(logits + spec.sigmoid), 0.0)
    else:
        weights = jax.nn.softmax(jnp.where(seen[None, None], logits, -jnp.inf), axis=-1)
    return weights, jnp.einsum("bhts,bshd->bthd", weights, v)


@pytest.fixture(params=["reference", "blockwise"])
def kernel(request, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)  # several blocks in a short text
    return request.param


@pytest.mark.parametrize("T", [1, 11])
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_formula(name, T, kernel):
    spec = SPECS[name]
    with jax.enable_x64(True):
        q, k, v = drawn(T)
        weights, out = jax.jit(lambda *qkv: written_out(*qkv, spec))(q, k, v)
        attended = jax.jit(lambda *qkv: attend(*qkv, kernel=kernel, spec=spec))(q, k, v)
        np.testing.assert_allclose(attended.out, out, atol=1e-12)
        np.testing.assert_allclose(attended.sums, weights.sum(2), atol=1e-12)
        maps = jax.jit(lambda q, k, lse: attention_map(q, k, lse, spec))(q, k, attended.lse)
        np.testing.assert_allclose(maps, weights, atol=1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_gradients_equal_those_of_the_formula(name, kernel):
    spec = SPECS[name]
    with jax.enable_x64(True):
        qkv = drawn(13)
        direction = drawn(13, seed=1)[0]

        def ours(q, k, v):
            attended = attend(q, k, v, kernel=kernel, spec=spec)
            lse = 0.0 if attended.lse is None else jnp.sin(attended.lse).sum()
            return (attended.out * direction).sum() + lse

        def theirs(q, k, v):
            out = (written_out(q, k, v, spec)[1] * direction).sum()
            if spec.sigmoid is not None:
                return out
            return out + jnp.sin(_lse(q, k, spec)).sum()

        got = jax.jit(jax.grad(ours, (0, 1, 2)))(*qkv)
        want = jax.jit(jax.grad(theirs, (0, 1, 2)))(*qkv)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-10)


def _lse(q, k, spec: AttentionSpec):
    T = q.shape[1]
    logits = jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k, H // K, axis=2))
    logits = logits * (spec.scale or DH**-0.5)
    if spec.softcap:
        logits = spec.softcap * jnp.tanh(logits / spec.softcap)
    distance = jnp.arange(T)[:, None] - jnp.arange(T)[None]
    if spec.alibi:
        logits = logits - jnp.asarray(spec.alibi)[None, :, None, None] * distance[None, None]
    seen = (distance >= 0) & (distance < (spec.window or T))
    return jax.nn.logsumexp(jnp.where(seen[None, None], logits, -jnp.inf), axis=-1)


@pytest.mark.parametrize("name", SPECS)
def test_range_of_the_logits(name):
    spec = SPECS[name]
    q, k, _ = drawn(11)
    q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    high, low = jax.jit(lambda q, k: logit_range(q, k, spec))(q, k)
    logits = jnp.einsum("bthd,bshd->bhts", q, jnp.repeat(k, H // K, axis=2))
    logits = np.asarray(logits) * (spec.scale or DH**-0.5)
    if spec.softcap:
        logits = spec.softcap * np.tanh(logits / spec.softcap)
    distance = np.arange(11)[:, None] - np.arange(11)[None]
    if spec.alibi:
        logits = logits - np.array(spec.alibi)[:, None, None] * distance
    seen = np.broadcast_to((distance >= 0) & (distance < (spec.window or 11)), logits.shape)
    np.testing.assert_allclose(
        high, [x[s].max() for x, s in zip(logits, seen, strict=True)], rtol=1e-5
    )
    np.testing.assert_allclose(
        low, [x[s].min() for x, s in zip(logits, seen, strict=True)], rtol=1e-5
    )


def test_a_map_between_chosen_positions_is_that_part_of_the_whole():
    spec = SPECS["everything"]
    q, k, v = (x.astype(jnp.float32) for x in drawn(17))
    attended = attend(q, k, v, kernel="reference", spec=spec)
    whole = attention_map(q, k, attended.lse, spec)
    at = jnp.array([[0, 3, 4, 9, 16]] * 2)
    part = attention_map(q[:, at[0]], k[:, at[0]], attended.lse[:, :, at[0]], spec, at)
    np.testing.assert_allclose(part, whole[:, :, at[0]][..., at[0]], atol=1e-6)


def test_fused_windows_equal_blockwise():
    spec = AttentionSpec(scale=0.4, window=5)
    q, k, v = (x.astype(jnp.float32) for x in drawn(19))
    fused = attend(q, k, v, kernel="fused", spec=spec)
    np.testing.assert_allclose(
        fused.out, attend(q, k, v, kernel="blockwise", spec=spec).out, atol=2e-6
    )


@pytest.mark.parametrize(
    ("platform", "spec", "chosen"),
    [
        ("tpu", AttentionSpec(window=4, softcap=2.0), "splash"),
        ("tpu", AttentionSpec(alibi=SLOPES), "blockwise"),
        ("gpu", AttentionSpec(window=4), "fused"),
        ("gpu", AttentionSpec(softcap=2.0), "blockwise"),
    ],
)
def test_auto_leaves_to_blockwise_what_a_kernel_does_not_compute(platform, spec, chosen):
    assert resolve_kernel("auto", "bfloat16", spec=spec, platform=platform) == chosen


def test_a_request_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match="'fused' does not compute attention with alibi, softcap"):
        resolve_kernel("fused", spec=AttentionSpec(softcap=1.0, alibi=SLOPES), platform="cpu")
