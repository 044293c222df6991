"""Several trained models in one figure: their order, names and looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from sysout_jax.analyses.variants.measure import VariantProfile
from sysout_jax.figures import style
from sysout_jax.outliers.tokens import TokenText
from sysout_jax.training.record import Record

#: Colour, line style and marker of the first, second … model.
LOOKS: Any = (
    (style.BLACK, "-", "o"),
    (style.ORANGE, "--", "s"),
    (style.BLUE, "-.", "^"),
    (style.GREEN, ":", "D"),
    (style.PINK, (0, (5, 1, 1, 1, 1, 1)), "v"),
    (style.SKY, (0, (1, 1)), "x"),
)


@dataclass(frozen=True)
class SideBySide:
    """Models in the order given, under the names that figures call them by, and each one's token texts."""

    profiles: tuple[VariantProfile, ...]
    names: tuple[str, ...]
    texts: tuple[TokenText, ...]

    @property
    def recorded(self) -> list[tuple[int, str, Record]]:
        """Place, name and training record of the models that have one."""
        rows = zip(self.names, self.profiles, strict=True)
        return [(i, name, p.record) for i, (name, p) in enumerate(rows) if p.record is not None]


def look(i: int) -> dict[str, Any]:
    """How the i-th model's lines are drawn."""
    colour, line, marker = LOOKS[i % len(LOOKS)]
    return {"color": colour, "ls": line, "marker": marker}


def grid(figure: Figure, count: int, **more) -> list:
    """`count` panels, two in a row."""
    columns = min(count, 2)
    panels = figure.subplots(-(-count // columns), columns, squeeze=False, **more).ravel()
    for unused in panels[count:]:
        unused.set_visible(False)
    return list(panels[:count])
