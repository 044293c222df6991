"""Fonts cut down to the glyphs of a PDF, quickly.

matplotlib reads the whole font anew for each figure and each of its faces, and throws most of it away again: this took half of
the time of writing a report's figures. Here each face is read once and only the glyphs that are asked for are taken from it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterable, Iterator

import matplotlib
from fontTools.ttLib import TTFont, newTable
from matplotlib.backends import _backend_pdf_ps

#: What a PDF's reader needs besides the outlines, which are in `glyf`: measures, and the programs that hint.
_TABLES = ("head", "hhea", "maxp", "cvt ", "fpgm", "prep")


def known() -> bool:
    """Whether this release of matplotlib asks for its fonts as the releases do that were tried."""
    return matplotlib.__version__.startswith("3.11.")


@contextlib.contextmanager
def cut_quickly() -> Iterator[None]:
    """Within, matplotlib's PDFs get their fonts from here. Other releases than those tried do it by themselves, as ever."""
    if not known():
        yield
        return
    theirs = _backend_pdf_ps.get_glyphs_subset

    def subset(fontfile, glyphs):
        whole = _whole(str(fontfile), fontfile.face_index)
        if "glyf" not in whole:
            return theirs(fontfile, glyphs)
        return _backend_pdf_ps.SubsetResults(*_cut(whole, glyphs))._as_cm()

    _backend_pdf_ps.get_glyphs_subset = subset
    try:
        yield
    finally:
        _backend_pdf_ps.get_glyphs_subset = theirs


@functools.lru_cache(8)
def _whole(path: str, face: int) -> TTFont:
    return TTFont(path, fontNumber=face, recalcBBoxes=False, recalcTimestamp=False)


def _cut(whole: TTFont, glyphs: Iterable[int]) -> tuple[TTFont, dict[int, int]]:
    """A font of `glyphs`, of what they are composed of and of the sign for missing ones, and where each of `glyphs` is in it."""
    outlines, names = whole["glyf"], whole.getGlyphOrder()
    kept, waiting = {names[0]}, {names[0], *(names[i] for i in glyphs)}
    while waiting:
        kept |= waiting
        waiting = {p for name in waiting for p in outlines[name].getComponentNames(outlines)} - kept
    order = sorted(kept, key=whole.getGlyphID)
    font = TTFont(recalcBBoxes=False, recalcTimestamp=False)
    font.setGlyphOrder(order)
    for tag in _TABLES:
        if tag in whole:
            font[tag] = copy.copy(whole[tag])
    font["loca"], font["glyf"], font["hmtx"] = newTable("loca"), newTable("glyf"), newTable("hmtx")
    font["glyf"].glyphs = {name: outlines.glyphs[name] for name in order}
    font["glyf"].glyphOrder = order
    font["hmtx"].metrics = {name: whole["hmtx"][name] for name in order}
    return font, {i: font.getGlyphID(names[i]) for i in glyphs}
