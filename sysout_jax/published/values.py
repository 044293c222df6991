"""Published numbers about known models, as data: what `--expect NAME` holds a report against. Layers are 0-based here.

Quantities are named as `measured.py` names what a report measures; numbers that no report measures yet stand here all the
same, and their verdict is "not measured".
"""

from __future__ import annotations

import difflib

from sysout_jax.errors import InputError
from sysout_jax.published.expected import Expected

PAPER = "An et al. 2025 (arXiv 2502.06415)"
FIGURE = f"{PAPER}, read off a figure"
EYE = f"{PAPER}, by eye off a figure"
#: Of 100 samples of 2,048 tokens; the table does not name the model, its section speaks of this one.
TABLE_1 = f"{PAPER}, Table 1"
#: Collected from several places; a row does not say which of them.
PLACES = "public code, result files or figures about this model"
SUPER = "Yu et al. 2024, super weights (arXiv 2411.07191)"
#: Figures of other texts and settings, hence told and not asserted.
ROWS = "independent public census of W_down rows"
SINKS = "Gu et al. 2024, attention sinks (arXiv 2410.10781): ε 0.3, T 64"
MASSIVE = "Sun et al. 2024, massive activations (arXiv 2402.17762)"
#: About 2.85, and 600,000 steps of 491,520 tokens in about 4 days.
OPENWEBTEXT = "nanoGPT's public README"


def _places(
    birth: int,
    dims: tuple[int, ...],
    channel: int | None,
    positions: tuple[int, ...],
    texts: tuple[str, ...] = (),
    optional: tuple[int, ...] = (),
) -> tuple[Expected, ...]:
    """A row of the table of birth places; `texts` are outlier tokens that are not the first of their sequence."""
    rows = [Expected("birth layer, from 0", "equal", birth, PLACES)]
    if dims:
        rows.append(Expected("h dims", "members", dims, PLACES, optional=optional))
    if channel is not None:
        rows.append(Expected("x_down channels of the birth", "includes", (channel,), PLACES))
    if positions:
        rule = "includes" if texts else "members"
        rows.append(Expected("positions of outlier tokens", rule, positions, PLACES))
    if texts:
        rows.append(Expected("outlier tokens beyond the first position", "members", texts, PLACES))
    return tuple(rows)


def _super(*weights: tuple[int, int, int]) -> tuple[Expected, ...]:
    """(layer, row, column) of W_down."""
    return tuple(
        Expected(quantity, "includes", weights, SUPER)
        for quantity in (
            "birth weights (layer from 0, row, column)",
            "strongest writers (layer from 0, row, column)",
        )
    )


def _super_row(layer: int, row: int) -> tuple[Expected, ...]:
    """The row of W_down whose zeroing is said to hurt most."""
    quantity = "row that raises the loss most (layer from 0, row)"
    return (Expected(quantity, "equal", (layer, row), ROWS),)


def _sink_rate(percent: float) -> tuple[Expected, ...]:
    return (Expected("sink rate at T 64 (%)", "about", percent, SINKS),)


_LLAMA_2_7B = (
    *_places(1, (1415, 2533), 7890, (0,), (".",)),
    *_super((1, 2533, 7890)),
    Expected("three largest |h|", "about", (2380.0, 1400.0, 770.0), EYE, tuple(range(1, 30))),
    Expected("largest |x_down|", "about", 1460.0, EYE, (1,)),
    Expected("largest |x_down|", "about", 1060.0, EYE, (30,)),
    Expected("largest |x_down|", "below", 50.0, EYE, (0, *range(2, 30), 31)),
    Expected(
        "channels of the largest |x_down|", "includes", (3721, 7006), f"{PAPER}, Figure 9", (30,)
    ),
    Expected("extremal ratio of W_down", "about", 1170.0, EYE, (1,)),
    Expected("extremal ratio of W_down", "about", 565.0, EYE, (30,)),
    Expected("extremal ratio of W_down", "about", 585.0, EYE, (31,)),
    Expected("extremal ratio of W_down", "below", 200.0, EYE, (0, *range(2, 30))),
    Expected("extremal ratio of the other matrices", "below", 200.0, EYE, tuple(range(32))),
    Expected("outlier tokens that are first (%)", "about", 50.0, FIGURE),
    Expected("outlier tokens that are “.” (%)", "about", 40.5, FIGURE),
    Expected("outlier tokens that are “_” (%)", "about", 9.5, FIGURE),
    Expected("attention on outlier tokens", "about", 0.01, EYE, (0,)),
    Expected("attention on outlier tokens", "about", 0.87, EYE, (2,)),
    Expected("attention on outlier tokens, least of a head", "about", 0.70, EYE, (2,)),
    Expected("attention on outlier tokens, most of a head", "about", 0.91, EYE, (2,)),
    # "in the middle": the middle third of the layers
    Expected("attention on outlier tokens", "about", 0.55, EYE, tuple(range(11, 21))),
    Expected("attention on outlier tokens", "about", 0.43, EYE, (31,)),
    Expected("perplexity", "about", 5.47, MASSIVE, tolerance=0.01),
    Expected("perplexity, outliers to the mean", "about", 5.47, MASSIVE, tolerance=0.01),
    # "explodes"
    Expected("perplexity ratio, outliers to zero", "above", 10.0, MASSIVE),
    Expected("consistency W_down, x_down by feature (%)", "about", 100.0, TABLE_1),
    Expected("consistency W_down, h by feature (%)", "about", 100.0, TABLE_1),
    Expected("consistency x_down, h by sequence (%)", "about", 100.0, TABLE_1),
    Expected("consistency h, attention by sequence (%)", "about", 95.0, TABLE_1),
    *_sink_rate(92.5),
)

_GPT2_MAXIMA = (99, 616, 2480, 2656, 2800, 2896, 2960, 2992, 3008, 3024)


def _no_outlier() -> tuple[Expected, ...]:
    return (Expected("outliers in h", "equal", False, EYE),)


def _table_3(full: float, absmax: float, pruned: float, parameters: float) -> tuple[Expected, ...]:
    source = f"{PAPER}, Table 3"
    return (
        Expected("perplexity on WikiText-2", "about", full, source),
        Expected("perplexity on WikiText-2, AbsMax W8", "about", absmax, source),
        Expected("perplexity on WikiText-2, 50 % pruned", "about", pruned, source),
        Expected("parameters (millions)", "about", parameters, source, tolerance=1e-4),
    )


PUBLISHED: dict[str, tuple[Expected, ...]] = {
    "llama-2-7b": _LLAMA_2_7B,
    "llama-2-13b": (*_places(3, (2100, 4743), 8811, (0,)), *_sink_rate(91.7)),
    "llama-3-8b": (
        *_places(1, (788, 1384, 4062), 2427, (0,)),
        *_super((1, 788, 2427), (1, 1384, 2427), (1, 4062, 2427)),
        *_sink_rate(99.0),
    ),
    "mistral-7b": (
        *_places(1, (2070,), 7310, (), (".", "\\n"), optional=(3398,)),
        *_super((1, 2070, 7310)),
        *_sink_rate(97.5),
    ),
    "mixtral-8x7b": _places(1, (2070, 3398), None, (), (".", "\\n")),
    "opt-6.7b": _places(0, (2394,), 16351, (0,)),
    "mpt-7b": _places(3, (), 903, (0,)),
    "falcon-7b": _places(3, (350, 2002, 2242, 3080, 3775), 1135, (0,)),
    "phi-2": _places(1, (743, 293), 617, (1,), (".",)),
    "gpt2": (
        *_places(2, (447,), None, (0,)),
        *(
            Expected("largest |h| of all sequences", "about", float(value), PLACES, (layer,))
            for layer, value in enumerate(_GPT2_MAXIMA)
        ),
        Expected("tokens with an outlier in h", "below", 1, PLACES, (10, 11)),
    ),
    "llama-3.2-1b": _places(1, (400, 698, 1159, 2029), 1417, (0,)),
    "llama-7b": _super((2, 3968, 7003)),
    "olmo-1b": _super((1, 1764, 1710), (1, 1764, 8041)),
    "phi-3-mini": _super((2, 525, 808), (2, 1693, 808), (2, 1113, 808)),
    "gpt2-xl": _sink_rate(77.0),
    "olmo-7b-0724": _super_row(1, 269),
    "smollm2-135m": (
        *_super_row(11, 507),
        Expected("loss with row 507 of layer 11 (from 0) zeroed (%)", "about", 313.0, ROWS),
    ),
    "smollm2-360m": _super_row(3, 87),
    "smollm2-1.7b": _super_row(7, 227),
    "qwen2.5-0.5b": _super_row(21, 62),
    "qwen2.5-1.5b": _super_row(26, 408),
    "qwen2.5-3b": _super_row(30, 318),
    "qwen2.5-7b": _super_row(26, 458),
    # trained variants, named as their configs
    "gpt2_default": (
        Expected("largest |h|", "about", 1000.0, EYE),
        Expected("positions of outlier tokens", "members", (0,), EYE),
        *_table_3(27.24, 93.44, 7235.68, 123.59),
        Expected("validation loss", "between", (2.85, 2.9), OPENWEBTEXT),
        Expected("million tokens per second on 8 A100", "about", 0.87, OPENWEBTEXT),
    ),
    "gpt2_fixed_bias": (Expected("largest |h|", "about", 500.0, EYE),),
    "gpt2_context_bias": (Expected("largest |h|", "between", (600.0, 700.0), EYE),),
    "gpt2_attention_bias": _no_outlier(),
    "gpt2_context_scale": (*_no_outlier(), *_table_3(26.95, 29.22, 39.47, 123.70)),
    "gpt2_sigmoid": _no_outlier(),
}
#: The tables say that these behave like their base models.
ALIASES = {
    "llama-2-7b-chat": "llama-2-7b",
    "llama-2-13b-chat": "llama-2-13b",
    "mistral-7b-instruct": "mistral-7b",
}


def published(name: str) -> tuple[Expected, ...]:
    """The expectations of a model; InputError names the nearest one and all of them."""
    known = [*PUBLISHED, *ALIASES]
    key = name.lower()
    if key in known:
        return PUBLISHED[ALIASES.get(key, key)]
    near = difflib.get_close_matches(key, known, 1, 0.0)
    raise InputError(
        f"{name}: has no published values here; did you mean {near[0]}? Known are {', '.join(known)}"
    )
