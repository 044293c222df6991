"""What is kept in full precision to see where quantisation goes wrong: the outliers that were found, and as many random others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sysout_jax.analyses.lifecycle.cause import birth_weights
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.compress.methods import Keep, Kept
from sysout_jax.config import ModelConfig
from sysout_jax.weights import expected_shapes

#: What can be kept, and what that means.
KEEPS = {
    "birth_weights": "the weights W_down[d*, c*] of the birth layers",
    "channels": "the columns c* of W_down of the birth layers (and their inputs, where inputs are quantised)",
    "dims": "the outlier dims d* of the residual stream in every layer: columns of what reads it, rows of what writes it",
    "columns": "the column with the largest extremal ratio of every matrix",
}


def shapes(config: ModelConfig) -> dict[tuple[int, str], tuple[int, int]]:
    """(layer, path) → (inputs, outputs) of every linear layer of every block."""
    sizes = {}
    for name, shape in expected_shapes(config).items():
        group, _, path = name.partition("/")
        if group.startswith("layer_") and path.endswith("/kernel"):
            layer, inputs, outputs = int(group.removeprefix("layer_")), *shape
            sizes[layer, path.removesuffix("/kernel")] = (inputs, outputs)
    return sizes


def find_keeps(life: Lifecycle, config: ModelConfig) -> dict[str, Keep]:
    """The parts of `KEEPS` that this lifecycle names; one that was traced and has a birth."""
    born = birth_weights(life.birth)
    dims = life.birth.dims
    keeps: dict[str, Keep] = {}
    if born:
        keeps["birth_weights"] = born_weights(life, config)
        keeps["channels"] = {
            _down(config, layer): Kept(inputs=_ints(channels))
            for layer, (channels, _) in born.items()
        }
    keeps["dims"] = {
        place: Kept(outputs=dims) if _writes(config, *place) else Kept(inputs=dims)
        for place in shapes(config)
    }
    keeps["columns"] = _extremal_columns(life, config)
    return keeps


def born_weights(life: Lifecycle, config: ModelConfig) -> Keep:
    """The weights W_down[d*, c*] of the birth layers; empty where no channel carries the birth."""
    return {
        _down(config, layer): Kept(block=(_ints(channels), _ints(rows)))
        for layer, (channels, rows) in birth_weights(life.birth).items()
    }


def kept_weights(keep: Keep, config: ModelConfig) -> int:
    """How many weights stay in full precision."""
    sizes = shapes(config)
    return sum(int(kept.mask(sizes[place]).sum()) for place, kept in keep.items())


def random_others(keep: Keep, config: ModelConfig, rng: np.random.Generator) -> Keep:
    """As many random other columns, rows or weights of the same matrices; weights in the same rows."""
    sizes = shapes(config)
    return {
        place: Kept(
            inputs=_others(kept.inputs, sizes[place][0], rng),
            outputs=_others(kept.outputs, sizes[place][1], rng),
            block=(_others(kept.block[0], sizes[place][0], rng), kept.block[1]),
        )
        for place, kept in keep.items()
    }


def _down(config: ModelConfig, layer: int) -> tuple[int, str]:
    return layer, config.layer(layer).matrix("down").path


def _others(chosen: Sequence[int], size: int, rng: np.random.Generator) -> tuple[int, ...]:
    pool = np.setdiff1d(np.arange(size), chosen)
    return _ints(rng.choice(pool, min(len(chosen), len(pool)), replace=False))


def _extremal_columns(life: Lifecycle, config: ModelConfig) -> Keep:
    weights = life.stats.weights
    columns: dict[tuple[int, str], set[int]] = {}
    for layer in range(len(weights.column)):
        for module, column in zip(weights.modules, weights.column[layer], strict=True):
            path = config.layer(layer).matrix(module).path
            columns.setdefault((layer, path), set()).add(int(column))
    return {place: Kept(inputs=tuple(sorted(inputs))) for place, inputs in columns.items()}


def _writes(config: ModelConfig, layer: int, path: str) -> bool:
    """Does that linear layer add to the residual stream?"""
    spec = config.layer(layer)
    return path in [spec.matrix(writer.matrix).path for writer in spec.writers]


def _ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
