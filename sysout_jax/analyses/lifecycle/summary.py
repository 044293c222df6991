"""The lifecycle in one terminal screen. Layers are counted from 1 here, as in the paper and on the figures' axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sized
from math import isfinite

import numpy as np

from sysout_jax.analyses.lifecycle.results import Birth, BirthEvent, Effect, Lifecycle, Spread
from sysout_jax.analyses.lifecycle.story import course_of
from sysout_jax.analyses.lifecycle.wave_spread import WaveSpread
from sysout_jax.interventions.weights import CONTROLS
from sysout_jax.outliers.definitions import SINK_SHARE
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.nonfinite import nothing_measured, remarks
from sysout_jax.reports.terminal import ran_over, text_table
from sysout_jax.words import digits, in_layers, named, number, plural, runs

_MOST = 6  # members of a list that are printed


def lifecycle_summary(report: Lifecycle, token_text: TokenText) -> str:
    """Verdict, birth, spread, death and cause, a line or two each."""
    lines = [verdict(report), *remarks(report.nonfinite), *_waves(report, token_text)]
    if report.found:
        lines += [
            *_birth(report, token_text),
            *_spread(report.spread, report.birth),
            *_death(report),
        ]
    else:
        lines += [_largest(report, token_text), _flags(report)]
        if report.candidate is not None:
            lines += _candidate(report.candidate, token_text)
    if report.cause is not None:
        lines += _cause(report)
    return "\n".join(lines)


def verdict(report: Lifecycle) -> str:
    """One sentence: are there outliers, and from where to where."""
    where = ran_over(report.num_sequences, report.length)
    if report.nonfinite.everything:
        return nothing_measured(report.model, where)
    if not report.found:
        return (
            f"{report.model}: no activation outlier at τ = {report.tau:g} in {where}; "
            f"the largest |h| {'that is finite ' if report.nonfinite.h.total else ''}is {report.largest_h.ratio:.4g} times the mean."
        )
    assert report.birth.layer is not None and report.death.last_alive is not None
    alive = np.flatnonzero(report.stats.h.outlier_tokens(report.tau).any(axis=(1, 2)))
    end = "the last layer" if report.death.layer is None else f"layer {report.death.last_alive + 1}"
    when = f"from layer {report.birth.layer + 1} to {end}"
    if len(runs(alive)) > 1:  # taken back, and written again
        when = in_layers(alive)
    return (
        f"{report.model}: activation outliers at τ = {report.tau:g} {when} "
        f"(of {report.num_layers}), up to {report.largest_h.ratio:,.0f} times the mean, in {where}."
    )


def _largest(report: Lifecycle, token_text: TokenText) -> str:
    def told(name, place) -> str:
        return (
            f"{name} {place.ratio:.4g} (layer {place.layer + 1}, token {place.token} "
            f"“{token_text(place.sequence, place.token)}”, channel {place.label})"
        )

    return (
        f"Largest ratios: {told('h', report.largest_h)}; {told('x_down', report.largest_x_down)}."
    )


def _flags(report: Lifecycle) -> str:
    def counted(name: str) -> str:
        return ", ".join(
            f"{sum(counts)} at {tau}"
            for tau, counts in report.flags[name].items()
            if tau != "massive"
        )

    massive = sum(report.flags["h"]["massive"])
    return f"Elements flagged: h {counted('h')}; x_down {counted('x_down')}; massive activations (Sun et al.) in h: {massive}."


def _candidate(candidate: Lifecycle, token_text: TokenText) -> list[str]:
    """What the strongest elements are, without the words birth and death: they are no outliers."""
    event, sinks = candidate.birth.events[0], candidate.spread.heads
    return [
        f"For orientation, the elements over {candidate.tau:.3g} times the mean: first in layer {event.layer + 1}, "
        f"dim{'s' * (len(event.dims) > 1)} {_values(event)}",
        *_origin(event, token_text),
        f"        {plural(len(sinks), 'later head')} give{'s' * (len(sinks) == 1)} their tokens more than {SINK_SHARE:.0%} of {_its(sinks)} attention",
    ]


def _waves(report: Lifecycle, token_text: TokenText) -> list[str]:
    followed = report.waves
    if not followed.waves:
        return []
    lines = [
        f"Waves   {len(followed.waves)} over {number(followed.level)} times the mean, of which {sum(wave.above for wave in followed.waves)} over τ (*)"
        f"{f'; the {_MOST} strongest' if len(followed.waves) > _MOST else ''}:"
    ]
    numbered = sorted(enumerate(followed.waves, start=1), key=lambda counted: -counted[1].ratio)[
        :_MOST
    ]
    # what exceeds τ has its lines below
    told = next((count for count, wave in numbered if not wave.above), None)
    for count, wave in sorted(numbered):
        texts = Counter(token_text(n, t) for n, t in wave.tokens)
        shown = ", ".join(f"“{text}” x{times}" for text, times in texts.most_common(3))
        tokens = f"{plural(len(wave.tokens), 'token')} ({wave.first_tokens} first)"
        lines += [
            f"        {count}: {named('dim', wave.dims, 3)}, {course_of(wave)}; up to {number(wave.ratio)} times{' *' if wave.above else ''}",
            f"           {tokens}: {shown}{_more(list(texts), 3)}",
            *(_wave_spread(wave.spread) if count == told else []),
        ]
    return lines


def _wave_spread(spread: WaveSpread | None) -> list[str]:
    """What attention does with the tokens of a wave, where they are sinks."""
    if spread is None or spread.strongest is None or not spread.heads:
        return []
    at, head = spread.strongest
    lengths = spread.drain_of(at, head)
    values = f", ‖v‖ {lengths:.2f} of others'" if isfinite(lengths) else ""
    return [
        f"           sinks for {len(spread.heads)} of {plural(spread.mass.size, 'head')} {in_layers(spread.layers)}; most: layer "
        f"{spread.layers[at] + 1} head {head}, {_percent(spread.mass[at, head])}{values}"
    ]


def _birth(report: Lifecycle, token_text: TokenText) -> list[str]:
    lines = []
    for event in report.birth.events[:3]:
        lines.append(
            f"Birth   layer {event.layer + 1}: dim{'s' * (len(event.dims) > 1)} {_values(event)}"
        )
        lines += _origin(event, token_text)
    if len(report.birth.events) > 3:
        lines.append(
            f"        and {len(report.birth.events) - 3} more layers that add new outliers"
        )
    return lines


def _values(event: BirthEvent) -> str:
    pairs = list(zip(event.dims, event.values, strict=True))[:_MOST]
    return ", ".join(f"{d} ({v:+.4g})" for d, v in pairs) + _more(event.dims)


def _origin(event: BirthEvent, token_text: TokenText) -> list[str]:
    texts = Counter(token_text(n, t) for n, t in event.tokens)
    first = sum(t == 0 for _, t in event.tokens)
    shown = ", ".join(f"“{text}” x{count}" for text, count in texts.most_common(4))
    channels = ", ".join(
        f"{c.label} ({_percent(c.share)}, extremal ratio {c.column_ratio:,.0f}, rank {c.column_rank + 1})"
        for c in event.channels[:3]
    )
    count = len(event.tokens)
    return [
        f"        at {count} token{'s' * (count > 1)} ({first} first in {'their' if count > 1 else 'its'} sequence): {shown}",
        f"        added by the MLP {_percent(event.from_mlp)}, attention {_percent(event.from_attention)}, before "
        f"{_percent(event.from_before)}; channels {channels}{_more(event.channels, 3)}",
    ]


def _spread(spread: Spread, birth: Birth) -> list[str]:
    if not spread.heads:
        return [f"Spread  no head gives these tokens more than {SINK_SHARE:.0%} of its attention"]
    total = spread.mass[(birth.layer or 0) + 1 :].size
    best = max(spread.heads, key=lambda head: head.mass)
    return [
        f"Spread  {len(spread.heads)} of {total} later heads give{'s' * (len(spread.heads) == 1)} them more than {SINK_SHARE:.0%} of {_its(spread.heads)} attention; "
        f"most: layer {best.layer + 1} head {best.head}, {_percent(best.mass)} "
        f"(even attention: {_percent(best.even, 1)}),",
        f"        carried by q/k dims {', '.join(map(str, best.dims[:_MOST]))}{_more(best.dims)}; "
        f"their values are {best.drain:.2f} of the others' length"
        if isfinite(best.drain)
        else f"        carried by q/k dims {', '.join(map(str, best.dims[:_MOST]))}{_more(best.dims)}",
    ]


def _death(report: Lifecycle) -> list[str]:
    death = report.death
    if death.last_alive is None:
        return []
    if death.layer is None:
        lines = ["Death   none: outliers survive the last layer"]
    else:
        lines = [f"Death   layer {death.layer + 1}: after it nothing is over τ any more"]
    for item in sorted(death.oppositions, key=lambda o: -o.removed)[:2]:
        channels = ", ".join(c.label for c in item.channels[:_MOST])
        carried = (
            f", channel{'s' * (len(item.channels) > 1)} {channels}{_more(item.channels)}"
            if channels
            else ""
        )
        lines.append(
            f"        layer {item.layer + 1} {'MLP' if item.part == 'mlp' else item.part} takes back {_percent(item.removed)}{carried}"
        )
    return lines


def _cause(report: Lifecycle) -> list[str]:
    cause = report.cause
    assert cause is not None

    def perplexity(effect: Effect | None) -> str:
        if effect is None:
            return ""
        bad = f" ({effect.nonfinite:,} elements of h NaN or inf)" if effect.nonfinite else ""
        return digits(effect.perplexity, report.length) + bad

    def row(name: str, effect: Effect, controls: Mapping[str, Effect]) -> tuple[str, ...]:
        flags = "/".join(str(count) for count in effect.flags.values())
        beside = (perplexity(controls.get(kind)) for kind in CONTROLS)
        return name, flags, f"{effect.ratio:,.0f}", _percent(effect.mass), perplexity(effect), *beside  # fmt: skip

    table = text_table(
        ("edit", f"tokens > {'/'.join(cause.baseline.flags)}", "largest |h|", "attention*", "perplexity", *CONTROLS),
        [
            row("none", cause.baseline, {}),
            *(row(name, edit.effect, edit.controls) for name, edit in cause.edits.items()),
        ],
    )  # fmt: skip
    alone = ", ".join(
        f"of channel {writer.label} {perplexity(effect)}"
        for writer, effect in zip(cause.singles, cause.edits["element"].alone, strict=True)
    )
    lines = [
        *table.split("\n"),
        *([f"one element alone, perplexity: {alone}"] if alone else []),
        f"* {_attention_meant(cause.heads)}; tokens (summed over layers) and largest |h| from layer {cause.first + 1} on, the first edited",
        f"{' and '.join(CONTROLS)}: perplexity of controls; {report.protocol.sentence()}",
    ]
    return [
        f"Cause   element: the {plural(cause.edits['element'].weights, 'birth weight')} W_down[d*, c*] zero; half: halved; column, row: the whole "
        "lines zero",
        *(f"        {line}" for line in lines),
    ]


def _its(items: Sized) -> str:
    return "its" if len(items) == 1 else "their"


def _percent(share: float, places: int = 0) -> str:
    return f"{share:.{places}%}".replace("-0%", "0%") if isfinite(share) else "n/a"


def _more(items, most: int = _MOST) -> str:
    return f" and {len(items) - most} more" if len(items) > most else ""


def _attention_meant(heads: int) -> str:
    if not heads:
        return "no sink head whose attention on the outlier tokens could be measured"
    gives = "gives" if heads == 1 else "give"
    return f"the share of attention that {plural(heads, 'sink head')} {gives} the outlier tokens"
