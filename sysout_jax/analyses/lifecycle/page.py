"""The page of `analyze.lifecycle`: figures in the order of a life, and tables with layers counted from 1."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sysout_jax.analyses.lifecycle.explore import explore
from sysout_jax.analyses.lifecycle.figures import FIGURES, lifecycle_figures
from sysout_jax.analyses.lifecycle.figures.followed import followed
from sysout_jax.analyses.lifecycle.results import Channel, Effect, Lifecycle
from sysout_jax.analyses.lifecycle.story import story
from sysout_jax.analyses.lifecycle.summary import verdict
from sysout_jax.analyses.lifecycle.targets import Targets
from sysout_jax.analyses.lifecycle.waves import Write
from sysout_jax.interventions.weights import CONTROLS, EDITS
from sysout_jax.outliers.definitions import (
    ALIVE_SHARE,
    CODE_SHARE,
    MAIN_SHARE,
    MASSIVE_RATIO,
    MASSIVE_VALUE,
    SINK_SHARE,
    TAUS,
    WRITE_SHARE,
    reachable,
)
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.reports.expected import Expectation
from sysout_jax.reports.nonfinite import remarks
from sysout_jax.reports.page import Section, Table
from sysout_jax.reports.report import (
    ATTENTION_ON_THEM,
    counting,
    expert_terms,
    figure_sections,
    write_report,
)
from sysout_jax.words import digits, joined, layer_ranges, listed, number, percent, plural

NAME = "lifecycle"
MAX_HEADS = 20
MAX_WAVES = 12
COUNTING = counting(NAME)


def write_lifecycle_report(
    out: Path,
    report: Lifecycle,
    token_text: TokenText,
    settings: dict[str, Any],
    expectation: Expectation | None = None,
) -> list[Path]:
    """Write the report into `out`; `settings` come from `provenance.run_settings`. Returns the paths of all files."""
    return write_report(
        out,
        NAME,
        f"Lifecycle of systematic outliers: {report.model}",
        headline=verdict(report),
        payload=report.to_dict(),
        sections=lifecycle_sections(report, token_text),
        figures=lifecycle_figures(report, token_text),
        settings=settings,
        expectation=expectation,
    )


def lifecycle_sections(report: Lifecycle, token_text: TokenText) -> list[Section]:
    """Everything between the headline and the settings."""
    tables = {
        "waves": [table for table in (_waves(report, token_text), _wave_spreads(report)) if table],
        "activations": _flags(report),
        "birth": _births(report, token_text),
        "spread": _heads(report),
        "death": _oppositions(report),
        "cause": _causes(report),
    }
    told = story(report, token_text)
    sections = [
        *([Section("In short", tuple(told))] if told else []),
        explore(report, token_text),
        Section("How to read this page", (COUNTING, *_remarks(report))),
    ]
    sections += figure_sections(FIGURES, report, token_text, tables)
    return [*sections, Section("Definitions", (_definitions(report),))]


def _remarks(report: Lifecycle) -> Iterable[str]:
    """What a reader must know before trusting the numbers."""
    yield from remarks(report.nonfinite)
    life = followed(report)
    if life is not None and life.trace is not None:
        yield from _scope(life.trace.targets, report.num_sequences)
    if not report.found:
        what = (
            "nothing was followed"
            if followed(report) is None
            else "birth, spread and death follow the strongest elements instead, for orientation"
        )
        yield f"No outlier at τ = {report.tau:g}: {what}."


def _scope(targets: Targets, num_sequences: int) -> Iterable[str]:
    """What birth and death leave out, where they do."""
    left_out = []
    if len(targets.sequences) < num_sequences:
        left_out.append(
            f"the {len(targets.sequences)} of {num_sequences} sequences with the largest ratios"
        )
    if targets.tokens_left_out:
        left_out.append(f"all but {plural(targets.tokens_left_out, 'weaker outlier token')}")
    if targets.dims_left_out:
        left_out.append(
            f"the {len(targets.dims)} strongest dims (weaker ones: {targets.dims_left_out})"
        )
    if left_out:
        yield f"Birth and death are read from {joined(left_out)}. Flags, waves, attention, cause and perplexity count all."


def _flags(report: Lifecycle) -> Table | str:
    """Elements flagged per layer: h and x_down at every τ, massive activations, W_down."""
    weights = report.stats.weights
    down = weights.modules.index("down")
    header = ["layer"]
    columns = []
    for place in ("h", "x_down"):
        for tau in TAUS:
            header.append(f"{place} τ={tau:g}")
            columns.append(report.flags[place][f"{tau:g}"])
    header.append("massive")
    columns.append(report.flags["h"]["massive"])
    width = weights.down_weight_ratios.shape[1]
    for i, tau in enumerate(TAUS):
        if reachable(tau, width):
            header.append(f"W_down τ={tau:g}")
            columns.append([int(count) for count in weights.counts[:, down, i]])
    rows = tuple(
        (layer + 1, *(int(column[layer]) for column in columns))
        for layer in range(report.num_layers)
    )
    flagged = tuple(row for row in rows if any(row[1:]))
    if not flagged:
        return f"No element is flagged at any of τ = {', '.join(f'{tau:g}' for tau in TAUS)}, and none is a massive activation."
    note = f"Elements flagged, {plural(report.num_sequences, 'sequence')} together."
    if far := [f"{tau:g}" for tau in TAUS if not reachable(tau, width)]:
        note += (
            f" In rows of W_down of {width:,} weights none can exceed {joined(far)} times the mean."
        )
    if left_out := len(rows) - len(flagged):
        note += f" {plural(left_out, 'layer')} without any flag left out."
    return Table(tuple(header), flagged, note)


def _channels(channels: tuple[Channel, ...], most: int = 4) -> str:
    return listed((f"{c.label} ({percent(c.share)})" for c in channels), most) or "–"


def _waves(report: Lifecycle, token_text: TokenText) -> Table | None:
    followed = report.waves
    if not followed.waves:
        return None
    rows = tuple(
        (
            count,
            f"{number(wave.ratio)}{' (over τ)' if wave.above else ''}",
            f"{number(wave.value)} (layer {wave.peak + 1})",
            listed(wave.dims),
            "; ".join(filter(None, ("embedding" * wave.embedded, _written(report, wave.births)))),
            _written(report, wave.deaths) or ("survives" if wave.survives else "fades"),
            _texts(wave.tokens, token_text),
        )
        for count, wave in enumerate(followed.waves[:MAX_WAVES], start=1)
    )
    header = (
        "wave",
        "times the mean",
        "largest h",
        "dims",
        "written in layer (share of its peak): channels",
        "taken back in layer (share of what enters): channels",
        "tokens",
    )
    note = (
        f"Over {number(followed.level)} times the mean, on all {plural(report.num_sequences, 'sequence')}. Shares are of the whole layer, "
        "attention and MLP together, mean over the elements that the layer writes to or takes from."
    )
    if len(followed.waves) > MAX_WAVES:
        note += f" The first {MAX_WAVES} of {len(followed.waves)} waves."
    if followed.dims_left_out:
        note += f" {plural(followed.dims_left_out, 'weaker dim')} not followed."
    return Table(header, rows, note)


def _wave_spreads(report: Lifecycle) -> Table | None:
    """What attention gives the waves' tokens, where a layer follows."""
    rows = []
    for count, wave in enumerate(report.waves.waves[:MAX_WAVES], start=1):
        spread = wave.spread
        if spread is None or spread.strongest is None:
            continue
        at, head = spread.strongest
        sink = spread.sink_at(at, head)
        rows.append(
            (
                count,
                layer_ranges(spread.layers),
                percent(spread.mass.mean()),
                f"{len(spread.heads)} of {spread.mass.size}",
                f"{percent(spread.mass[at, head])} ({percent(spread.even[at], 1)})",
                spread.layers[at] + 1,
                head,
                f"{listed(sink.dims, 8)} ({percent(sink.dims_share)})" if sink else "–",
                number(spread.drain_of(at, head)),
                number(sink.update) if sink else "–",
            )
        )
    if not rows:
        return None
    header = (
        "wave",
        "its tokens enter layers",
        "attention on them, mean of heads",
        "sink heads",
        "most of a head (even share)",
        "layer",
        "head",
        "q/k dims that carry it (their share)",
        "‖v‖ there to others'",
        "‖their part‖ to ‖head output‖",
    )
    note = "Attention on the tokens of a wave that enter a layer alive, whether or not they are over τ; heads of all these layers."
    return Table(header, tuple(rows), note)


def _written(report: Lifecycle, writes: tuple[Write, ...]) -> str:
    def told(write: Write) -> str:
        if write.from_mlp < 0.5:
            by = ": attention"
        elif write.channels:
            label = report.stats.x_down.label
            by = ": " + listed((f"{label(c)} ({percent(share)})" for c, share in write.channels), 3)
        else:
            by = ": MLP"
        return f"{write.layer + 1} ({percent(write.share)}){by}"

    return "; ".join(map(told, writes))


def _texts(tokens: tuple[tuple[int, int], ...], token_text: TokenText) -> str:
    texts = Counter(token_text(*token) for token in tokens).most_common()
    first = sum(position == 0 for _, position in tokens)
    shown = listed((f"“{text}” ×{count}" for text, count in texts), 5)
    return f"{len(tokens):,} ({first} first): {shown}"


def _births(report: Lifecycle, token_text: TokenText) -> Table | None:
    life = followed(report)
    if life is None:
        return None
    rows = []
    for event in life.birth.events:
        values = [f"{d} ({number(v)})" for d, v in zip(event.dims, event.values, strict=True)]
        column = event.channels[0] if event.channels else None
        rows.append(
            (
                event.layer + 1,
                listed(values),
                _channels(event.channels),
                f"{number(column.column_ratio)} (rank {column.column_rank + 1})" if column else "–",
                f"{percent(event.from_mlp)} / {percent(event.from_attention)} / {percent(event.from_before)}",
                _texts(event.tokens, token_text),
            )
        )
    header = (
        "layer",
        "dims d* (mean value)",
        "channels c* (share of h[d*])",
        "extremal ratio of the first column",
        "from MLP / attention / before",
        "tokens",
    )
    return Table(header, tuple(rows), "Layers whose own update makes new elements outliers.")


def _heads(report: Lifecycle) -> Table | None:
    life = followed(report)
    if life is None or not life.spread.heads:
        return None
    heads = sorted(life.spread.heads, key=lambda head: -head.mass)
    rows = tuple(
        (
            h.layer + 1,
            h.head,
            f"{percent(h.mass)} ({percent(h.even, 1)})",
            listed(h.dims, 8),
            percent(h.dims_share),
            f"{number(h.drain)} / {number(h.output_drain)}",
            number(h.update),
            number(h.loudness),
        )
        for h in heads[:MAX_HEADS]
    )
    header = (
        "layer",
        "head",
        "attention on the tokens (even share)",
        "q/k dims that carry it",
        "their share",
        "‖v‖ / ‖v W_O‖ to others'",
        "‖their part‖ to ‖head output‖",
        "‖head output‖ to the layer's heads",
    )
    note = (
        f"Heads after the birth with more than {SINK_SHARE:.0%} of their attention, and more than the even share, on these tokens; "
        f"on {'the sequence' if report.num_sequences == 1 else f'all {report.num_sequences} sequences'}"
    )
    shown_of = f", the {MAX_HEADS} strongest of {len(heads)}" if len(heads) > MAX_HEADS else ""
    return Table(header, rows, f"{note}{shown_of}.")


def _oppositions(report: Lifecycle) -> Table | None:
    life = followed(report)
    if life is None or not life.death.oppositions:
        return None
    rows = tuple(
        (
            o.layer + 1,
            "MLP" if o.part == "mlp" else o.part,
            percent(o.removed),
            listed(o.dims, 6),
            _channels(o.channels),
        )
        for o in life.death.oppositions
    )
    header = ("layer", "part", "takes back", "dims", "channels (share)")
    return Table(header, rows, "Parts that push against the outliers which enter their layer.")


def _causes(report: Lifecycle) -> Table | None:
    causes = report.cause
    if causes is None:
        return None
    rows: list[tuple] = [("none", "the model as it is", 0, *_effect(report, causes.baseline))]
    for name, edit in causes.edits.items():
        count = edit.weights
        rows.append((name, "all writers of the births", count, *_effect(report, edit.effect)))
        for writer, effect in zip(causes.singles, edit.alone, strict=False):
            alone = f"channel {writer.label} of layer {writer.layer + 1} alone"
            rows.append((name, alone, len(writer.dims), *_effect(report, effect)))
        for kind, effect in edit.controls.items():
            rows.append((name, f"control: {kind}", count, *_effect(report, effect)))
    header = (
        "edit",
        "of",
        "weights",
        *(f"over {tau}" for tau in causes.baseline.flags),
        "largest |h| over the mean",
        f"attention on them ({plural(causes.heads, 'sink head')} of the model as it is)",
        "perplexity",
    )
    note = (
        f"“Over” counts tokens whose largest |h| is so many times the mean, summed over the layers from layer {causes.first + 1} on, the first that is edited; so is the largest |h|. Perplexity: {report.protocol.sentence()}."
    )  # fmt: skip
    if len(causes.writers) > len(causes.singles) > 0:
        note += f" The {len(causes.singles)} strongest of {len(causes.writers)} writers are edited alone too."
    return Table(header, tuple(rows), note)


def _effect(report: Lifecycle, effect: Effect) -> tuple:
    return (
        *effect.flags.values(),
        number(effect.ratio),
        percent(effect.mass),
        digits(effect.perplexity, report.length),
    )


def _definitions(report: Lifecycle) -> Table:
    taus = ", ".join(f"{tau:g}" for tau in TAUS)
    rows = (
        ("activation outlier", f"|h| > τ · mean|h| of its sequence, τ = {report.tau:g}; also at τ = {taus}; x_down alike"),
        ("wave", f"elements of h over {number(report.waves.level)} times the mean in some layer, from a write of at least {WRITE_SHARE:.0%} of their largest "
         f"value until |h| falls under {ALIVE_SHARE:.0%} of it; elements that share a layer of birth and a token or a dim are one wave"),
        ("takes back (of a wave)", f"a layer whose attention and MLP together remove at least {WRITE_SHARE:.0%} of what enters it; its share is the mean over the elements of the wave that it takes from, "
         "also those under τ"),
        ("massive activation", f"|h| > {MASSIVE_VALUE:g} and |h| > {MASSIVE_RATIO:g} · median|h| (Sun et al.)"),
        ("weight outlier", "|w| > τ · mean|w| of its row"),
        ("extremal ratio", "max|w| / mean|w| of a column; of a matrix, the largest one"),
        (
            "attention outlier",
            f"column sum of the attention map > τ · mean column sum (paper); head mean of it ≥ {CODE_SHARE:g} · T (published code)",
        ),
        ("attention on outlier tokens", ATTENTION_ON_THEM),
        ("even share", "what attention that is even over all keys a query sees would give these tokens, mean over the same queries"),
        ("sink head", f"a head after the birth with more than {SINK_SHARE:.0%} of its attention on outlier tokens, and more than the even share; of a wave, on its tokens"),
        ("q/k dims that carry it", f"the fewest that make up {MAIN_SHARE:.0%} of what speaks for these tokens: mean over queries of q·k with them minus q·k with the "
         "other keys before the query; their share exceeds 100% where the other dims speak against"),
        ("channel's share", "W_down[d*, c*] · x_down[c*] along the sign of h[d*], over |h[d*]|, both summed over the outlier elements; in the table of waves over what the MLP writes there"),
        ("‖v‖ to others'", "mean length of the values of outlier tokens over that of the other tokens"),
        ("‖v W_O‖ to others'", "the same after the head's output projection, root mean squares"),
        ("‖their part‖ to ‖head output‖", "length of what outlier tokens add to a head's output, which is the weighted sum of values before W_O, over the length of that output, mean over the other queries; lengths, not parts of a whole"),
        ("‖head output‖ to the layer's heads", "mean length of the head's output, before W_O, over its mean over all heads of the layer"),
        ("takes back", "what a part, attention or the MLP alone, adds against h[d*], over the value that enters the layer, both summed over the elements over τ; 100% cancels it"),
        *((f"edit: {name}", rule) for name, rule in EDITS.items()),
        *((f"control: {name}", rule) for name, rule in CONTROLS.items()),
        *expert_terms(report.stats.x_down.expert_width),
    )  # fmt: skip
    return Table(("term", "rule"), rows)
