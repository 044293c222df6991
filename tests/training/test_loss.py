"""The chunked loss against all logits at once."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.training.loss import next_token_loss

pytestmark = pytest.mark.optimised


def plain(x, head, targets, z_loss, softcap=None):
    logits = jnp.einsum("btd,vd->btv", x, head)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    lse = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    nll = (lse - picked).mean()
    return nll, nll + z_loss * (lse**2).mean()


@pytest.mark.parametrize("chunk", [1, 4, 7, 12, 100])
@pytest.mark.parametrize(("z_loss", "softcap"), [(0.0, None), (1e-2, None), (1e-2, 1.5)])
def test_loss_and_gradients_equal_those_of_all_logits(chunk, z_loss, softcap):
    rng = np.random.default_rng()
    x = jnp.asarray(rng.standard_normal((3, 12, 5)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((17, 5)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 17, (3, 12)))

    def both(loss):
        return jax.jit(
            jax.value_and_grad(lambda x, h: loss(x, h)[::-1], argnums=(0, 1), has_aux=True)
        )(x, head)

    got = both(lambda x, h: next_token_loss(x, h, targets, chunk, z_loss, softcap=softcap))
    want = both(lambda x, h: plain(x, h, targets, z_loss, softcap))
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk", [3, 4, 100])
def test_targets_that_are_not_there_do_not_count(chunk):
    rng = np.random.default_rng()
    x = jnp.asarray(rng.standard_normal((3, 11, 5)), jnp.float32)
    head = jnp.asarray(rng.standard_normal((17, 5)), jnp.float32)
    targets = rng.integers(0, 17, (3, 11))
    targets[1] = -1
    targets[2, 4:] = -1
    there = targets >= 0

    def reference(x, head):
        logits = jnp.einsum("btd,vd->btv", x, head)[there]
        lse = jax.nn.logsumexp(logits, axis=-1)
        nll = (lse - logits[jnp.arange(there.sum()), targets[there]]).mean()
        return nll + 1e-2 * (lse**2).mean(), nll

    def ours(x, head):
        return next_token_loss(x, head, jnp.asarray(targets), chunk, 1e-2, masked=True)[::-1]

    got, want = (
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(x, head)
        for loss in (ours, reference)
    )
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("length", "steps"), [(1021, 4), (1018, 4), (1024, 4), (250, 1)])
def test_chunks_are_few_whatever_the_length(length, steps):
    x = jax.ShapeDtypeStruct((1, length, 4), "float32")
    head = jax.ShapeDtypeStruct((8, 4), "float32")
    targets = jax.ShapeDtypeStruct((1, length), "int32")
    traced = jax.make_jaxpr(lambda *args: next_token_loss(*args, 256)[0])(x, head, targets)
    lengths = [int(n) for n in re.findall(r"length=(\d+)", str(traced))]
    assert lengths == [steps]


@pytest.mark.parametrize("length", [64, 61])
def test_no_buffer_holds_all_logits(length):
    B, T, D, V, chunk = 2, length, 8, 4096, 8
    x, head = jnp.ones((B, T, D)), jnp.ones((V, D))
    targets = jnp.zeros((B, T), int)

    def loss(x, head):
        return next_token_loss(x, head, targets, chunk)[1]

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, head).compile()
    # the gradient of the head, and a few copies of one chunk's logits
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * (2 * V * D + 6 * B * chunk * V)
    assert 4 * (2 * V * D + 6 * B * chunk * V) < 4 * B * T * V
