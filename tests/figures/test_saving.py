"""A figure is laid out and drawn once, and its picture and its PDF show the same."""

from __future__ import annotations

import io
import re
import zlib

import matplotlib
import numpy as np
import pytest
from matplotlib.backends import _backend_pdf_ps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontPath, findfont
from matplotlib.ft2font import FT2Font, LoadFlags
from PIL import Image

from sysout_jax.figures import fonts
from sysout_jax.figures.saving import save_figures
from sysout_jax.figures.style import DPI, STYLE, new_figure, styled


@styled
def drawn():
    figure = new_figure(4)
    left, right = figure.subplots(1, 2)
    image = left.imshow([[1e5, 0]], aspect="auto")
    figure.colorbar(image, ax=left, location="top").set_label("on top")
    right.set_ylabel("beside, τ × é")
    right.plot([1e6, 2], marker="o")
    right.scatter([0, 0.5, 1], [1e5, 2e5, 3e5], s=[10, 20, 40])
    right.bar([0.5], [5e5], 0.2, hatch="//", edgecolor="black")
    right.set_xticks([0, 1], ["long and turned"] * 2, rotation=90)
    right.set_xlabel("below")
    return figure


def plain():
    """Axes from 72 to 216 points across and from 36 to 108 up, and their figure."""
    figure = Figure((4, 2))
    return figure.add_axes((0.25, 0.25, 0.5, 0.5)), figure


def streams(pdf):
    """What the streams of a PDF hold, unpacked."""
    packed = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL)
    return [zlib.decompressobj().decompress(data) for data in packed if data[:1] == b"x"]


def test_an_error_of_a_figure_is_raised(tmp_path):
    with pytest.raises(OSError):
        save_figures({"one": drawn()}, tmp_path / "no such folder")


def test_the_layout_is_computed_once(tmp_path, monkeypatch):
    figure, count = drawn(), []
    engine, canvas, dpi = figure.get_layout_engine(), figure.canvas, figure.dpi
    execute = engine.execute
    monkeypatch.setattr(engine, "execute", lambda f: count.append(execute(f)))
    save_figures({"one": figure}, tmp_path)
    assert len(count) == 1
    assert (figure.get_layout_engine(), figure.canvas, figure.dpi) == (engine, canvas, dpi)
    assert isinstance(canvas, FigureCanvasAgg)


def test_the_picture_is_matplotlibs(tmp_path):
    ours, theirs = drawn(), drawn()
    save_figures({"ours": ours}, tmp_path)
    with matplotlib.rc_context(STYLE):
        theirs.dpi = DPI
        engine = theirs.get_layout_engine()
        engine.execute(theirs)
        theirs.set_layout_engine("none")
        theirs.savefig(tmp_path / "theirs.png", dpi=DPI)
    with Image.open(tmp_path / "ours.png") as one, Image.open(tmp_path / "theirs.png") as other:
        assert one.info["dpi"] == other.info["dpi"]
        np.testing.assert_array_equal(one.convert("RGB"), other.convert("RGB"))


def test_text_in_the_pdf_is_text_and_strokes_are_where_the_picture_has_them(tmp_path):
    axes, figure = plain()
    axes.axhline(0.5, color="red", lw=3)
    axes.set_ylim(0, 1)
    axes.text(0, 0.5, "τ here")
    save_figures({"one": figure}, tmp_path)
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"/MediaBox [ 0 0 288 144 ]" in pdf and b"/CIDFontType2" in pdf
    page = next(data for data in streams(pdf) if b"BT" in data)
    assert re.search(rb"72 36 144 72 re W n .*\b3 w 1 0 0 RG .*\n72 72 m\n216 72 l\n", page)
    assert re.search(rb"1 0 -?0 1 72 72 cm\nBT", page)
    assert any(b"<03c4>" in data for data in streams(pdf))  # which character its glyph is


def test_what_is_rasterised_is_an_image_in_the_pdf(tmp_path):
    for rasterised in (False, True):
        axes, figure = plain()
        axes.vlines(np.linspace(0, 1, 3000), 0, np.linspace(0, 1, 3000), rasterized=rasterised)
        save_figures({f"{rasterised}": figure}, tmp_path)
    vector, raster = ((tmp_path / f"{kind}.pdf").read_bytes() for kind in (False, True))
    assert raster.count(b"/Subtype /Image") >= 1 and b"/Subtype /Image" not in vector
    page = next(data for data in streams(vector) if b"BT" in data)
    assert page.count(b" m\n") > 3000 and page.count(b"S\n") < 100  # one stroke of many lines
    pages = [data for data in streams(raster) if b"BT" in data]
    assert len(pages[0]) < 10_000
    assert (tmp_path / "True.png").read_bytes() == (tmp_path / "False.png").read_bytes()


@pytest.mark.skipif(not fonts.known(), reason="another release of matplotlib")
@pytest.mark.parametrize("characters", ["a", "éτ½√ axis 1,000", "ǖỗ"])
def test_a_font_that_is_cut_quickly_has_the_outlines_of_the_whole(characters):
    path = findfont("DejaVu Sans")
    whole = FT2Font(path)
    glyphs = {whole.get_char_index(ord(c)) for c in characters}
    with fonts.cut_quickly(), _backend_pdf_ps.get_glyphs_subset(FontPath(path, 0), glyphs) as cut:
        small = FT2Font(io.BytesIO(_backend_pdf_ps.font_as_file(cut.font).getvalue()))
    assert set(cut.glyph_index_map) == glyphs and small.num_glyphs < 40
    for one in glyphs:
        outlines = []
        for font, at in ((whole, one), (small, cut.glyph_index_map[one])):
            glyph = font.load_glyph(at, LoadFlags.NO_SCALE)
            outlines.append((glyph.horiAdvance, *map(np.ndarray.tolist, font.get_path())))
        assert outlines[0] == outlines[1]
