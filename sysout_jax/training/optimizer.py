"""Optimisers: AdamW with decay on matrices only, after nanoGPT, Muon, SGD."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, path_aware_map
from jax.sharding import PartitionSpec
from jax.tree_util import DictKey
from optax.contrib import MuonDimensionNumbers

from sysout_jax.training.config import OptimizerConfig

#: Root mean square of Muon's updates before the learning rate, AdamW's usual one, so that both take the same rate (Liu et al. 2025).
MUON_RMS = 0.2


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
    """Clipping, the optimiser of `config.name`, decoupled decay, schedule."""
    clip = [optax.clip_by_global_norm(config.clip)] if config.clip > 0 else []
    return optax.chain(*clip, _OPTIMIZERS[config.name](config))


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.adamw(
        schedule(config),
        config.beta1,
        config.beta2,
        config.eps,
        weight_decay=config.weight_decay,
        mask=decayed,
    )


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
    """Muon where `is_layer_matrix`, AdamW elsewhere."""
    matrices = optax.contrib.muon(
        schedule(config),
        beta=config.momentum,
        weight_decay=config.weight_decay,
        # a fused q, k, v is one matrix, however it lies on a mesh
        muon_weight_dimension_numbers=lambda params: jax.tree.map(
            lambda kernel: MuonDimensionNumbers(0, tuple(range(1, kernel.ndim))), params
        ),
        consistent_rms=MUON_RMS,
    )
    # optax's muon has an AdamW of its own, whose decay knows no mask
    return optax.partition(
        {"muon": matrices, "adamw": _adamw(config)},
        lambda params: path_aware_map(
            lambda path, _: "muon" if is_layer_matrix(path) else "adamw", params
        ),
    )


def _sgd(config: OptimizerConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.trace(config.momentum),
        optax.add_decayed_weights(config.weight_decay, decayed),
        optax.scale_by_learning_rate(schedule(config)),
    )


_OPTIMIZERS = {"adamw": _adamw, "muon": _muon, "sgd": _sgd}


def is_layer_matrix(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a matrix between two activations: neither embedding nor head, whose rows stand for tokens."""
    return path[0].startswith("layer_") and path[-1] == "kernel"


def decayed(params: dict) -> Any:
    """True for matrices (kernels and embeddings); norms, biases, sink logits and the extra keys and values of attention are not."""
    return path_aware_map(lambda path, _: path[-1] in ("kernel", "embedding"), params)


def optimizer_specs(optimizer: optax.GradientTransformation, shapes: dict, specs: dict):
    """PartitionSpecs of the optimiser's state: moments lie like the parameters whose paths they have, counters are copied."""
    by_path = flatten_dict(specs)

    def spec(path: tuple, _) -> PartitionSpec:
        names = itertools.takewhile(lambda key: isinstance(key, DictKey), reversed(path))
        return by_path.get(tuple(key.key for key in names)[::-1], PartitionSpec())

    return jax.tree_util.tree_map_with_path(spec, jax.eval_shape(optimizer.init, shapes))
