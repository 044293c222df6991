"""Figures of the lifecycle, in the order of reading."""

from __future__ import annotations

from matplotlib.figure import Figure

from sysout_jax.analyses.lifecycle.figures.birth import birth, birth_sentence
from sysout_jax.analyses.lifecycle.figures.cause import cause, cause_sentence
from sysout_jax.analyses.lifecycle.figures.death import (
    death,
    death_sentence,
    end,
    end_sentence,
    has_end,
)
from sysout_jax.analyses.lifecycle.figures.excitation import (
    excitation,
    excitation_sentence,
    has_rows,
)
from sysout_jax.analyses.lifecycle.figures.followed import followed
from sysout_jax.analyses.lifecycle.figures.layers import (
    activations,
    activations_sentence,
    attention,
    attention_sentence,
    weights,
    weights_sentence,
)
from sysout_jax.analyses.lifecycle.figures.spread import spread, spread_sentence
from sysout_jax.analyses.lifecycle.figures.waves import has_waves, waves, waves_sentence
from sysout_jax.analyses.lifecycle.figures.where import where, where_sentence
from sysout_jax.analyses.lifecycle.results import Lifecycle
from sysout_jax.figures.spec import FigureSpec, draw_figures
from sysout_jax.outliers.tokens import TokenText


def _has_trace(report: Lifecycle) -> bool:
    return followed(report) is not None


def _has_cause(report: Lifecycle) -> bool:
    return report.cause is not None


#: Every figure of the lifecycle, in the order of reading.
FIGURES: dict[str, FigureSpec[Lifecycle]] = {
    "where": FigureSpec(where, "Where outliers live", where_sentence),
    "waves": FigureSpec(waves, "Waves: every life of large elements", waves_sentence, has_waves),
    "activations": FigureSpec(activations, "Activations per layer", activations_sentence),
    "weights": FigureSpec(weights, "Weights per layer and matrix", weights_sentence),
    "attention": FigureSpec(attention, "Attention per layer and head", attention_sentence),
    "birth": FigureSpec(birth, "Birth", birth_sentence, _has_trace),
    "excitation": FigureSpec(
        excitation, "Birth, what excites the channel", excitation_sentence, has_rows
    ),
    "spread": FigureSpec(spread, "Spread", spread_sentence, _has_trace),
    "death": FigureSpec(death, "Death", death_sentence, _has_trace),
    "end": FigureSpec(end, "Death, one MLP", end_sentence, has_end),
    "cause": FigureSpec(cause, "Cause", cause_sentence, _has_cause),
}


def lifecycle_figures(report: Lifecycle, token_text: TokenText) -> dict[str, Figure]:
    """All figures that apply to the report, by name; `token_text` gives the text of (sequence, position)."""
    return draw_figures(FIGURES, report, token_text)
