"""The forward pass in training: layer by layer, so that sharding and rematerialisation stay out of the models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sysout_jax.sharding import BATCH, constrain, whole_rows


def final_hidden(model, params: dict, tokens_BxT, remat: bool = False) -> jax.Array:
    """(B, T, D) final-normed hidden states in the compute dtype; the residual stream is float32 whatever that dtype is."""
    x_BxTxD = embedded(model, params, tokens_BxT)
    # equal layers are traced once
    blocks = equal_blocks(model, lambda block: jax.jit(applied(block, remat)))
    for layer, block in enumerate(blocks):
        x_BxTxD = constrain(block(params[f"layer_{layer}"], x_BxTxD), BATCH)
    if model.cfg.ends().final_norm is None:
        return x_BxTxD
    held = {name: params[name] for name in ("final_norm",) if name in params}  # some have none
    return model.apply({"params": held}, x_BxTxD, method=lambda m, x: m.final_norm(x))


def embedded(model, params: dict, tokens_BxT) -> jax.Array:
    """(B, T, D) float32: what enters the first layer."""
    held = whole_rows({name: params[name] for name in ("embed", "positions") if name in params})
    x_BxTxD = model.apply({"params": held}, tokens_BxT, method="embed_tokens")
    return constrain(x_BxTxD.astype(jnp.float32), BATCH)


def equal_blocks(model, make: Callable[[Any], Any]) -> list[Any]:
    """`make(block)` of every layer, once for those that are made of the same."""
    blocks = [model.block(layer) for layer in range(model.cfg.num_layers)]
    made = {block: make(block) for block in dict.fromkeys(blocks)}
    return [made[block] for block in blocks]


def applied(block: Any, remat: bool) -> Callable[[dict, jax.Array], jax.Array]:
    """One layer as a function of its parameters and input; with `remat` its insides are computed again for the gradient."""

    def apply(params: dict, x_BxTxD: jax.Array) -> jax.Array:
        return block.apply({"params": params}, x_BxTxD)

    return jax.checkpoint(apply) if remat else apply


def before_head(model, params: dict, x_BxTxD: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Hidden states and (V, D) output embedding whose products are the logits, but for a cap: with a scale in the states, and a bias
    as what one more of them, 1, is multiplied with."""
    ends = model.cfg.ends()
    if model.cfg.tied_embeddings:
        head_VxD = params["embed"]["embedding"]
    else:
        head_VxD = params["lm_head"]["kernel"].T
        if ends.head_bias:
            bias_Vx1 = params["lm_head"]["bias"][:, None]
            head_VxD = jnp.concatenate([head_VxD, bias_Vx1], axis=1)
            x_BxTxD = jnp.concatenate([x_BxTxD, jnp.ones_like(x_BxTxD[..., :1])], axis=2)
    if ends.head_scale is not None:
        x_BxTxD = x_BxTxD * jnp.asarray(ends.head_scale, x_BxTxD.dtype)
    return x_BxTxD, head_VxD
