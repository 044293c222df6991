"""How waves spread: what attention gives the tokens of each, and what they give back, in the layers that they enter alive."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.analyses.lifecycle.sinks import (
    TREATED,
    SinkHead,
    attention_sums,
    sink_heads,
    summed,
)
from sysout_jax.attention import AttentionSpec
from sysout_jax.engine import Observe, Stream
from sysout_jax.language_model import LanguageModel

#: (sequence, token)
Place = tuple[int, int]
#: Of a wave: the tokens that enter each of L layers alive.
Entering = Sequence[Collection[Place]]


@dataclass(frozen=True)
class WaveSpread:
    """In the S layers that a token of the wave enters alive; 0-based, ascending."""

    layers: tuple[int, ...]
    tokens: np.ndarray  # (S,) int: of the wave that enter the layer
    mass: np.ndarray  # (S, H) attention on them, mean over queries that can see one; a share but with sigmoid attention and softpick
    even: np.ndarray  # (S,) what attention that is even over the keys a query sees would give them, mean over the same queries
    drain: np.ndarray  # (S, K) mean ‖v‖ of them over that of the other tokens of their sequences
    heads: tuple[SinkHead, ...]  # for which they are sinks

    @property
    def strongest(self) -> tuple[int, int] | None:
        """Place in `layers` and head with the most attention on them; None where no layer follows, or nothing is finite."""
        if not np.isfinite(self.mass).any():
            return None
        at, head = np.unravel_index(np.nanargmax(self.mass), self.mass.shape)
        return int(at), int(head)

    def sink_at(self, at: int, head: int) -> SinkHead | None:
        """Of `heads` the one in the layer at that place; None where the tokens are no sinks for it."""
        place = self.layers[at], head
        return next((sink for sink in self.heads if (sink.layer, sink.head) == place), None)

    def drain_of(self, at: int, head: int) -> float:
        """Of the values that a query head reads, in the layer at that place."""
        return float(self.drain[at, head * self.drain.shape[1] // self.mass.shape[1]])


#: Of every wave.
Spreading = Callable[[Sequence[Entering]], list[WaveSpread]]


def spreading(lm: LanguageModel, tokens: np.ndarray) -> Spreading:
    """By a pass over the sequences (N, T) of the waves, which all waves share."""

    def spread(waves: Sequence[Entering]) -> list[WaveSpread]:
        observer = _AttentionOnWaves(lm, tokens.shape, waves)
        if not observer.nothing:
            Stream(lm, tokens).run([observer])
        return observer.spreads()

    return spread


class _AttentionOnWaves:
    """The `Observer` of that pass."""

    def __init__(self, lm: LanguageModel, shape: tuple[int, ...], waves: Sequence[Entering]):
        N, T = shape
        self._lm, self._waves = lm, waves
        # of each layer: the waves that enter it, one for each place on the device
        self._entering = [
            [w for w, entering in enumerate(waves) if entering[layer]]
            for layer in range(lm.num_layers)
        ]
        most = max(map(len, self._entering))
        # few shapes, hence few compilations, and no more sums than are wanted: they hold Dh² numbers for each wave, head and sequence
        self._masks = np.zeros((lm.num_layers, N, 1 << max(most - 1, 0).bit_length(), T), bool)
        for layer, entering in enumerate(self._entering):
            for at, w in enumerate(entering):
                for sequence, token in waves[w][layer]:
                    self._masks[layer, sequence, at, token] = True
        self._treated: list[dict[int, dict[str, np.ndarray]]] = [{} for _ in waves]  # by layer

    @property
    def nothing(self) -> bool:
        """Whether no wave enters a layer; a pass would be in vain."""
        return not any(self._entering)

    def observe(self, layer: int) -> Observe:
        return _Sums(self._lm.attention(layer, self._masks.shape[-1]))

    def extra(self, layer: int) -> Any:
        return self._masks[layer]

    def take(self, layer: int, params: dict, seen: dict[str, np.ndarray]) -> None:
        kernel = np.asarray(self._lm.config.layer(layer).matrix("o").of(params))
        for at, w in enumerate(self._entering[layer]):
            holds_N = np.asarray(self._masks[layer, :, at].any(axis=1))
            of_wave = {name: sums[:, at] for name, sums in seen.items()}
            self._treated[w][layer] = summed(of_wave, holds_N, kernel)

    def spreads(self) -> list[WaveSpread]:
        return [self._spread(*of_wave) for of_wave in zip(self._waves, self._treated, strict=True)]

    def _spread(self, entering: Entering, treated: dict[int, dict[str, np.ndarray]]) -> WaveSpread:
        layers = tuple(treated)
        if not layers:
            spec = self._lm.config.layer(0).heads
            none = np.zeros((0, spec.heads)), np.zeros(0), np.zeros((0, spec.kv_heads))
            return WaveSpread((), np.zeros(0, int), *none, ())
        stacked = {name: np.stack([treated[layer][name] for layer in layers]) for name in TREATED}
        return WaveSpread(
            layers=layers,
            tokens=np.array([len(entering[layer]) for layer in layers]),
            **{name: stacked[name] for name in ("mass", "even", "drain")},
            heads=sink_heads(layers, stacked),
        )


@dataclass(frozen=True)
class _Sums:
    """The `Observe` of that pass: `attention_sums` of each wave, (B, W, …); zeros where a place is empty or a sequence holds none of its tokens, at no cost."""

    spec: AttentionSpec

    def __call__(self, x_in, taps, masks_BxWxT):
        def sums(mask_BxT):
            return attention_sums(taps, mask_BxT, self.spec)

        def of_wave(mask_BxT):
            empty = jax.tree.map(
                lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(sums, mask_BxT)
            )
            return jax.lax.cond(mask_BxT.any(), sums, lambda _: empty, mask_BxT)

        of_waves = jax.lax.map(of_wave, masks_BxWxT.swapaxes(0, 1))
        return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), of_waves)
