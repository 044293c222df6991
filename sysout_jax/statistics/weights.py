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
    nonfinite: np.ndarray  # (L, M)

    @property
    def down_column_ratios(self) -> np.ndarray:
        """(L, F) every column of the down projection."""
        return self.column_ratios["down"]


def reduce_weights(spec: LayerSpec, params: dict) -> dict[str, dict[str, jax.Array]]:
    """Everything `WeightStats` needs of one layer; one program is compiled for every shape of matrix."""
    return {matrix.name: _reduce(matrix.of(params)) for matrix in spec.matrices}


@jax.jit
def outlier_lines(kernel_IxO: jax.Array, tau) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Columns (I,) and rows (O,) of W that hold a weight outlier at τ, bool, and the largest |w| over the mean of its row."""
    magnitude = jnp.where(jnp.isfinite(kernel_IxO), jnp.abs(kernel_IxO.astype(jnp.float32)), 0.0)
    mean = magnitude.mean(0)
    flagged = exceeds(magnitude, mean[None], tau)
    return flagged.any(1), flagged.any(0), ratio(magnitude.max(0), mean).max()


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
