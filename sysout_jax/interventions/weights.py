"""Edits of the down projection: which entries, and what they are set to."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from sysout_jax.language_model import LanguageModel

#: layer → (channels, dims) of its down projection
Entries = Mapping[int, tuple[np.ndarray, np.ndarray]]
#: `fill(layer, kernel_FxD) -> values` for its entries, broadcast to (channels, dims)
Fill = Callable[[int, np.ndarray], np.ndarray]

#: What is edited of writers, entries W_down[rows, columns] of layers; a row is a dim of h, a column a channel.
EDITS = {
    "element": "W_down[row, column] set to zero",
    "half": "W_down[row, column] halved",
    "column": "W_down[:, column] set to zero: all that the channel writes",
    "row": "W_down[row, :] set to zero: all that the layer's MLP writes to the dim",
}
#: What stands beside them, drawn at random in the same layer.
CONTROLS = {
    "random": "another element of the row, another column or another row set to zero",
    "equal norm": "a random direction added to another element of the row, column or row, as long as what the edit takes away",
}
CONTROLLED = ("element", "column", "row")
#: Edits that several writers go through alone and together, since effects mask each other.
PAIRED = ("element", "column")


def edited(lm: LanguageModel, writers: Entries, edit: str) -> LanguageModel:
    """The model under one of `EDITS`."""
    entries = touched(lm, writers, edit)

    def half(layer: int, kernel_FxD: np.ndarray) -> np.ndarray:
        return kernel_FxD[np.ix_(*entries[layer])] / 2

    return edit_down_weights(lm, entries, half if edit == "half" else zero)


def control(
    lm: LanguageModel,
    writers: Entries,
    edit: str,
    kind: str,
    rng: np.random.Generator,
    taken: np.ndarray | None = None,
) -> LanguageModel:
    """The model under one of `CONTROLS` of an edit; `taken` as `others` has them."""
    mine, other = touched(lm, writers, edit), others(lm, writers, edit, rng, taken)
    if kind == "random":
        return edit_down_weights(lm, other, zero)
    # drawn once: whoever reads the layer again finds the same weights
    directions = {
        layer: rng.standard_normal((len(channels), len(dims)))
        for layer, (channels, dims) in other.items()
    }

    def disturbed(layer: int, kernel_FxD: np.ndarray) -> np.ndarray:
        length = np.linalg.norm(kernel_FxD[np.ix_(*mine[layer])].astype(np.float64))
        direction = directions[layer]
        unit = direction / max(float(np.linalg.norm(direction)), 1e-30)
        return kernel_FxD[np.ix_(*other[layer])] + length * unit

    return edit_down_weights(lm, other, disturbed)


def touched(lm: LanguageModel, writers: Entries, edit: str) -> Entries:
    """The entries that an edit changes."""
    if edit == "column":
        return {l: (channels, np.arange(lm.config.d_model)) for l, (channels, _) in writers.items()}
    if edit == "row":
        return {l: (np.arange(_channels(lm, l)), dims) for l, (_, dims) in writers.items()}
    return writers


def others(
    lm: LanguageModel,
    writers: Entries,
    edit: str,
    rng: np.random.Generator,
    taken: np.ndarray | None = None,
) -> Entries:
    """As many random other elements of the same rows, other columns, or other rows, none of them of dims that are `taken`; as many as there are."""

    def drawn(count: int, size: int, without: np.ndarray) -> np.ndarray:
        free = np.setdiff1d(np.arange(size), without)
        return rng.choice(free, min(count, len(free)), False)

    instead = {}
    for layer, (channels, dims) in writers.items():
        if edit == "row":
            dims = drawn(len(dims), lm.config.d_model, dims if taken is None else np.union1d(dims, taken))  # fmt: skip
        else:
            channels = drawn(len(channels), _channels(lm, layer), channels)
        instead[layer] = channels, dims
    return touched(lm, instead, edit)


def _channels(lm: LanguageModel, layer: int) -> int:
    return lm.config.layer(layer).mlp.channels


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
