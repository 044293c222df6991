"""Activation statistics of one place in the model (`h` or `x_down`): reduced per sequence on the device, joined on the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.models.experts import by_channel
from sysout_jax.models.spec import MlpSpec
from sysout_jax.numerics.order import median_of_magnitudes
from sysout_jax.numerics.sweeps import count, in_blocks
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.definitions import TAUS
from sysout_jax.statistics.statistic import TOP, Statistic


@dataclass(frozen=True)
class ActivationStats:
    """Statistics of one place over N sequences of T tokens, C channels, in L layers; K largest magnitudes are kept.

    NaN and inf are left out of every statistic, counted in `nonfinite` and located in `first_nonfinite`.
    """

    top_values: np.ndarray  # (L, K) largest magnitudes over all sequences, descending
    top_signs: np.ndarray  # (L, K) their signs, -1 or 1
    top_sequences: np.ndarray  # (L, K) int: sequence
    top_tokens: np.ndarray  # (L, K) int: position in the sequence
    top_channels: np.ndarray  # (L, K) int: channel (feature dim for h)
    mean: np.ndarray  # (L,) mean magnitude
    median: np.ndarray  # (L,) mean over sequences of the sequence's exact median magnitude
    sequence_mean: np.ndarray  # (L, N)
    sequence_median: np.ndarray  # (L, N)
    sequence_top: np.ndarray  # (L, N, 3) largest magnitudes of each sequence
    token_max: np.ndarray  # (L, N, T) largest magnitude of each token
    channel_max: np.ndarray  # (L, N, C) largest magnitude of each channel
    channel_ratio: np.ndarray  # (L, C) largest magnitude over mean magnitude of its sequence
    counts: np.ndarray  # (L, len(TAUS)) elements flagged at each threshold of TAUS
    massive: np.ndarray  # (L,) elements that are massive activations (Sun et al.)
    neuron_kurtosis: np.ndarray  # (L,) neuron-RMS kurtosis over all sequences
    excess_kurtosis: np.ndarray  # (L,) mean over sequences
    severity: (
        np.ndarray
    )  # (L,) γ over all tokens; NaN where channels are those of experts, which not all tokens reach
    nonfinite: np.ndarray  # (L,) NaN and inf elements
    first_nonfinite: (
        np.ndarray
    )  # (L, 3) sequence, token, channel of the first one; -1 where there is none
    expert_width: int | None = None  # F where channels are those of experts, else None

    def label(self, channel: int) -> str:
        """How a channel is called: its number, with experts `expert:unit`."""
        return channel_label(channel, self.expert_width)

    @property
    def ratio(self) -> np.ndarray:
        """(L,) the largest magnitude over the mean magnitude of its own sequence: what is compared with τ."""
        return self.channel_ratio.max(axis=1)

    def outlier_tokens(self, tau: float) -> np.ndarray:
        """(L, N, T) bool: tokens that hold an activation outlier at τ."""
        return np.asarray(rules.exceeds(self.token_max, self.sequence_mean[..., None], tau))

    def outlier_channels(self, tau: float) -> np.ndarray:
        """(L, C) bool: channels that hold an activation outlier at τ in any sequence."""
        return self.channel_ratio > tau


def reduce_activations(x_BxTxC: jax.Array, top: int) -> dict[str, jax.Array]:
    """Everything `ActivationStats` needs, one row per sequence. Runs inside the block step."""
    B, T, C = x_BxTxC.shape
    x = x_BxTxC.astype(jnp.float32)
    (sums, signed, channel_max, finites), token_max = in_blocks(
        _first_moments, [jnp.zeros((B, C))] * 3 + [jnp.zeros((B, C), jnp.int32)], x
    )
    nonfinite = T * C - finites.sum(1)
    number = jnp.maximum(T * C - nonfinite, 1).astype(jnp.float32)
    mean, centre = sums.sum(1) / number, signed.sum(1) / number
    median = median_of_magnitudes(x_BxTxC, nonfinite)

    # A power of two brings the largest magnitude near 1: exact, and no square or fourth power leaves float32.
    exponent = jnp.clip(jnp.frexp(channel_max.max(1))[1], -126, 126)
    unit = jnp.ldexp(jnp.float32(1), -exponent)[:, None, None]

    def higher_moments(carry, block_BxRxC):
        finite = jnp.isfinite(block_BxRxC)
        scaled = jnp.where(finite, block_BxRxC * unit, 0.0)
        square = jnp.where(finite, scaled - centre[:, None, None] * unit, 0.0) ** 2
        moments = (square, square * square, scaled * scaled)
        return [total + moment.sum(1) for total, moment in zip(carry, moments, strict=True)], ()

    (second, fourth, squares), _ = in_blocks(higher_moments, [jnp.zeros((B, C))] * 3, x)
    variance, fourth = second.sum(1) / number, fourth.sum(1) / number
    threshold = mean[:, None] * jnp.asarray(TAUS, jnp.float32)[None]
    bound = rules.massive_bound(median)
    # only the rows of the `top` largest tokens can hold the `top` largest elements; in order, so that ties resolve by position
    rows = jnp.sort(jax.lax.top_k(token_max, min(top, T))[1], axis=-1)
    candidates = jnp.take_along_axis(x, rows[:, :, None], axis=1).reshape(B, -1)
    flat = jnp.where(jnp.isfinite(candidates), candidates, 0.0)
    top_magnitude, at = jax.lax.top_k(jnp.abs(flat), min(top, flat.shape[1]))
    return {
        "top_signed": jnp.take_along_axis(flat, at, -1),
        "top_token": jnp.take_along_axis(rows, at // C, -1),
        "top_channel": at % C,
        "top_magnitude": top_magnitude,
        "mean": mean,
        "median": median,
        "token_max": token_max,
        "channel_max": channel_max,
        "channel_mean": signed / T,
        "power": squares / T,  # in units of 4^exponent
        "exponent": exponent,
        "excess_kurtosis": rules.excess_kurtosis(fourth, variance),
        "counts": _count_above(x, channel_max, threshold),
        "massive": _count_above(x, channel_max, bound[:, None])[:, 0],
        "nonfinite": nonfinite,
        "first_nonfinite": jax.lax.cond(
            (nonfinite > 0).any(),
            lambda: jnp.where(
                nonfinite > 0, jnp.argmin(jnp.isfinite(x).reshape(B, -1), axis=-1), -1
            ),
            lambda: jnp.full(B, -1),
        ),
    }


def reduce_x_down(mlp: MlpSpec, taps: Mapping[str, jax.Array], top: int) -> dict[str, jax.Array]:
    """`reduce_activations` of tap `x_down`; with experts over the values that there are: the rows of every token's chosen experts.

    Channels are those of all experts, `expert · F + unit`; the mean square of one is over the tokens that go through its expert.
    """
    if mlp.experts is None:
        return reduce_activations(taps["x_down"], top)
    x_BxTxRxF, chosen_BxTxR = taps["x_down"].astype(jnp.float32), taps["expert"]
    B, T, R, F = x_BxTxRxF.shape
    count = mlp.experts.total
    rows = reduce_activations(x_BxTxRxF.reshape(B, T * R, F), top)
    expert_BxTR = chosen_BxTxR.reshape(B, T * R)

    def of(row_BxK):
        return jnp.take_along_axis(expert_BxTR, jnp.maximum(row_BxK, 0), axis=1)

    magnitude = jnp.where(jnp.isfinite(x_BxTxRxF), jnp.abs(x_BxTxRxF), 0.0)
    scaled = magnitude * jnp.ldexp(jnp.float32(1), -rows["exponent"])[:, None, None, None]
    ones = jnp.ones((B, T, R, 1), jnp.int32)
    first_Bx1 = rows["first_nonfinite"][:, None]
    row_Bx1 = first_Bx1 // F
    return rows | {
        "top_channel": of(rows["top_token"]) * F + rows["top_channel"],
        "top_token": rows["top_token"] // R,
        "token_max": rows["token_max"].reshape(B, T, R).max(2),
        "channel_max": by_channel(magnitude, chosen_BxTxR, count, "max"),
        "power": by_channel(scaled**2, chosen_BxTxR, count, "add"),
        "reached": by_channel(ones, chosen_BxTxR, count, "add"),
        "first_nonfinite": jnp.where(
            first_Bx1 < 0, -1, (row_Bx1 // R * count + of(row_Bx1)) * F + first_Bx1 % F
        )[:, 0],
    }


def _first_moments(carry, block_BxRxC):
    """Sums of |x| and x, largest |x| and number of finite elements per channel; per token the largest |x|. What is not finite counts as 0."""
    sums, signed, largest, finites = carry
    finite = jnp.isfinite(block_BxRxC)
    x = jnp.where(finite, block_BxRxC, 0.0)
    magnitude = jnp.abs(x)
    return [
        sums + magnitude.sum(1),
        signed + x.sum(1),
        jnp.maximum(largest, magnitude.max(1)),
        finites + finite.sum(1, dtype=jnp.int32),
    ], magnitude.max(2)


def _count_above(x_BxTxC, channel_max_BxC, bounds_BxK):
    """Finite elements whose magnitude is above each bound. Most layers have none above the lowest, and then the sweeps are skipped."""

    def sweep():
        def above(bound_B):
            magnitude = jnp.abs(x_BxTxC)
            return count((magnitude > bound_B[:, None, None]) & (magnitude < jnp.inf))

        return jax.lax.map(above, bounds_BxK.T).T

    reached = (channel_max_BxC.max(1) > bounds_BxK.min(1)).any()
    return jax.lax.cond(reached, sweep, lambda: jnp.zeros(bounds_BxK.shape, jnp.int32))


def channel_label(channel: int, expert_width: int | None) -> str:
    """Its number, with experts of that width `expert:unit`."""
    if expert_width is None:
        return str(channel)
    expert, unit = divmod(int(channel), expert_width)
    return f"{expert}:{unit}"


def join_activations(
    layers: Sequence[dict[str, np.ndarray]], top: int, expert_width: int | None = None
) -> ActivationStats:
    """Per-sequence reductions of all layers to statistics over all sequences, in float64."""
    columns: dict[str, list] = {}
    for layer in layers:
        k = layer["top_magnitude"].shape[1]
        C = layer["channel_max"].shape[1]
        order = np.argsort(-layer["top_magnitude"].reshape(-1), kind="stable")[:top]
        mean = layer["mean"].astype(np.float64)
        units = np.exp2(2.0 * layer["exponent"])
        power = layer["power"] * units[:, None]
        if "reached" in layer:  # sums over the tokens of each expert
            reached = np.repeat(layer["reached"].sum(axis=0), C // layer["reached"].shape[1])
            power = power.sum(axis=0)[reached > 0] / reached[reached > 0]
            severity = float("nan")
        else:
            power = power.mean(axis=0)
            centre = layer["channel_mean"].astype(np.float64).mean(axis=0)
            severity = rules.severity(centre, np.maximum(power - centre**2, 0.0))
        where = np.flatnonzero(layer["first_nonfinite"] >= 0)[:1]
        flat = layer["first_nonfinite"][where]
        row = {
            "top_values": layer["top_magnitude"].reshape(-1)[order],
            "top_signs": np.where(layer["top_signed"].reshape(-1)[order] < 0, -1, 1),
            "top_sequences": order // k,
            "top_tokens": layer["top_token"].reshape(-1)[order],
            "top_channels": layer["top_channel"].reshape(-1)[order],
            "mean": mean.mean(),
            "median": layer["median"].astype(np.float64).mean(),
            "sequence_mean": mean,
            "sequence_median": layer["median"],
            "sequence_top": layer["top_magnitude"][:, :3],
            "token_max": layer["token_max"],
            "channel_max": layer["channel_max"],
            "channel_ratio": rules.ratio(layer["channel_max"], mean[:, None]).max(axis=0),
            "counts": layer["counts"].sum(axis=0),
            "massive": layer["massive"].sum(),
            "neuron_kurtosis": rules.neuron_rms_kurtosis(power),
            "excess_kurtosis": layer["excess_kurtosis"].astype(np.float64).mean(),
            "severity": severity,
            "nonfinite": layer["nonfinite"].astype(np.int64).sum(),
            "first_nonfinite": np.array([where[0], flat[0] // C, flat[0] % C])
            if len(where)
            else np.full(3, -1),
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    stacked = {name: np.stack(values) for name, values in columns.items()}
    return ActivationStats(**stacked, expert_width=expert_width)


_COLUMNS = """top_values top_signs top_sequences top_tokens top_channels mean median ratio massive
neuron_kurtosis excess_kurtosis severity nonfinite first_nonfinite""".split()


def _columns(stats: ActivationStats) -> dict[str, np.ndarray]:
    return {name: getattr(stats, name) for name in _COLUMNS}


H = Statistic(
    "h",
    taps=("h",),
    reduce=lambda spec, taps: reduce_activations(taps["h"], TOP),
    row=lambda layer: layer.seen["h"],
    join=lambda rows, config: join_activations(rows, TOP),
    columns=_columns,
)
X_DOWN = Statistic(
    "x_down",
    taps=("x_down",),
    reduce=lambda spec, taps: reduce_x_down(spec.mlp, taps, TOP),
    row=lambda layer: layer.seen["x_down"],
    join=lambda rows, config: join_activations(rows, TOP, config.layer(0).mlp.expert_width),
    columns=_columns,
)
