"""Writers of a model, ranked three ways. A writer is an entry W_down[row, column] of a layer: its column is a channel, its row a dim of h."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import finite_or
from sysout_jax.statistics.collect import Stats

#: What writers are ranked by.
RANKINGS = {
    "column": "extremal ratio max|w| / mean|w| of a column of W_down; its writer is the column's largest |w|",
    "row": "the same of a row; its writer is the row's largest |w|",
    "activation": "largest |write|, |W_down[row, column] · x_down[column]| over all tokens of the text",
}


@dataclass(frozen=True)
class Writer:
    """An entry of W_down and where it stands by each ranking. Layer, row and column are 0-based, ranks begin at 1 among all lines of the model."""

    layer: int
    row: int
    column: int
    weight: float
    column_ratio: float
    row_ratio: float
    write: float  # in units of h
    column_rank: int
    row_rank: int
    write_rank: int  # of its column, by the largest write of each column

    @property
    def place(self) -> tuple[int, int, int]:
        return self.layer, self.row, self.column


def find_writers(lm: LanguageModel, stats: Stats, count: int) -> tuple[Writer, ...]:
    """The `count` strongest by each ranking, without repetition, the largest write first. Weights are read once.

    With experts a column is (expert, unit) as one number; with a norm after the MLP writes are those before it.
    """
    layers = [_Lines.of(lm, layer) for layer in range(lm.num_layers)]
    x_down_LxF = stats.x_down.channel_max.max(axis=1)
    write_LxF = x_down_LxF * np.stack([np.abs(lines.column_weights) for lines in layers])
    columns_LxF, rows_LxD = stats.weights.down_column_ratios, stats.weights.down_row_ratios

    def of_column(layer: int, column: int) -> tuple[int, int, int, float]:
        lines = layers[layer]
        return layer, int(lines.rows[column]), column, float(lines.column_weights[column])

    def of_row(layer: int, row: int) -> tuple[int, int, int, float]:
        lines = layers[layer]
        return layer, row, int(lines.columns[row]), float(lines.row_weights[row])

    rankings: list[tuple[np.ndarray, Callable]] = [
        (columns_LxF, of_column), (rows_LxD, of_row), (write_LxF, of_column),
    ]  # fmt: skip
    entries = dict.fromkeys(
        entry_of(*at) for values, entry_of in rankings for at in _largest(values, count)
    )

    def writer(layer: int, row: int, column: int, weight: float) -> Writer:
        return Writer(
            layer=layer,
            row=row,
            column=column,
            weight=weight,
            column_ratio=float(columns_LxF[layer, column]),
            row_ratio=float(rows_LxD[layer, row]),
            write=float(abs(weight) * x_down_LxF[layer, column]),
            column_rank=_rank(columns_LxF, (layer, column)),
            row_rank=_rank(rows_LxD, (layer, row)),
            write_rank=_rank(write_LxF, (layer, column)),
        )

    return tuple(sorted((writer(*entry) for entry in entries), key=lambda w: -w.write))


@dataclass(frozen=True)
class _Lines:
    """The largest weight of every line of a layer's W_down, with its sign, and where in the line it is; 0 for what is not finite."""

    rows: np.ndarray  # (F,) of every column's
    column_weights: np.ndarray  # (F,)
    columns: np.ndarray  # (D,) of every row's
    row_weights: np.ndarray  # (D,)

    @classmethod
    def of(cls, lm: LanguageModel, layer: int) -> _Lines:
        kernel = lm.config.layer(layer).matrix("down").of(lm.read(f"layer_{layer}"))
        kernel_FxD = finite_or(np.asarray(kernel, np.float32))
        size = np.abs(kernel_FxD)
        rows, columns = size.argmax(axis=1), size.argmax(axis=0)
        F, D = size.shape
        return cls(rows, kernel_FxD[np.arange(F), rows], columns, kernel_FxD[columns, np.arange(D)])


def _largest(values_LxI: np.ndarray, count: int) -> list[tuple[int, int]]:
    order = np.argsort(-values_LxI, axis=None, kind="stable")[:count]
    return [
        (int(l), int(i)) for l, i in zip(*np.unravel_index(order, values_LxI.shape), strict=True)
    ]


def _rank(values_LxI: np.ndarray, at: tuple[int, int]) -> int:
    return 1 + int((values_LxI > values_LxI[at]).sum())
