"""Edits of the down projection: which entries, and what they are set to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sysout_jax.language_model import LanguageModel

#: layer → (channels, dims) of its down projection
Entries = Mapping[int, tuple[np.ndarray, np.ndarray]]
#: `fill(layer, kernel_FxD) -> values` for its entries, broadcast to (channels, dims)
Fill = Callable[[int, np.ndarray], np.ndarray]


def random_weights(born: Entries, num_channels: int, rng: np.random.Generator) -> Entries:
    """As many entries of the same rows in random other channels."""
    others = {
        layer: np.setdiff1d(np.arange(num_channels), channels)
        for layer, (channels, _) in born.items()
    }
    return {
        layer: (rng.choice(others[layer], min(len(channels), len(others[layer])), False), dims)
        for layer, (channels, dims) in born.items()
    }


def random_rows(
    born: Entries, taken: np.ndarray, num_dims: int, rng: np.random.Generator
) -> Entries:
    """As many random other dims, none of those that are `taken`."""
    free = np.setdiff1d(np.arange(num_dims), taken)
    return {
        layer: (channels, rng.choice(free, min(len(dims), len(free)), False))
        for layer, (channels, dims) in born.items()
    }


def whole_columns(born: Entries, num_dims: int) -> Entries:
    """All that the same channels write."""
    return {layer: (channels, np.arange(num_dims)) for layer, (channels, _) in born.items()}


def zero(layer: int, kernel_FxD: np.ndarray) -> np.ndarray:
    """The simplest `Fill`."""
    return np.zeros((1, 1))


def edit_down_weights(lm: LanguageModel, entries: Entries, fill: Fill) -> LanguageModel:
    """The model with W_down[dims, channels] of the given layers set to what `fill` says."""

    def edit(layer: int, channels: np.ndarray, dims: np.ndarray):
        def apply(params: dict) -> dict:
            down = lm.config.layer(layer).matrix("down")
            kernel = np.array(down.of(params))
            kernel[np.ix_(channels, dims)] = fill(layer, kernel)
            return down.replaced(params, kernel)

        return apply

    return lm.with_edits(
        {f"layer_{layer}": edit(layer, *where) for layer, where in entries.items()}
    )
