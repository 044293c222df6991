"""One figure to its two files, laid out once and drawn once: every stroke goes to the picture and to the PDF."""

from __future__ import annotations

import pathlib
import struct
import zlib
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_pdf import PdfFile, RendererPdf
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import (
    Affine2D,
    IdentityTransform,
    Transform,
    TransformedBbox,
    TransformedPath,
)

from sysout_jax.figures import fonts

POINTS = 72  # of a PDF in an inch


def draw(figure: Figure, stem: pathlib.Path, settings: dict[Any, Any], dpi: float) -> None:
    """Write `stem`.png and `stem`.pdf under matplotlib's `settings`."""
    width, height = figure.get_size_inches()
    canvas, engine, own_dpi = figure.canvas, figure.get_layout_engine(), figure.dpi
    with matplotlib.rc_context(settings), fonts.cut_quickly():
        pdf = PdfFile(stem.with_name(f"{stem.name}.pdf"))
        try:
            pdf.newPage(width, height)
            both = _Both(width, height, dpi, pdf)
            _Canvas(figure, both)
            figure.dpi = dpi
            if engine is not None:
                engine.execute(figure)  # by itself it would do so again
                figure.set_layout_engine("none")
            figure.draw(both)
            both.pdf.finalize()
            pdf.finalize()
        finally:
            pdf.close()
            figure.set_layout_engine(engine)
            figure.set_canvas(canvas)
            figure.dpi = own_dpi
    stem.with_name(f"{stem.name}.png").write_bytes(_png(both.pixels(), dpi))


class _Canvas(FigureCanvasBase):
    """Lets the layout measure text with what draws it, which remembers the measures."""

    def __init__(self, figure: Figure, renderer: RendererBase) -> None:
        super().__init__(figure)
        self._renderer = renderer

    def get_renderer(self) -> RendererBase:
        return self._renderer


class _Both(RendererBase):
    """Draws pixels, and the same at the same places in a PDF, whose unit is the point. Text keeps the places that its size in
    pixels gives it; what is marked as rasterised is an image in the PDF."""

    def __init__(self, width: float, height: float, dpi: float, file: PdfFile) -> None:
        super().__init__()
        self.dpi = dpi
        self.size = int(width * dpi), int(height * dpi)
        self.agg = RendererAgg(*self.size, dpi)
        self.pdf = RendererPdf(file, dpi, height, width)
        self._to_points = Affine2D().scale(POINTS / dpi)
        self._clips: dict[int, tuple[Any, Any]] = {}
        self._raster: RendererAgg | None = None  # takes the place of the PDF while it is there

    def pixels(self) -> np.ndarray:
        return np.asarray(self.agg.buffer_rgba())

    # what artists ask
    def get_canvas_width_height(self):
        return self.size

    def get_text_width_height_descent(self, s, prop, ismath):
        return self.agg.get_text_width_height_descent(s, prop, ismath)

    def points_to_pixels(self, points):
        return points * self.dpi / POINTS

    def option_image_nocomposite(self):
        return True

    # what artists draw
    def draw_path(self, gc, path, transform, rgbFace=None):
        self.agg.draw_path(gc, path, transform, rgbFace)
        other, gc, to = self._other(gc)
        other.draw_path(gc, path, transform + to, rgbFace)

    def draw_markers(self, gc, marker_path, marker_trans, path, trans, rgbFace=None):
        self.agg.draw_markers(gc, marker_path, marker_trans, path, trans, rgbFace)
        other, gc, to = self._other(gc)
        other.draw_markers(gc, marker_path, marker_trans + to, path, trans + to, rgbFace)

    def draw_path_collection(
        self, gc, master_transform, paths, all_transforms, offsets, offset_trans, *looks, **more
    ):
        same = (paths, all_transforms, offsets)
        self.agg.draw_path_collection(gc, master_transform, *same, offset_trans, *looks, **more)
        other, gc, to = self._other(gc)
        if _is_one_stroke(gc, all_transforms, offset_trans.transform(offsets), *looks):
            _, (colour,), (width,), (dashes,), *_ = looks
            gc.set_foreground(colour, isRGBA=True)
            gc.set_linewidth(width)
            gc.set_dashes(*dashes)
            other.draw_path(gc, Path.make_compound_path(*paths), master_transform + to)
            return
        other.draw_path_collection(
            gc, master_transform + to, *same, offset_trans + to, *looks, **more
        )

    def draw_quad_mesh(
        self, gc, master_transform, width, height, coordinates, offsets, offset_trans, *looks
    ):
        same = (width, height, coordinates, offsets)
        self.agg.draw_quad_mesh(gc, master_transform, *same, offset_trans, *looks)
        other, gc, to = self._other(gc)
        other.draw_quad_mesh(gc, master_transform + to, *same, offset_trans + to, *looks)

    def draw_image(self, gc, x, y, im, transform=None):
        self.agg.draw_image(gc, x, y, im)
        other, gc, to = self._other(gc)
        other.draw_image(gc, *to.transform((x, y)), im)

    def draw_text(self, gc, x, y, s, prop, angle, ismath=False, mtext=None):
        self.agg.draw_text(gc, x, y, s, prop, angle, ismath, mtext)
        other, gc, to = self._other(gc)
        if not other.flipy():
            y = self.size[1] - y
        other.draw_text(gc, *to.transform((x, y)), s, prop, angle, ismath, mtext)

    def start_rasterizing(self):
        self._raster = RendererAgg(*self.size, self.dpi)

    def stop_rasterizing(self):
        assert self._raster
        image = np.asarray(self._raster.buffer_rgba())
        self._raster = None
        rows, columns = (np.flatnonzero(image[..., 3].any(axis)) for axis in (1, 0))
        if len(rows):
            top, below, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            x, y = self._to_points.transform((left, self.size[1] - below))
            self.pdf.draw_image(self.pdf.new_gc(), x, y, image[top:below, left:right][::-1])

    def _other(self, gc: Any) -> tuple[Any, Any, Transform]:
        """What draws for the PDF, and `gc` and the way to a place as it has them: widths and dashes are in points already."""
        if self._raster:
            return self._raster, gc, IdentityTransform()
        mine = self.pdf.new_gc()
        mine.copy_properties(gc)
        mine._cliprect = self._clip(gc._cliprect, TransformedBbox)
        mine._clippath = self._clip(gc._clippath, _in_points)
        return self.pdf, mine, self._to_points

    def _clip(self, clip, transformed):
        """The same object for the same clip, by which a PDF knows that nothing has changed."""
        if clip is None:
            return None
        if id(clip) not in self._clips:
            self._clips[id(clip)] = clip, transformed(clip, self._to_points)
        return self._clips[id(clip)][1]


def _is_one_stroke(gc, transforms, offsets, faces, edges, widths, dashes, *_) -> bool:
    """Whether paths of a collection, such as a thousand upright lines, look the same drawn as one, which is much quicker."""
    return (
        not len(transforms)
        and not np.any(offsets)
        and not len(faces)
        and len(edges) == len(widths) == len(dashes) == 1
        and edges[0][3] == 1  # strokes of one path do not show through each other
        and gc.get_hatch() is None
    )


def _in_points(clip: TransformedPath, to_points: Affine2D) -> TransformedPath:
    path, affine = clip.get_transformed_path_and_affine()
    return TransformedPath(path, affine + to_points)


def _png(pixels: np.ndarray, dpi: float) -> bytes:
    """A PNG file of opaque pixels (height, width, RGBA). Rows are stored as differences to the row above: of other ways one is
    rarely smaller for figures, and it takes three times as long to find."""
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels[..., :3]).reshape(height, 3 * width)
    data = np.empty((height, 1 + 3 * width), np.uint8)
    data[:, 0] = 2  # the filter "up"
    data[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=data[1:, 1:])
    per_metre = round(dpi / 0.0254)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"pHYs", struct.pack(">IIB", per_metre, per_metre, 1)),
        (b"IDAT", zlib.compress(data.tobytes(), 4)),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )  # fmt: skip
