"""Text from outside on a page."""

from __future__ import annotations

import html
import re

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


def escaped_text(text: str) -> str:
    """Escaped; characters that no page may hold (control characters, halves of surrogate pairs) are replaced."""
    valid = text.encode("utf-8", "replace").decode("utf-8")
    return html.escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", valid))
