"""Numbers and lists as a reader should see them. Layers are counted from 0 in arguments, from 1 in text."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np


def runs(layers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last layer of every unbroken run."""
    spans: list[tuple[int, int]] = []
    for layer in sorted(int(l) for l in layers):
        if spans and layer == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], layer)
        else:
            spans.append((layer, layer))
    return spans


def layer_ranges(layers: Iterable[int]) -> str:
    """Layers in words: `2–4, 9`, counted from 1."""
    return ", ".join(
        f"{first + 1}" if first == last else f"{first + 1}–{last + 1}"
        for first, last in runs(layers)
    )


def in_layers(layers: Iterable[int]) -> str:
    """`in layers 2–4` or `in layer 2`."""
    layers = list(layers)
    return f"in layer{'s' * (len(layers) > 1)} {layer_ranges(layers)}"


def listed(items: Iterable, most: int = 4) -> str:
    """`1, 2, 3 and 5 more`."""
    items = list(items)
    shown = ", ".join(str(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def joined(items: list[str]) -> str:
    """`a, b and c`; nothing for no item."""
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def plural(count: int, noun: str) -> str:
    """`1 head`, `2 heads`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def named(noun: str, items: Iterable, most: int = 4) -> str:
    """`dim 507`, `dims 3, 8 and 2 more`."""
    items = list(items)
    return f"{noun}{'' if len(items) == 1 else 's'} {listed(items, most)}"


def number(value: float | None) -> str:
    """Three significant digits and no needless exponent; `n/a` for NaN, `∞` for inf."""
    if value is None or np.isnan(value):
        return "n/a"
    if np.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-4:
        text = f"{value:.2e}"
    elif size >= 100:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−")


def digits(value: float, length: int = 2) -> str:
    """Five significant digits, for what is compared closely: perplexity, over windows of `length` tokens. `n/a (NaN)` where it
    was measured and is NaN, `n/a` where one token predicts nothing."""
    if np.isnan(value):
        return "n/a (NaN)" if length > 1 else "n/a"
    return f"{value:,.5g}" if np.isfinite(value) and value < 1e5 else number(value)


def nats(loss: float) -> str:
    """A loss with three digits behind the point."""
    return f"{loss:.3f}" if np.isfinite(loss) else "n/a (NaN)"


def percent(share: float | None, places: int = 0) -> str:
    """A share as `12%`, with `places` digits behind the point; even shares, which are small, have one everywhere."""
    if share is None or not np.isfinite(share):
        return "n/a"
    text = f"{100 * share:.{places}f}"
    return f"{text if float(text) else text.lstrip('-')}%".replace("-", "−")


def change(ratio: float) -> str:
    """A ratio as `+0.2%`, or as `×12` where it is large."""
    if not np.isfinite(ratio):
        return number(ratio)
    text = f"×{number(ratio)}" if ratio >= 10 else f"{100 * (ratio - 1):+.2f}%"
    return text.replace("-0.00", "+0.00").replace("-", "−")
