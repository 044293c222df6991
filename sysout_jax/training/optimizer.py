"""AdamW with decay on matrices only, after nanoGPT."""

from __future__ import annotations

from typing import Any

import jax
import optax
from flax.traverse_util import path_aware_map

from sysout_jax.training.config import OptimizerConfig


def schedule(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate of a step: linear warm-up to `lr`, cosine to `min_lr` at `decay_steps`."""
    return optax.warmup_cosine_decay_schedule(
        init_value=config.lr / max(config.warmup_steps + 1, 1),
        peak_value=config.lr,
        warmup_steps=config.warmup_steps,
        decay_steps=max(config.decay_steps, config.warmup_steps + 1),
        end_value=config.min_lr,
    )


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Clipping, Adam moments, decoupled decay, schedule."""
    clip = [optax.clip_by_global_norm(config.clip)] if config.clip > 0 else []
    return optax.chain(
        *clip,
        optax.adamw(
            schedule(config),
            config.beta1,
            config.beta2,
            config.eps,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )


def decayed(params: dict) -> Any:
    """True for matrices (kernels and embeddings); norms, biases and the extra keys and values of attention are not decayed."""
    return path_aware_map(lambda path, _: path[-1] in ("kernel", "embedding"), params)


def optimizer_specs(optimizer: optax.GradientTransformation, shapes: dict, specs: dict):
    """PartitionSpecs of the optimiser's state: moments lie like their parameters, counters are copied."""
    state = jax.eval_shape(optimizer.init, shapes)
    return optax.tree.map_params(
        optimizer,
        lambda _, spec: spec,
        state,
        specs,
        transform_non_params=lambda _: jax.sharding.PartitionSpec(),
        is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec),
    )
