"""What a plan leaves open is drawn: dims, channels, heads, and the shares they take."""

from __future__ import annotations

import numpy as np

from sysout_jax.families.llama import LlamaConfig
from sysout_jax.models.layers import rotary_frequencies
from sysout_jax.testing.truth import Birth, BirthTruth, SinkTruth, Wanted

MAX_TURN = 0.2  # radians that a planted q/k dim may turn over the whole context

Rng = np.random.Generator


def draw(rng: Rng, wanted: Wanted, pool: int | list[int] | np.ndarray) -> tuple[int, ...]:
    """`wanted` as given, or that many of `pool` (an array, or the size of a range), ascending."""
    if isinstance(wanted, int):
        return tuple(int(i) for i in np.sort(rng.choice(pool, wanted, replace=False)))
    return tuple(wanted)


def draw_shares(rng: Rng, count: int) -> tuple[float, ...]:
    """Shares that sum to 1 and differ, none below 0.8 of an equal one."""
    extra = rng.dirichlet(np.ones(count))
    return tuple(float(share) for share in 0.8 / count + 0.2 * extra)


def draw_births(
    rng: Rng, config: LlamaConfig, births: tuple[Birth, ...], death: int | None
) -> tuple[BirthTruth, ...]:
    layers = [birth.layer for birth in births]
    end = config.num_layers if death is None else death
    if layers != sorted(set(layers)) or any(not 0 <= layer < end for layer in layers):
        raise ValueError(
            f"birth layers {layers} must ascend from 0 and stay below {end}, "
            f"{'the number of layers' if death is None else 'the death layer'}"
        )
    if death is not None and not (births and death < config.num_layers):
        raise ValueError(
            f"death layer {death} needs a birth before it and must lie below {config.num_layers}"
        )
    taken = [d for birth in births if not isinstance(birth.dims, int) for d in birth.dims]
    if len(set(taken)) < len(taken):
        raise ValueError(f"birth dims {taken} must not repeat")
    drawn = []
    for birth in births:
        dims = draw(rng, birth.dims, np.setdiff1d(np.arange(config.d_model), taken))
        taken.extend(dims)
        channels = draw(rng, birth.channels, config.d_ff)
        signs = tuple(int(s) for s in rng.choice([-1, 1], len(dims)))
        drawn.append(
            BirthTruth(birth.layer, dims, signs, channels, draw_shares(rng, len(channels)))
        )
    return tuple(drawn)


def draw_sinks(
    rng: Rng,
    config: LlamaConfig,
    births: tuple[BirthTruth, ...],
    sinks: tuple[tuple[int, int], ...] | int,
    qk_dims: Wanted | None,
    death: int | None,
) -> tuple[SinkTruth, ...]:
    first = births[0].layer + 1 if births else config.num_layers
    last = config.num_layers - 1 if death is None else death
    heads = [(layer, h) for layer in range(first, last + 1) for h in range(config.num_heads)]
    if isinstance(sinks, int):
        sinks = tuple(heads[i] for i in draw(rng, min(sinks, len(heads)), len(heads)))
    if any(sink not in heads for sink in sinks):
        raise ValueError(
            f"sinks {sinks} must be (layer, head) in layers {first} to {last}, heads below {config.num_heads}"
        )
    slow = slow_dims(config)
    drawn = []
    for layer, head in sorted(sinks):
        wanted = int(rng.integers(1, 3)) if qk_dims is None else qk_dims
        dims = draw(rng, wanted, slow)
        if not set(dims) <= set(slow):
            raise ValueError(f"q/k dims {dims} turn too far within the context; choose from {slow}")
        drawn.append(SinkTruth(layer, head, dims, draw_shares(rng, len(dims))))
    return tuple(drawn)


def slow_dims(config: LlamaConfig) -> list[int]:
    turn = rotary_frequencies(config.head_dim, config.rope_theta, None) * config.context_length
    slow = np.flatnonzero(turn < MAX_TURN)
    return [int(i) for i in slow] + [int(i) + config.head_dim // 2 for i in slow]
