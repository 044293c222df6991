"""What a reader can move on a page: the text as coloured tokens, a picker of heads, and curves that tell their values.

Everything is in the page itself: curves are SVG, which tell values without scripts; the data of the tokens are JSON that `script.py` reads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sysout_jax.reports.escaping import escaped_text
from sysout_jax.words import number, plural

MOST_NUMBERS = 150_000  # of one measure, about half a megabyte
MOST_TOKENS = 512  # of one sequence: more cannot be looked through


@dataclass(frozen=True)
class Measure:
    """A number of every token in every layer, (L, N, T); `unit` stands behind it. NaN and inf are shown as n/a."""

    name: str
    values: np.ndarray
    unit: str = ""


@dataclass(frozen=True)
class Heads:
    """Attention that keys receive in every head: `share` (L, H) on `what`, and `received` (L, H, T), the mean over sequences."""

    what: str
    share: np.ndarray
    received: np.ndarray
    unit: str = ""


@dataclass(frozen=True)
class TokenView:
    """N sequences of T tokens, as texts, coloured by one of `measures` in a layer that the reader chooses; `start` is the first, from 0."""

    texts: Sequence[Sequence[str]]
    measures: tuple[Measure, ...]
    heads: Heads | None = None
    start: int = 0

    def html(self) -> str:
        """The controls, which the script fills, and the data; without scripts a remark in their place."""
        L, N, T = self.measures[0].values.shape
        tokens = min(T, MOST_TOKENS, max(16, MOST_NUMBERS // L))
        sequences = max(1, min(N, MOST_NUMBERS // (L * tokens)))
        data: dict[str, Any] = {
            "texts": [list(map(_valid, row[:tokens])) for row in self.texts[:sequences]],
            "start": self.start,
            "measures": [
                {"name": m.name, "unit": m.unit}
                | _packed(m.values[:, :sequences, :tokens])
                for m in self.measures
            ],
        }  # fmt: skip
        note = ""
        if (sequences, tokens) != (N, T):
            note = f"Shown: {sequences:,} of {plural(N, 'sequence')}, {tokens:,} of their {plural(T, 'token')} each. "
        if self.heads is not None:
            H = self.heads.share.shape[1]
            of_heads = min(tokens, max(16, MOST_NUMBERS // (L * H)))
            data["heads"] = {
                "what": self.heads.what,
                "unit": self.heads.unit,
                "share": _rounded(self.heads.share),
            } | _packed(self.heads.received[:, :, :of_heads])
            if of_heads < tokens:
                note += f"Single heads are shown for the first {of_heads:,} tokens. "
        return (
            '<div class="tokens" hidden="hidden">\n'
            f'<script type="application/json">{_json(data)}</script>\n'
            + ('<svg class="heads"></svg>\n' if self.heads else "")
            + "</div>\n"
            '<noscript><p class="note">Here the text can be looked through token by token, where scripts may run. '
            "The figures of this page show the same.</p></noscript>"
            + (f'\n<p class="note">{escaped_text(note.strip())}</p>' if note else "")
        )


@dataclass(frozen=True)
class Curves:
    """Lines over layers: what each is called and its (L,) values. Hovering a point tells them, also without scripts."""

    title: str
    lines: tuple[tuple[str, np.ndarray], ...]
    linear: bool = False

    def html(self) -> str:
        """An SVG picture; its y axis is logarithmic where values differ by more than 20 times, unless `linear`."""
        lines = [(name, np.asarray(values, float)) for name, values in self.lines]
        everything = np.concatenate([values for _, values in lines])
        log = not self.linear and _is_log(everything)
        good = everything[np.isfinite(everything) & (everything > 0 if log else True)]
        if not len(good):
            return ""
        low, high = (good.min(), good.max()) if log else (min(0.0, good.min()), good.max())
        scale = _Scale(low, high if high > low else low + 1.0, log)
        L = len(lines[0][1])
        step = (_WIDTH - _LEFT - _RIGHT) / max(L - 1, 1)

        def x(layer: int) -> float:
            return round(_LEFT + step * layer, 1)

        parts = []
        for value in scale.ticks():
            y = scale.y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')  # fmt: skip
            parts.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{number(value)}</text>')  # fmt: skip
        every = max(1, -(-L // 16))
        for layer in range(0, L, every):
            parts.append(f'<text x="{x(layer)}" y="{_HEIGHT - 18}" text-anchor="middle">{layer + 1}</text>')  # fmt: skip
        parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 3}" text-anchor="middle">layer</text>')
        place = float(_LEFT)
        for i, (name, values) in enumerate(lines):
            shown = np.isfinite(values) & ((values > 0) | (not log))
            points = [(x(l), scale.y(v)) for l, v in enumerate(values) if shown[l]]
            parts.append(f'<polyline class="line{i}" points="{" ".join(f"{a},{b}" for a, b in points)}"/>')  # fmt: skip
            parts.append(f'<line class="line{i}" x1="{place}" x2="{place + 22}" y1="10" y2="10"/>')
            parts.append(f'<text x="{place + 27}" y="14">{escaped_text(name)}</text>')
            place += 50 + 7.2 * len(name)
        for layer in range(L):
            told = "\n".join(f"{name}: {number(float(values[layer]))}" for name, values in lines)
            parts.append(
                f'<g><title>layer {layer + 1}\n{escaped_text(told)}</title>'
                f'<rect class="hover" x="{round(x(layer) - step / 2, 1)}" y="{_TOP}" width="{round(step, 1)}" height="{_HEIGHT - _TOP - _BOTTOM}"/>'
                + "".join(
                    f'<circle class="line{i}" cx="{x(layer)}" cy="{scale.y(values[layer])}" r="3"/>'
                    for i, (_, values) in enumerate(lines)
                    if np.isfinite(values[layer]) and (values[layer] > 0 or not log)
                )
                + "</g>"
            )  # fmt: skip
        title = escaped_text(self.title)
        return (
            f'<figure class="curves"><figcaption><b>{title}</b></figcaption>\n'
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg></figure>'
        )


_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 260, 64, 12, 24, 36


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    log: bool

    def y(self, value: float) -> float:
        low, high, value = (np.log([self.low, self.high, value]) if self.log else (self.low, self.high, value))  # fmt: skip
        share = (value - low) / (high - low)
        return round(float(_HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)), 1)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(int(np.ceil(np.log10(self.low))), int(np.floor(np.log10(self.high))) + 1)
            return [float(10.0**p) for p in powers][:: max(1, len(powers) // 6)]
        step = 10.0 ** np.floor(np.log10(self.high - self.low))
        step *= next(f for f in (0.2, 0.5, 1, 2) if (self.high - self.low) / (step * f) <= 6)
        first, last = np.ceil(self.low / step), np.floor(self.high / step)
        return [float(k * step) for k in np.arange(first, last + 1)]


def _is_log(values: np.ndarray) -> bool:
    positive = values[np.isfinite(values) & (values > 0)]
    return bool(len(positive) and positive.max() > 20 * positive.min())


def _packed(values_LxAxT: np.ndarray) -> dict[str, Any]:
    """Values in three digits, and the ends of the scale that they are coloured on; 0 as its lower end makes it linear."""
    finite = values_LxAxT[np.isfinite(values_LxAxT)]
    positive = finite[finite > 0]
    high = float(positive.max()) if len(positive) else 1.0
    # a few small values must not make all others look alike
    low = float(np.quantile(positive, 0.05)) if _is_log(values_LxAxT) else 0.0
    return {"low": low, "high": high, "values": _rounded(values_LxAxT)}


def _rounded(values: np.ndarray) -> Any:
    """Nested lists of numbers with three significant digits; null for what is not finite."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [_three_digits(value) for value in values.tolist()]


def _three_digits(value: float) -> float | None:
    if not np.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short  # 12, not 12.0: these are many


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _json(data: Any) -> str:
    """Compact, and with nothing in it that could end a script or an XML element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
