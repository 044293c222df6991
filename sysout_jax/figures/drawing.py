"""One figure to its files. Run as a script it is a worker that does so for figures that it is sent; see `saving.py`.

Nothing of this package is imported, so that a worker is there as soon as matplotlib is.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import matplotlib
import matplotlib.backends.backend_pdf
from fontTools import subset
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: How a font shapes text: much of it, and of no use in a PDF, where every glyph has its place.
_SHAPING = ("GSUB", "GPOS", "GDEF", "kern", "MATH")


def draw(figure: Figure, stem: Path, settings: dict[Any, Any], dpi: float) -> None:
    """Write `stem`.png and `stem`.pdf under matplotlib's `settings`.

    The layout is computed once: left to itself matplotlib computes it twice for each file, which takes as long as drawing.
    """
    with matplotlib.rc_context(settings):
        figure.dpi = dpi
        engine = figure.get_layout_engine()
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
            _keep_labels(figure)
        png = stem.with_name(f"{stem.name}.png")
        figure.savefig(png, dpi=dpi, pil_kwargs={"compress_level": 4})  # twice as fast, no larger
        with _without_shaping():
            figure.savefig(stem.with_name(f"{stem.name}.pdf"), dpi=dpi)
        figure.set_layout_engine(engine)


def _keep_labels(figure: Figure) -> None:
    """Leave the labels of axes where they are: looking for their places anew goes through all ticks, again for each file."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        locator = axes.get_axes_locator()
        axes.apply_aspect(locator(axes, renderer) if locator is not None else None)
        for axis in (axes.xaxis, axes.yaxis):
            if axis.label.get_text():
                axis.get_tightbbox(
                    renderer
                )  # the layout has moved the axes since it placed the label
                place = axis.label.get_transform().transform(axis.label.get_position())
                axis.set_label_coords(*axes.transAxes.inverted().transform(place))


@contextlib.contextmanager
def _without_shaping() -> Iterator[None]:
    """Within, fonts that are cut down to the glyphs of a PDF lose their shaping tables first, not after they were cut down too."""
    load_font = subset.load_font

    def load(*args, **kwargs):
        font = load_font(*args, **kwargs)
        for tag in _SHAPING:
            if tag in font:
                del font[tag]
        return font

    subset.load_font = load
    try:
        yield
    finally:
        subset.load_font = load_font


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Draw what `requests` holds, pickled arguments of `draw`, and answer a byte to each, until it ends."""
    while True:
        try:
            arguments = pickle.load(requests)
        except EOFError:
            return
        draw(*arguments)
        answers.write(b".")
        answers.flush()


if __name__ == "__main__":
    serve(sys.stdin.buffer, sys.stdout.buffer)
