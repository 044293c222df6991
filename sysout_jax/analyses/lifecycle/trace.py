"""A second, narrow pass: follow known outlier tokens and feature dims through every layer, part by part.

`collect` finds where outliers are; this pass records, at those places only, what attention and MLP add to the residual stream,
which channels do it, and how attention treats the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from sysout_jax.analyses.lifecycle.channels import LayerChannels, channels_of
from sysout_jax.analyses.lifecycle.close_up import HeadCloseUp, close_up_of, window_of
from sysout_jax.analyses.lifecycle.excitation import ChannelRows, compared, rows_of
from sysout_jax.analyses.lifecycle.sinks import SUMMED, attention_sums, summed
from sysout_jax.analyses.lifecycle.targets import MAX_DIMS, Targets
from sysout_jax.attention import AttentionSpec
from sysout_jax.engine import Observe, Observer, Stream
from sysout_jax.nonfinite import Nonfinite, finite_or


@dataclass(frozen=True)
class Trace:
    """The followed elements through all L layers, and attention on outlier tokens in all N sequences; what is not finite is NaN."""

    targets: Targets
    x_in: np.ndarray  # (L, E, M, P) residual stream before the layer
    attn_out: np.ndarray  # (L, E, M, P) added by attention
    down: np.ndarray  # (L, E, M, P) added by the MLP
    h: np.ndarray  # (L, E, M, P) residual stream after the layer
    channels: tuple[LayerChannels, ...]  # one per layer
    rows: ChannelRows  # of the birth layer
    mass: np.ndarray  # (L, H) attention on outlier tokens, mean over queries that can see one; a share but with sigmoid attention and softpick
    even: np.ndarray  # (L,) what attention that is even over the keys a query sees would give them, mean over the same queries
    drain: np.ndarray  # (L, K) mean ‖v‖ of outlier tokens over that of the others
    #: (L, H) root mean square of ‖v W_O‖ of outlier tokens over that of the others
    output_drain: np.ndarray
    #: (L, H) ‖c Σ over outlier tokens of A v‖ / ‖output of the head‖, other queries; c is `attn_scale`, or 1; with gate_elements a mean, so that
    #: this is no more than near
    update: np.ndarray
    #: (L, H) mean ‖output of the head‖ over its mean over the heads of the layer, other queries
    loudness: np.ndarray
    #: (L, H, Dh) part of each dim in the mean logit to outlier tokens minus that to the others, among the keys a query sees
    qk: np.ndarray
    close_up: HeadCloseUp  # the head with the largest mass among layers from the first outlier on
    nonfinite: Nonfinite


def trace(
    stream: Stream, targets: Targets, birth_layer: int, others: Sequence[Observer] = ()
) -> Trace:
    """Follow `targets` through a stream at its start; `birth_layer` is the first one whose output holds them. `others` share the pass."""
    tracing = _Tracing(stream, targets, birth_layer)
    stream.run([tracing, *others])
    return tracing.finish()


class _Tracing:
    """The `Observer` of `trace`."""

    def __init__(self, stream: Stream, targets: Targets, birth_layer: int):
        lm = stream.lm
        self._stream, self._targets, self._birth_layer = stream, targets, birth_layer
        # whose attention can see outliers
        self._first_layer = min(birth_layer + 1, lm.num_layers - 1)
        P, N = len(targets.dims), len(stream.tokens)
        # one shape, hence one compilation, for any P
        dims = np.resize(targets.dims, max(P, MAX_DIMS)).astype(np.int32)
        places = np.zeros((N, targets.tokens.shape[1]), np.int32)
        places[targets.sequences] = targets.tokens
        self._extra = {
            "tokens": places,
            "dims": np.broadcast_to(dims, (N, len(dims))),
            "window": np.full(N, targets.window, np.int32),
        }
        self._specs = [lm.attention(l, stream.tokens.shape[1]) for l in range(lm.num_layers)]
        self._layers: list[dict[str, np.ndarray]] = []
        self._channels: list[LayerChannels] = []
        self._rows: ChannelRows | None = None
        #: attention on outlier tokens, layer, head and what was seen there, of the head that is drawn
        self._close_up: tuple[float, int, int, dict[str, np.ndarray]] | None = None

    def observe(self, layer: int) -> Observe:
        return _Follow(self._specs[layer])

    def extra(self, layer: int) -> Any:
        return self._extra | {"mask": self._targets.mask[layer]}

    def take(self, layer: int, params: dict, seen: dict[str, np.ndarray]) -> None:
        targets, P = self._targets, len(self._targets.dims)
        layer_spec = self._stream.lm.config.layer(layer)
        kernels = {matrix.name: matrix.of(params) for matrix in layer_spec.matrices}
        attention = summed(seen, targets.mask[layer].any(axis=1), np.asarray(kernels["o"]))
        chosen = targets.sequences
        seen = {
            name: value[chosen] if name == "expert" else finite_or(value[chosen], np.nan)
            for name, value in seen.items()
            if name not in SUMMED
        }
        if "down_gain" in seen:
            seen["down_gain"] = seen["down_gain"][..., :P]
        self._layers.append(
            {name: seen[name][..., :P] for name in ("x_in", "attn_out", "down", "h")} | attention
        )
        self._channels.append(channels_of(np.asarray(kernels["down"]), targets, seen))
        if layer == self._birth_layer:
            self._rows = rows_of(layer, kernels, self._channels[-1], targets, seen)
        mass_H = finite_or(attention["mass"], -1.0)
        best = self._close_up
        if best is None or (
            layer >= self._first_layer and (best[0] < mass_H.max() or best[1] < self._first_layer)
        ):
            self._close_up = (float(mass_H.max()), layer, int(mass_H.argmax()), seen)

    def finish(self) -> Trace:
        assert self._close_up is not None and self._rows is not None
        _, layer, head, seen = self._close_up
        self._stream.nll()  # looks for NaN and inf in the likelihoods
        return Trace(
            targets=self._targets,
            channels=tuple(self._channels),
            rows=self._rows,
            close_up=close_up_of(layer, head, seen, self._targets.window, self._specs[layer]),
            nonfinite=self._stream.nonfinite(),
            **{
                name: np.stack([recorded[name] for recorded in self._layers])
                for name in self._layers[0]
            },
        )


@dataclass(frozen=True)
class _Follow:
    """The `Observe` of `trace`."""

    spec: AttentionSpec

    def __call__(self, x_in, taps, extra):
        def rows(x_BxTxC):  # of the followed tokens
            index = extra["tokens"].reshape(*extra["tokens"].shape, *[1] * (x_BxTxC.ndim - 2))
            return jnp.take_along_axis(x_BxTxC, index, axis=1)

        def at(x_BxTxC):
            return rows(x_BxTxC).astype(jnp.float32)

        def at_dims(x_BxTxD):
            return jnp.take_along_axis(at(x_BxTxD), extra["dims"][:, None, :], axis=2)

        followed = ("attn_out", "down", "h", "down_gain")
        recorded = {name: at_dims(taps[name]) for name in followed if name in taps}
        recorded |= {
            name: at(taps[name])
            for name in ("x_down", "up", "gate", "mlp_in", "expert_weight")
            if name in taps
        }
        if "expert" in taps:
            recorded["expert"] = rows(taps["expert"])
        recorded["x_in"] = at_dims(x_in)
        # only the birth layer's are used; a program of its own takes seconds to compile, the copies of the others milliseconds
        recorded["elsewhere"] = taps["mlp_in"][:, compared(x_in.shape[1])].astype(jnp.float32)
        return (
            recorded
            | attention_sums(taps, extra["mask"], self.spec)
            | window_of(taps, extra["window"])
        )
