"""Properties that hold for every model and every attention kernel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.attention import attend, blocks, kernels
from sysout_jax.capture import COLLECTION, flatten_taps
from sysout_jax.families.sizes import MODEL_SIZES
from sysout_jax.models import build, parameter_shapes
from tests.models.random_models import CONFIGS, random_tokens
from tests.random_models import random_params

pytestmark = pytest.mark.optimised

KERNELS = sorted(name for name, kernel in kernels.KERNELS.items() if kernel.rows)


@pytest.fixture
def rows(monkeypatch):
    """Sets how many query rows `blockwise` takes at once, and two spans of keys, so that small inputs take every path."""

    def set_rows(block: int) -> None:
        monkeypatch.setattr(blocks, "BLOCK", block)
        monkeypatch.setitem(blocks.GROUPS, "cpu", 2)

    return set_rows


def from_embeddings(model, x_BxTxD):
    for block in model.layer:
        x_BxTxD = block(x_BxTxD)
    return model.unembed(x_BxTxD)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_no_position_reads_the_future(name, kernel, rows):
    """d logits[t] / d x[s] is exactly zero for s > t, and nowhere zero for s <= t."""
    rows(2)  # three blocks
    config = CONFIGS[name]
    model, params = build(config, kernel=kernel), random_params(config, 0)
    x_TxD = jnp.asarray(np.random.default_rng(1).standard_normal((5, config.d_model)), jnp.float32)

    def logits(x):
        return model.apply({"params": params}, x[None], method=from_embeddings)[0]

    jacobian_TxS = np.abs(jax.jit(jax.jacobian(logits))(x_TxD)).sum((1, 3))
    assert (np.triu(jacobian_TxS, 1) == 0).all()
    assert (jacobian_TxS[np.tril_indices(5)] > 0).all()


def plain_attention(q, k, v):
    """The formula, with an explicit mask and repeated key heads: (out, lse, sums)."""
    group = q.shape[2] // k.shape[2]
    k, v = jnp.repeat(k, group, axis=2), jnp.repeat(v, group, axis=2)
    logits = jnp.einsum("bthd,bshd->bhts", q, k) / q.shape[-1] ** 0.5
    future = jnp.arange(q.shape[1])[:, None] < jnp.arange(k.shape[1])[None, :]
    logits = jnp.where(future[None, None], -jnp.inf, logits)
    maps = jax.nn.softmax(logits, axis=-1)
    out = jnp.einsum("bhts,bshd->bthd", maps, v)
    return out, jax.nn.logsumexp(logits, axis=-1), maps.sum(2)


def random_qkv(rng, dtype, B, T, H, K, Dh):
    shapes = ((B, T, H, Dh), (B, T, K, Dh), (B, T, K, Dh))
    return [jnp.asarray(2 * rng.standard_normal(shape), dtype) for shape in shapes]


# block of rows, then B, T, H, K, Dh: T below, at, above and between multiples of the block; grouped and single key heads
SHAPES = [
    (8, 2, 7, 4, 4, 2),
    (8, 2, 8, 4, 2, 4),
    (8, 1, 41, 6, 2, 4),
    (blocks.BLOCK, 1, 2 * blocks.BLOCK + 37, 2, 2, 4),
]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels_equal_the_formula(shape, kernel, rows):
    block, *sizes = shape
    rows(block)
    q, k, v = random_qkv(np.random.default_rng(block), jnp.float32, *sizes)
    found = jax.jit(lambda *a: attend(*a, kernel=kernel))(q, k, v)
    for name, got, want in zip(found._fields, found, plain_attention(q, k, v), strict=True):
        assert got.shape == want.shape, name
        # sums of up to T float32 terms in another order
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_gradients(kernel, rows):
    """Through out and lse at once, in float64, where a wrong term cannot hide behind rounding. Column sums carry no gradient."""
    rows(4)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        qkv = random_qkv(rng, jnp.float64, 1, 7, 4, 2, 4)
        cotangents = [jnp.asarray(rng.standard_normal(x.shape)) for x in plain_attention(*qkv)[:2]]

        def scalar(attention):
            return lambda *args: sum(
                (c * x).sum() for c, x in zip(cotangents, attention(*args)[:2], strict=True)
            )

        def gradients(attention):
            return jax.jit(jax.grad(scalar(attention), argnums=(0, 1, 2)))(*qkv)

        want = gradients(plain_attention)
        got = gradients(lambda *args: attend(*args, kernel=kernel))
        for name, g, w in zip("qkv", got, want, strict=True):
            assert g.dtype == jnp.float64
            np.testing.assert_allclose(g, w, rtol=1e-11, atol=1e-11, err_msg=name)
        of_sums = jax.grad(lambda q: attend(q, *qkv[1:], kernel=kernel).sums[..., 0].sum())(qkv[0])
        assert not of_sums.any()


def test_unknown_kernel_is_refused():
    q, k, v = random_qkv(np.random.default_rng(0), jnp.float32, 1, 3, 2, 2, 2)
    with pytest.raises(ValueError, match=r"'flash'.*reference"):
        attend(q, k, v, kernel="flash")


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["llama", "llama-mqa-tied", "gpt2"])
def test_attention_map_is_a_distribution(name, kernel, rows):
    rows(5)
    config = CONFIGS[name]
    model, params = build(config, kernel=kernel), random_params(config, 3)
    recording = jax.jit(lambda p, tokens: model.apply({"params": p}, tokens, mutable=[COLLECTION]))
    _, state = recording(params, random_tokens(4))
    for layer in range(config.num_layers):
        taps = flatten_taps(state[COLLECTION][f"layer_{layer}"])
        maps = np.asarray(taps["attn_map"], np.float64)
        assert (maps >= 0).all() and (np.triu(maps, 1) == 0).all()
        np.testing.assert_allclose(maps.sum(-1), 1.0, atol=1e-5)
        np.testing.assert_allclose(maps.sum(-2), taps["attn_sums"], atol=1e-5)


@pytest.mark.parametrize(("size", "count"), [("llama-2-7b", 6_738_415_616), ("gpt2", 124_439_808)])
def test_parameter_count(size, count):
    shapes = parameter_shapes(MODEL_SIZES[size])
    assert sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes)) == count
