"""The lifecycle for a reader who has never heard of outliers: what, where to, how it ends, and why it matters; each term explained where it first appears."""

from __future__ import annotations

from sysout_jax.analyses.lifecycle.results import BirthEvent, Lifecycle
from sysout_jax.analyses.lifecycle.waves import Wave
from sysout_jax.outliers.definitions import SINK_SHARE
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.words import (
    digits,
    in_layers,
    joined,
    layer_ranges,
    listed,
    named,
    number,
    percent,
    plural,
)

DEPENDS = 1.05  # times the perplexity from which on a model is said to depend on its outliers
_COUNTS = {1: "One", 2: "Two", 3: "Three"}
_STREAM = (
    "Each layer of a language model adds to a list of numbers that it keeps for every token (the residual stream h; a number's place "
    "in the list is a dim)."
)

_MATTERS = (
    "Why it matters: a number format of few bits that has to reach an outlier is left with few steps for all other numbers. "
    "python -m analyze.compression measures what that costs this model."
)


def story(report: Lifecycle, token_text: TokenText) -> list[str]:
    """Paragraphs; nothing where nothing could be measured."""
    if report.nonfinite.everything or not report.largest_h.ratio > 0:
        return []
    if not report.found or not report.birth.events:
        return [f"{_STREAM} {_without(report, token_text)}"]
    event = max(report.birth.events, key=lambda birth: max(map(abs, birth.values)))
    paragraphs = (
        [
            _STREAM,
            _birth(report, event, token_text),
            *_writers(event),
            *_other_births(report, event),
        ],
        _spread(report),
        [_death(report), *_waves(report)],
        [*_cause(report), _MATTERS],
    )
    return [" ".join(sentences) for sentences in paragraphs if sentences]


def _without(report: Lifecycle, token_text: TokenText) -> str:
    top = report.largest_h
    return (
        f"A systematic outlier is such a number over τ = {report.tau:g} times the mean size; this model has none on this text. Its largest "
        f"number is {number(top.value)}, {number(top.ratio)} times the mean, in layer {top.layer + 1}, at token "
        f"“{token_text(top.sequence, top.token)}”, dim {top.label}."
    )


def _birth(report: Lifecycle, event: BirthEvent, token_text: TokenText) -> str:
    alone = len(event.dims) == 1
    largest = max(event.values, key=abs)
    first = sum(position == 0 for _, position in event.tokens)
    texts = list(dict.fromkeys(token_text(*token) for token in event.tokens))
    if first == len(event.tokens):
        where = "the first token"
    else:
        where = "the token" + "s" * (len(texts) > 1) + " " + listed((f"“{t}”" for t in texts), 4)
    mean = " on average" if len(event.tokens) > 1 else ""
    subject = (
        f"One number, dim {event.dims[0]}, of {where} jumps"
        if alone
        else f"{_COUNTS.get(len(event.dims), len(event.dims))} numbers, {named('dim', event.dims)}, of {where} jump"
    )
    return (
        f"{subject} to {'' if alone else 'as much as '}{number(largest)}{mean} in layer {event.layer + 1}, up to {number(report.largest_h.ratio)} times the mean size "
        f"of all numbers there: a systematic outlier, which is a number over τ = {report.tau:g} times that mean."
    )


def _writers(event: BirthEvent) -> list[str]:
    if not event.channels or event.from_mlp < event.from_attention:
        return []
    what = "It is" if len(event.dims) == 1 else "They are"
    names = joined([f"{c.label} ({percent(c.share)})" for c in event.channels[:4]])
    more = len(event.channels) - 4
    also = f" and {more} more" if more > 0 else ""
    count = len(event.channels)
    channels = f"{_COUNTS.get(count, str(count)).lower()} channel{'s' * (count > 1)}"
    return [
        f"{what} written by {channels} of that layer's MLP (a channel is one of its hidden units; its column of weights in "
        f"W_down says where it writes): {names}{also}."
    ]


def _other_births(report: Lifecycle, event: BirthEvent) -> list[str]:
    others = [each.layer for each in report.birth.events if each is not event]
    if not others:
        return []
    return [f"Weaker outliers are born {in_layers(others)}."]


def _spread(report: Lifecycle) -> list[str]:
    count = len(report.spread.heads)
    if not count:
        return []
    several = len(report.birth.events) > 1
    when = f"After layer {report.birth.events[0].layer + 1}" if several else "Later"
    whose = "the tokens of outliers" if several else "the outlier's tokens"
    strongest = max(report.spread.heads, key=lambda head: head.mass)
    return [
        f"{when}, {plural(count, 'attention head')} {'looks' if count == 1 else 'look'} at {whose} with over {SINK_SHARE:.0%} of "
        f"{'its' if count == 1 else 'their'} attention (the tokens are attention sinks), head {strongest.head} of layer "
        f"{strongest.layer + 1} with {percent(strongest.mass)}, where even attention would give {percent(strongest.even, 1)}; what such a token gives back, its value, has "
        f"{percent(strongest.drain)} of the length of the others' there."
    ]


def _death(report: Lifecycle) -> str:
    death = report.death
    if death.layer is None:
        return "The outlier lives to the last layer."
    by = [o for o in death.oppositions if o.part == "mlp" and o.channels]
    who = ""
    if by:
        strongest = max(by, key=lambda o: o.removed)
        who = f"; the MLP of layer {strongest.layer + 1} takes back {percent(strongest.removed)} of what enters there"
    return f"After layer {death.layer + 1} nothing is over τ any more{who}."


def _cause(report: Lifecycle) -> list[str]:
    if report.cause is None:
        return []
    cause = report.cause
    element, column = (cause.edits[name] for name in ("element", "column"))
    ratios = [e.effect.perplexity / cause.baseline.perplexity for e in (element, column)]
    needs = [not ratio < DEPENDS for ratio in ratios]
    if all(needs):
        depends = "The model depends on it"
    elif any(needs):
        depends = "Whether the model depends on it is a question of the edit"
    else:
        depends = "The model hardly needs it"
    before, zeroed, columns = (
        digits(effect.perplexity, report.length)
        for effect in (cause.baseline, element.effect, column.effect)
    )
    rest = (
        " So the model is worse off where these channels lose the outlier alone than where they write nothing at all."
        if element.effect.perplexity > DEPENDS * column.effect.perplexity
        else ""
    )
    channels, layers = len(cause.writers), {writer.layer for writer in cause.writers}
    of, what = "of the writers", "these channels write" if channels > 1 else "this channel writes"
    if len(layers) > 1:  # of births that are not told here, too
        of, what = f"of all writers {in_layers(layers)}", f"these {channels} channels write"
    return [
        f"{depends}: with {plural(element.weights, 'weight')} {of} set to zero, perplexity (how much the text surprises the model, "
        f"lower is better) goes from {before} to {zeroed}, and the largest number that is left from layer {cause.first + 1} on is {number(element.effect.ratio)} times the mean; with "
        f"all that {what} set to zero, to {columns} and {number(column.effect.ratio)}.{rest}"
    ]


def _waves(report: Lifecycle) -> list[str]:
    others = [wave for wave in report.waves.waves if not wave.above]
    if not others:
        return []
    strongest = max(others, key=lambda wave: wave.ratio)
    what = "life" if len(others) == 1 else "lives"
    return [
        f"Under τ there {'is' if len(others) == 1 else 'are'} {len(others)} more such {what} (waves), the strongest up to {number(strongest.ratio)} "
        f"times the mean, {course_of(strongest)}."
    ]


def course_of(wave: Wave) -> str:
    """`written in layers 2–3 and taken back in layers 10–11`; `in part taken back` where it is alive in the last layer."""
    embedding = ["by the embedding"] if wave.embedded else []
    written = (
        f"written {joined([*embedding, *([f'in {_layers(wave.born)}'] if wave.born else [])])}"
    )
    if wave.ended:
        part = "in part " if wave.survives else ""
        return joined([written, f"{part}taken back in {_layers(wave.ended)}"])
    return joined(
        [
            written,
            "alive in the last layer" if wave.survives else f"fades after layer {wave.last + 1}",
        ]
    )


def _layers(layers: tuple[int, ...]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {layer_ranges(layers)}"
