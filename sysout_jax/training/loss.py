"""Cross-entropy of the next token without the (B, T, V) logits.

Positions are taken in chunks, and the gradients with respect to hidden states and head are made in the same pass as the loss, while a chunk's
logits exist: three matrix products a chunk, as with all logits in memory, where recomputing them would take four.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from sysout_jax.platform import target_platform
from sysout_jax.sharding import BATCH, BATCH_AXES, current_mesh, per_device

NONE = -1  # as a target: there is none here, this position does not count


def next_token_loss(
    x_BxTxD: jax.Array,
    head_VxD: jax.Array,
    targets_BxT: jax.Array,
    chunk: int,
    z_loss: float = 0.0,
    masked: bool = False,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Mean negative log-likelihood in nats, and that plus `z_loss · mean lse²` (the one to differentiate), both float32.

    `x` are final-normed hidden states in the compute dtype, `head` the float32 output embedding, which is rounded to that dtype for the products;
    logits are float32. At most `chunk` positions per sequence are held as logits at once. With `masked` the mean is over the targets that
    are not `NONE`, of which there must be one; without, all of them are there. With `softcap` logits stay within ± it.
    """
    axis = "tensor" if current_mesh() is not None else None

    def local(x, head, targets):
        return _loss(x, head, targets, chunk, z_loss, axis, masked, softcap)

    run = per_device(local, (BATCH, P("tensor"), BATCH), (P(), P()))
    return run(x_BxTxD, head_VxD, targets_BxT)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6, 7))
def _loss(x_BxTxD, head_VxD, targets_BxT, chunk, z_loss, axis, masked, softcap):
    nll, z, _, _ = _sweep(
        x_BxTxD, head_VxD, targets_BxT, chunk, z_loss, axis, masked, softcap, False
    )
    return _means(nll, z, _count(targets_BxT, axis, masked), z_loss, axis)


def _forward(x_BxTxD, head_VxD, targets_BxT, chunk, z_loss, axis, masked, softcap):
    nll, z, dx, dhead = _sweep(
        x_BxTxD, head_VxD, targets_BxT, chunk, z_loss, axis, masked, softcap, True
    )
    count = _count(targets_BxT, axis, masked)
    return _means(nll, z, count, z_loss, axis), (dx, dhead, count)


def _backward(chunk, z_loss, axis, masked, softcap, residuals, cotangents):
    dx, dhead, count = residuals
    # the plain mean is for reading only: its cotangent is not propagated (see next_token_loss)
    # one device's share of the cotangent is divided by all devices, but those along the vocabulary add up to one gradient
    parts = 1 if axis is None else jax.lax.axis_size(axis)
    scale = cotangents[1] * (parts / count)
    return (dx * scale).astype(dx.dtype), dhead * scale, None


_loss.defvjp(_forward, _backward)


def _count(targets_BxT, axis, masked):
    """Targets per device: with `masked` their mean over devices, which may hold unequal numbers."""
    if not masked:
        return targets_BxT.size
    count = (targets_BxT != NONE).sum(dtype=jnp.float32)
    return count if axis is None else jax.lax.pmean(count, BATCH_AXES)


def _means(nll, z, count, z_loss, axis):
    nll, z = nll / count, z / count
    if axis is not None:
        nll, z = jax.lax.pmean((nll, z), BATCH_AXES)
    return nll, nll + z_loss * z


def _picked(logits_MxV, targets_M, hit_MxV):
    """Each row's logit of its target, 0 where that lies in another device's part of the vocabulary."""
    if target_platform() == "tpu":  # slow at gathering single numbers, and fuses this
        return jnp.where(hit_MxV, logits_MxV, 0.0).sum(-1)
    here_M = (targets_M >= 0) & (targets_M < logits_MxV.shape[1])
    at = jnp.where(here_M, targets_M, 0)[:, None]
    return jnp.where(here_M, jnp.take_along_axis(logits_MxV, at, axis=1)[:, 0], 0.0)


def _sweep(x_BxTxD, head_VxD, targets_BxT, chunk, z_loss, axis, masked, softcap, gradients: bool):
    """Sums of nll and lse² over all positions that count, and with `gradients` those of nll + z_loss · lse²."""
    B, T, D = x_BxTxD.shape
    V = head_VxD.shape[0]
    head = head_VxD.astype(x_BxTxD.dtype)
    chunks = -(-T // chunk)
    size = -(-T // chunks)
    short = chunks * size - T
    if short:  # the last chunk is filled up with positions that do not count
        x_BxTxD = jnp.pad(x_BxTxD, ((0, 0), (0, short), (0, 0)))
        targets_BxT = jnp.pad(targets_BxT, ((0, 0), (0, short)), constant_values=NONE)
        masked = True
    first = 0 if axis is None else jax.lax.axis_index(axis) * V
    vocabulary_V = first + jnp.arange(V)
    pieces = (
        x_BxTxD.reshape(B, chunks, size, D).swapaxes(0, 1),
        targets_BxT.reshape(B, chunks, size).swapaxes(0, 1),
    )

    def over_vocabulary(reduce, value):
        return value if axis is None else reduce(value, axis)

    def kept(rows, targets):
        return jnp.where(targets != NONE, rows, 0.0) if masked else rows

    def one_chunk(carry, piece):
        nll, z, dhead = carry
        x, targets = piece[0].reshape(B * size, D), piece[1].reshape(B * size)
        logits_MxV = jnp.matmul(x, head.T, preferred_element_type=jnp.float32)
        if softcap is not None:
            logits_MxV = softcap * jnp.tanh(logits_MxV / softcap)
        top = over_vocabulary(jax.lax.pmax, logits_MxV.max(-1))
        total = over_vocabulary(jax.lax.psum, jnp.exp(logits_MxV - top[:, None]).sum(-1))
        lse = top + jnp.log(total)
        hit_MxV = targets[:, None] == vocabulary_V[None]
        picked = over_vocabulary(jax.lax.psum, _picked(logits_MxV, targets - first, hit_MxV))
        nll = nll + kept(lse - picked, targets).sum()
        z = z + kept(lse * lse, targets).sum()
        if not gradients:
            return (nll, z, dhead), None
        slope = (1.0 + 2.0 * z_loss * lse)[:, None] * jnp.exp(logits_MxV - lse[:, None])
        slope = kept(slope - hit_MxV, targets[:, None])
        if softcap is not None:
            slope = slope * (1.0 - (logits_MxV / softcap) ** 2)
        slope = slope.astype(x.dtype)
        # this device's part of the vocabulary only: the parts are summed once, behind the loop
        dx = jnp.matmul(slope, head, preferred_element_type=jnp.float32)
        dhead = dhead + jnp.matmul(slope.T, x, preferred_element_type=jnp.float32)
        return (nll, z, dhead), dx.astype(x.dtype).reshape(B, size, D)

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, jnp.zeros((V, D) if gradients else (), jnp.float32))
    (nll, z, dhead), dx = jax.lax.scan(one_chunk, start, pieces)
    if gradients:
        dx = dx.swapaxes(0, 1).reshape(B, chunks * size, D)[:, :T]
    return nll, z, dx, dhead
