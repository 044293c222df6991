"""How edits of writers and their controls look, wherever they are drawn."""

from __future__ import annotations

from sysout_jax.figures import style

#: Colour and marker of each of `EDITS`.
EDIT_LOOKS = {
    "element": (style.ORANGE, "o"),
    "half": (style.YELLOW, "v"),
    "column": (style.BLUE, "s"),
    "row": (style.PINK, "D"),
}
#: Marker of each of `CONTROLS`.
CONTROL_LOOKS = {"random": "+", "equal norm": "x"}
