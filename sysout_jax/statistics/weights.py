"""Weight statistics of a layer's matrices: extremal ratios and the paper's row-wise outliers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.models.spec import LayerSpec
from sysout_jax.numerics.sweeps import count, in_blocks
from sysout_jax.outliers.definitions import TAUS, exceeds, ratio
from sysout_jax.statistics.statistic import Statistic

_DOWN_LINES = "lines of down"


@dataclass(frozen=True)
class WeightStats:
    """Statistics of every matrix of every layer; `modules` names the M matrices of a layer in the paper's order.

    A matrix maps I inputs (columns) to O outputs (rows), as the paper writes W (O, I).
    """

    modules: tuple[str, ...]
    column_ratio: np.ndarray  # (L, M) largest column-wise max|w| / mean|w| (paper §3.2)
    column: np.ndarray  # (L, M) int: the column that has it
    row_ratio: np.ndarray  # (L, M) the same per row; at the same time the largest |w| / row mean, which τ is compared with
    row: np.ndarray  # (L, M) int
    counts: np.ndarray  # (L, M, len(TAUS)) weights flagged at each threshold of TAUS, row-wise rule
    column_ratios: dict[str, np.ndarray]  # module → (L, I) extremal ratio of every column
    down_row_ratios: np.ndarray  # (L, D) extremal ratio of every row of the down projection
    down_weight_ratios: np.ndarray  # (L, F) for every column of the down projection the largest |w| over the mean of that weight's row
    down_largest_rows: np.ndarray  # (L, F) int: the row of every column's largest |w|
    nonfinite: np.ndarray  # (L, M)

    @property
    def down_column_ratios(self) -> np.ndarray:
        """(L, F) every column of the down projection."""
        return self.column_ratios["down"]


def reduce_weights(spec: LayerSpec, params: dict) -> dict[str, dict[str, jax.Array]]:
    """Everything `WeightStats` needs of one layer; one program is compiled for every shape of matrix."""
    reduced = {matrix.name: _reduce(matrix.of(params)) for matrix in spec.matrices}
    return reduced | {_DOWN_LINES: _lines(spec.matrix("down").of(params))}


@jax.jit
def _lines(kernel_IxO: jax.Array) -> dict[str, jax.Array]:
    """What tells in which columns (I,) and rows (O,) of W the outliers of any threshold are."""
    kernel_1xIxO = kernel_IxO[None].astype(jnp.float32)

    def magnitude(block_1xRxO):
        return jnp.where(jnp.isfinite(block_1xRxO), jnp.abs(block_1xRxO), 0.0)

    def sums(carry, block_1xRxO):
        size = magnitude(block_1xRxO)
        return [carry[0] + size.sum(1), jnp.maximum(carry[1], size.max(1))], ()

    none = jnp.zeros((1, kernel_IxO.shape[1]))
    (total, largest), _ = in_blocks(sums, [none, none], kernel_1xIxO)
    mean = total / kernel_IxO.shape[0]

    def of_columns(carry, block_1xRxO):
        size = magnitude(block_1xRxO)
        return carry, (ratio(size, mean[:, None]).max(2), size.argmax(2))

    _, (weight_ratios, rows) = in_blocks(of_columns, (), kernel_1xIxO)
    return {
        "down_row_ratios": ratio(largest, mean)[0],
        "down_weight_ratios": weight_ratios[0],
        "down_largest_rows": rows[0],
    }


@jax.jit
def _reduce(kernel_IxO: jax.Array) -> dict[str, jax.Array]:
    I, O = kernel_IxO.shape
    kernel_1xIxO = kernel_IxO[None].astype(jnp.float32)

    def largest_and_sums(carry, block_1xRxO):
        largest, sums, finites = carry
        finite = jnp.isfinite(block_1xRxO)
        magnitude = jnp.where(finite, jnp.abs(block_1xRxO), 0.0)
        carry = [
            jnp.maximum(largest, magnitude.max(1)),
            sums + magnitude.sum(1),
            finites + finite.sum(1, dtype=jnp.int32),
        ]
        return carry, (magnitude.max(2), magnitude.sum(2))

    start = [jnp.zeros((1, O)), jnp.zeros((1, O)), jnp.zeros((1, O), jnp.int32)]
    # a row of W is a column of the kernel
    (row_max, row_sum, finites), columns = in_blocks(largest_and_sums, start, kernel_1xIxO)
    row_mean = row_sum / I
    rows = ratio(row_max, row_mean)[0]

    def count_above():
        return jax.lax.map(
            lambda tau: count(
                exceeds(jnp.abs(kernel_1xIxO), row_mean[:, None], tau) & jnp.isfinite(kernel_1xIxO)
            )[0],
            jnp.asarray(TAUS),
        )

    none = jnp.zeros(len(TAUS), jnp.int32)
    return {
        "columns": ratio(columns[0][0], columns[1][0] / O),
        "row_ratio": rows.max(),
        "row": rows.argmax(),
        # most matrices have no weight above the lowest threshold, and then the sweeps are skipped
        "counts": jax.lax.cond(rows.max() > min(TAUS), count_above, lambda: none),
        "nonfinite": I * O - finites.sum(),
    }


def join_weights(
    layers: Sequence[dict[str, dict[str, np.ndarray]]], modules: tuple[str, ...]
) -> WeightStats:
    """Stack the reductions of all layers."""

    def table(value) -> np.ndarray:
        return np.array([[value(layer[name]) for name in modules] for layer in layers])

    return WeightStats(
        modules=modules,
        column_ratio=table(lambda m: m["columns"].max()),
        column=table(lambda m: m["columns"].argmax()),
        row_ratio=table(lambda m: m["row_ratio"]),
        row=table(lambda m: m["row"]),
        counts=table(lambda m: m["counts"]),
        column_ratios={
            name: np.stack([layer[name]["columns"] for layer in layers]) for name in modules
        },
        nonfinite=table(lambda m: m["nonfinite"]),
        **{
            name: np.stack([layer[_DOWN_LINES][name] for layer in layers])
            for name in layers[0][_DOWN_LINES]
        },
    )


def _columns(stats: WeightStats) -> dict[str, Any]:
    names = "modules column_ratio column row_ratio row nonfinite".split()
    counts = {f"{tau:g}": stats.counts[..., i] for i, tau in enumerate(TAUS)}
    return {name: getattr(stats, name) for name in names} | {"counts": counts}


STATISTIC = Statistic(
    "weights",
    taps=(),
    row=lambda layer: jax.device_get(reduce_weights(layer.spec, layer.params)),
    join=lambda rows, config: join_weights(
        rows, tuple(matrix.name for matrix in config.layer(0).matrices)
    ),
    columns=_columns,
)
