"""`so.lifecycle`: where outliers are born, how they spread into attention, where they die, and what causes them.

No index is written by hand: `collect` finds the outliers, `trace` follows them, the rules below read both; `spreading` looks at each wave. Layers, tokens,
channels and dims are 0-based everywhere in the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sysout_jax.analyses.lifecycle.cause import find_cause
from sysout_jax.analyses.lifecycle.results import (
    Birth,
    BirthEvent,
    Channel,
    Death,
    Largest,
    Lifecycle,
    Opposition,
    Spread,
)
from sysout_jax.analyses.lifecycle.sinks import TREATED, SinkHead, sink_heads
from sysout_jax.analyses.lifecycle.targets import choose_targets
from sysout_jax.analyses.lifecycle.trace import Trace, trace
from sysout_jax.analyses.lifecycle.wave_spread import spreading
from sysout_jax.analyses.lifecycle.waves import waves_of, writes_to_follow
from sysout_jax.calls import check_arguments
from sysout_jax.data.text import Windows
from sysout_jax.engine import Observer, Stream
from sysout_jax.interventions.effects import Unedited
from sysout_jax.language_model import LanguageModel
from sysout_jax.nonfinite import finite_or
from sysout_jax.outliers import definitions as rules
from sysout_jax.outliers.definitions import TAU, TAUS
from sysout_jax.perplexity import protocol_of
from sysout_jax.statistics.collect import Stats, at_hand

BIRTH_SHARE = (
    0.5  # a later layer gives birth when its own update makes up this share of the new outliers
)
OPPOSING_SHARE = 0.1  # a layer opposes when it removes this share of the outliers that enter it
MAX_LISTED = 32  # members listed of a set that may be large


def lifecycle(
    lm: LanguageModel,
    tokens,
    tau: float = TAU,
    *,
    stats: Stats | None = None,
    cause: bool = True,
    seed: int = 0,
) -> Lifecycle:
    """Birth, spread, death and cause of the outliers of a model on `tokens` (N, T), at threshold τ.

    `stats` are those of `collect` on the same tokens when they are at hand. `cause=False` saves the passes of its edits. `seed` draws the
    control weights. Raises InputError for bad tokens.
    """
    check_arguments(lm, tau=tau, seed=seed)
    stats = at_hand(stats, lm, tokens, tau, same_tau=True)
    protocol = protocol_of(Windows.of(tokens))
    has_outliers = bool(stats.h.outlier_tokens(tau).any())
    level = tau if has_outliers else rules.level_of(float(stats.h.ratio.max()), tau)
    writes = writes_to_follow(lm.config, stats.h, tau)
    followed, unedited = None, None
    if 0 < level < np.inf:
        stream = Stream(lm, stats.tokens)
        others: list[Observer] = [] if writes.nothing else [writes]
        if has_outliers and cause:
            unedited = _unedited(stream, stats, tau)
            others.append(unedited)
        followed = follow(stream, stats, level, others)
    waves = waves_of(writes, tau, spreading(lm, stats.tokens))

    def report(at: float, trace: Trace | None, candidate: Lifecycle | None = None) -> Lifecycle:
        birth = find_birth(stats, trace, at)
        return Lifecycle(
            model=lm.name,
            tau=float(at),
            found=trace is not None,
            num_layers=lm.num_layers,
            num_sequences=stats.tokens.shape[0],
            length=stats.tokens.shape[1],
            largest_h=_largest(stats.h),
            largest_x_down=_largest(stats.x_down),
            flags={name: _flags(getattr(stats, name)) for name in ("h", "x_down")},
            waves=waves,
            birth=birth,
            spread=find_spread(stats, trace, birth),
            death=find_death(stats, trace, birth, at),
            cause=find_cause(lm, stats, birth, at, unedited, seed) if unedited else None,
            candidate=candidate,
            protocol=protocol,
            stats=stats,
            trace=trace,
        )

    if has_outliers or followed is None:
        return report(tau, followed)
    return report(tau, None, candidate=report(level, followed))


def _unedited(stream: Stream, stats: Stats, tau: float) -> Unedited:
    """Edits start from the first layer that holds outliers: what lies before it they do not change."""
    living = np.asarray(stats.h.outlier_tokens(tau))
    start = int(living.any(axis=(1, 2)).argmax())
    return Unedited(stream, rules.entering(living), tau, [start])


def follow(stream: Stream, stats: Stats, tau: float, others: Sequence[Observer] = ()) -> Trace:
    """Choose what to follow from the statistics, and trace it; `others` as `trace` takes them."""
    birth_layer = int(stats.h.outlier_tokens(tau).any(axis=(1, 2)).argmax())
    return trace(stream, choose_targets(stats.h, tau), birth_layer, others)


def outlier_elements(stats: Stats, trace: Trace, tau: float) -> tuple[np.ndarray, np.ndarray]:
    """(L, E, M, P) bool: followed elements that are outliers before and after each layer."""
    mean = stats.h.sequence_mean[:, trace.targets.sequences][:, :, None, None]
    after = rules.exceeds(np.abs(trace.h), mean, tau) & trace.targets.valid[None, :, :, None]
    before = np.concatenate([np.zeros_like(after[:1]), after[:-1]])
    return before, after


def find_birth(stats: Stats, trace: Trace | None, tau: float) -> Birth:
    """Layers whose own update makes new elements outliers; always the first layer with outliers."""
    if trace is None:
        return Birth(None, ())
    before, after = outlier_elements(stats, trace, tau)
    tokens = stats.h.outlier_tokens(tau)
    events: list[BirthEvent] = []
    for layer in range(len(trace.h)):
        new = after[layer] & ~before[layer]
        if not new.any():
            continue
        value = trace.h[layer][new]
        parts = {
            name: _share(getattr(trace, name)[layer][new], value)
            for name in ("down", "attn_out", "x_in")
        }
        if events and parts["down"] + parts["attn_out"] < BIRTH_SHARE:
            continue  # the mean around old values moved, nothing was born
        dims = np.flatnonzero(new.any(axis=(0, 1)))
        channels = _carriers(
            stats, trace, layer, new, np.sign(trace.h[layer]), np.abs(trace.h[layer])
        )
        older = tokens[layer - 1] if layer else np.zeros_like(tokens[0])
        fresh = tokens[layer] & ~older if (tokens[layer] & ~older).any() else tokens[layer]
        events.append(
            BirthEvent(
                layer=layer,
                dims=tuple(int(trace.targets.dims[d]) for d in dims),
                values=tuple(float(trace.h[layer][..., d][new[..., d]].mean()) for d in dims),
                tokens=tuple((int(n), int(t)) for n, t in np.argwhere(fresh)),
                channels=channels,
                explained=sum(channel.share for channel in channels),
                from_mlp=parts["down"],
                from_attention=parts["attn_out"],
                from_before=parts["x_in"],
            )
        )
    return Birth(events[0].layer if events else None, tuple(events))


def find_spread(stats: Stats, trace: Trace | None, birth: Birth) -> Spread:
    """Heads after the birth for which outlier tokens are sinks, and what carries the logit."""
    shape = stats.attention.cumulative.shape[:2]
    heads: tuple[SinkHead, ...] = ()
    if trace is not None and birth.layer is not None:
        start = birth.layer + 1
        treated = {name: getattr(trace, name)[start:] for name in TREATED}
        heads = sink_heads(range(start, len(trace.mass)), treated)
    empty = np.zeros(shape)
    return Spread(
        heads=heads,
        mass=trace.mass if trace else empty,
        even=trace.even if trace else empty[:, 0],
        drain=trace.drain if trace else empty[:, :0],
        output_drain=trace.output_drain if trace else empty,
        update=trace.update if trace else empty,
        loudness=trace.loudness if trace else empty,
        overlap=stats.attention.overlap,
        overlap_code=stats.attention.overlap_code,
        iou=stats.attention.iou,
        iou_code=stats.attention.iou_code,
    )


def find_death(stats: Stats, trace: Trace | None, birth: Birth, tau: float) -> Death:
    """The layer after which no outlier is left, and the parts that oppose the outliers on the way there."""
    if trace is None or birth.layer is None:
        return Death(None, None, ())
    alive = np.flatnonzero(stats.h.outlier_tokens(tau).any(axis=(1, 2)))
    last = int(alive[-1])
    before, _ = outlier_elements(stats, trace, tau)
    oppositions = []
    for layer in range(birth.layer + 1, len(trace.h)):
        entering = before[layer]
        if not entering.any():
            continue
        value = trace.x_in[layer]
        for part, added in (("attention", trace.attn_out[layer]), ("mlp", trace.down[layer])):
            # per dim, so that a dim that is pushed back is seen beside one that is not
            pushed = [
                _share(added[..., d][entering[..., d]], value[..., d][entering[..., d]])
                for d in range(value.shape[-1])
            ]
            dims = np.flatnonzero(np.array(pushed) < -OPPOSING_SHARE)
            if not len(dims):
                continue
            chosen = entering & np.isin(np.arange(value.shape[-1]), dims)
            oppositions.append(
                Opposition(
                    layer=layer,
                    part=part,
                    removed=-_share(added[chosen], value[chosen]),
                    dims=tuple(int(trace.targets.dims[d]) for d in dims),
                    channels=_carriers(stats, trace, layer, chosen, -np.sign(value), np.abs(value))
                    if part == "mlp"
                    else (),
                )
            )
    return Death(last + 1 if last + 1 < len(trace.h) else None, last, tuple(oppositions))


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """What share of `whole` a part makes up, along its sign, over all elements in which both are finite."""
    both = np.isfinite(part) & np.isfinite(whole)
    part, whole = part[both], whole[both]
    total = np.abs(whole).sum()
    return float((part * np.sign(whole)).sum() / total) if total > 0 else 0.0


def _carriers(
    stats: Stats, trace: Trace, layer: int, elements: np.ndarray, sign: np.ndarray, size: np.ndarray
) -> tuple[Channel, ...]:
    """Channels that add most in the direction `sign` to the chosen elements (E, M, P), as shares of the sum of `size`."""
    channels = trace.channels[layer]
    e, m, p = np.nonzero(elements)
    along = channels.added[e, m, p] * sign[e, m, p][:, None]
    # of their sum: a channel of a weak element may write many times what is left of it, against another channel
    shares = finite_or(along).sum(axis=0) / (finite_or(size[e, m, p]).sum() or 1.0)
    ratios = stats.weights.down_column_ratios[layer]
    ranks = np.empty(len(ratios), int)
    ranks[np.argsort(-ratios, kind="stable")] = np.arange(len(ratios))

    at = np.nonzero(elements.any(axis=-1))

    def mean_at_tokens(x_ExMxC, index: int) -> float:
        values = x_ExMxC[*at, index]
        values = values[np.isfinite(values)]
        return float(values.mean()) if len(values) else float("nan")

    return tuple(
        Channel(
            index=int(channels.indices[i]),
            label=stats.x_down.label(channels.indices[i]),
            share=float(shares[i]),
            x_down=mean_at_tokens(channels.x_down, i),
            gate=mean_at_tokens(channels.gate, i) if channels.gate is not None else None,
            up=mean_at_tokens(channels.up, i),
            column_ratio=float(ratios[channels.indices[i]]),
            column_rank=int(ranks[channels.indices[i]]),
        )
        for i in rules.main_part(shares)[:MAX_LISTED]
    )


def _largest(place) -> Largest:
    layer = int(np.argmax(place.ratio))
    # the largest ratio need not be the largest value: sequences have different means
    ratio = rules.ratio(place.token_max[layer], place.sequence_mean[layer][:, None])
    sequence, token = (int(i) for i in np.unravel_index(np.argmax(ratio), ratio.shape))
    return Largest(
        ratio=float(place.ratio[layer]),
        value=float(place.token_max[layer, sequence, token]),
        layer=layer,
        sequence=sequence,
        token=token,
        channel=int(np.argmax(place.channel_ratio[layer])),
        label=place.label(int(np.argmax(place.channel_ratio[layer]))),
    )


def _flags(place) -> dict[str, list[int]]:
    flags = {f"{tau:g}": [int(c) for c in place.counts[:, i]] for i, tau in enumerate(TAUS)}
    return flags | {"massive": [int(c) for c in place.massive]}
