"""One plane of the scan as a picture: true proportions in mm, lung window, contours, attention.

Pictures carry no text: the report and the montage write theirs beside or over them, in their own
type. Radiological convention: axial and coronal planes show the patient's right at the left of the
picture, which is the canonical order of the columns already; sagittal planes show anterior at the
left.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tf_covid.page import palette
from tf_covid.report.views import COLOURED_FROM

if TYPE_CHECKING:
    from PIL import Image

    from tf_covid.report.views import Box
    from tf_covid.result import Maps
    from tf_covid.scan.scan import Scan

#: The lung window of the pictures, in HU. For the eye only; the networks' window is
#: `tf_covid.layers`.
WINDOW_LEVEL_HU = -400
WINDOW_WIDTH_HU = 1400

#: The attention map's colours: dark purple to yellow, of steadily growing lightness.
ATTENTION_COLOURS = "inferno"
_ATTENTION_OPACITY = 0.68
_CONTOUR_WIDTH_PX = 2.4

#: The borders between lobes are thinner and fainter than the lungs', so that they hide no lesion.
_FISSURE_WIDTH_PX, _FISSURE_OPACITY = 1.2, 0.75

#: Diseased lung is outlined in dashes with a dark line beneath: apart from the contour of the lungs
#: on a grey print, too, and visible on air as well as on consolidation.
_LESION_WIDTH_PX, _DARK_RIM_PX = 1.8, 1.4
_DASH_PX, _DASH_GAP_PX = 7.0, 4.0
#: Lines that are drawn and not computed are drawn this much larger, then averaged.
_SUPERSAMPLING = 3

#: The lobes of which an outline is drawn: it takes in every border between two lobes of a lung.
_OUTLINED_LOBES = (1, 2, 4)


@dataclass(frozen=True)
class Plane:
    """A plane through a scan, rows from top to bottom of the picture.

    Args:
        hu: Voxels in HU, int16 (rows, columns).
        lungs: Lung mask, uint8 (rows, columns); 0 outside, 1 right, 2 left.
        attention: Attention map, uint8 (rows, columns), or None.
        spacing_mm: Distance of neighbouring rows and of neighbouring columns.
        lobes: Lobes, uint8 (rows, columns); 0 outside, 1–5 in the order of `severity.LOBES`. None
            without a lobe network.
        lesions: Diseased lung, uint8 (rows, columns); 1 inside. None where nothing looked for it.
    """

    hu: np.ndarray
    lungs: np.ndarray
    attention: np.ndarray | None
    spacing_mm: tuple[float, float]
    lobes: np.ndarray | None = None
    lesions: np.ndarray | None = None

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width of the plane in mm."""
        return self.hu.shape[0] * self.spacing_mm[0], self.hu.shape[1] * self.spacing_mm[1]


def cut(scan: Scan, maps: Maps, axis: int, index: int, box: Box) -> Plane:
    """The plane at `index` across a canonical axis, cropped to the box.

    Args:
        scan: The scan.
        maps: Masks and attention map of the scan.
        axis: Axis across the plane: 0 axial, 1 coronal, 2 sagittal.
        index: Position along that axis, in voxels of the full scan.
        box: Part to show, as slices of (D, H, W); that of `axis` is not used.
    """
    where: list[slice | int] = list(box)
    where[axis] = index
    key = tuple(where)
    rows, columns = (scan.spacing_mm[other] for other in range(3) if other != axis)
    attention = None if maps.attention is None else maps.attention[key]
    voxels = dataclasses.replace(maps.voxels, codes=maps.voxels.codes[key])
    return Plane(
        scan.hu[key], voxels.sides, attention, (rows, columns), voxels.lobes, voxels.lesions
    )


def plain(plane: Plane, px_per_mm: float) -> Image.Image:
    """The plane in the lung window: a picture of mode "L"."""
    from PIL import Image

    return Image.fromarray(np.round(_grey(plane, _size(plane, px_per_mm))).astype(np.uint8))


def overlay(plane: Plane, px_per_mm: float) -> Image.Image:
    """The plane in the lung window, with attention and contours of lungs, lobes, disease: "RGB"."""
    from PIL import Image

    size = _size(plane, px_per_mm)
    picture = np.repeat(_grey(plane, size)[..., None], 3, axis=2)
    contour = np.array(palette.rgb(palette.CONTOUR), np.float32)
    if plane.attention is not None:
        level = np.clip(_resized(plane.attention, size), 0.0, 255.0)
        colours, opacity = attention_colours()
        value = np.round(level).astype(np.uint8)
        picture += (colours[value] - picture) * opacity[value][..., None]
    if plane.lobes is not None:
        for lobe in _OUTLINED_LOBES:
            line = _outline(plane.lobes == lobe, size, _FISSURE_WIDTH_PX)[..., None]
            picture += (contour - picture) * line * _FISSURE_OPACITY
    # Side by side lungs touch in front of the heart: one contour each keeps the border between them
    # visible.
    for side in (1, 2):
        line = _outline(plane.lungs == side, size)[..., None]
        picture += (contour - picture) * line
    if plane.lesions is not None:
        _draw_lesions(picture, plane.lesions, size)
    return Image.fromarray(np.round(picture).astype(np.uint8))


def _draw_lesions(picture: np.ndarray, lesions: np.ndarray, size: tuple[int, int]) -> None:
    """Outline diseased lung in a picture, float32 (height, width, 3), in place."""
    rim, dashes = _dashed_outline(lesions > 0, size)
    picture -= picture * rim[..., None] * 0.8
    picture += (np.array(palette.rgb(palette.LESION), np.float32) - picture) * dashes[..., None]


@functools.cache
def attention_colours() -> tuple[np.ndarray, np.ndarray]:
    """Colour (256, 3), 0–255, and opacity (256,), 0–1, of each attention value."""
    from matplotlib import colormaps

    value = np.linspace(0.0, 1.0, 256)
    drawn = np.clip((value - COLOURED_FROM) / (1.0 - COLOURED_FROM), 0.0, 1.0)
    # The darkest part would hide in the grey of the lung.
    colours = colormaps[ATTENTION_COLOURS](0.4 + 0.6 * drawn)[:, :3] * 255.0
    opacity = np.where(value >= COLOURED_FROM, _ATTENTION_OPACITY * (0.45 + 0.55 * drawn), 0.0)
    return colours.astype(np.float32), opacity.astype(np.float32)


def attention_scale_rgb(steps: int) -> np.ndarray:
    """The colour bar: colours of drawn attention over aerated lung, (steps, 3), 0–1."""
    colours, opacity = attention_colours()
    lung_grey = np.interp(-850, *_window())
    values = np.linspace(np.ceil(255 * COLOURED_FROM), 255, steps).round().astype(int)
    blended: np.ndarray = lung_grey + (colours[values] - lung_grey) * opacity[values][:, None]
    return blended / 255.0


def attention_scale(steps: int = 12) -> list[str]:
    """The colour bar as CSS colours."""
    return [
        f"rgb({red:.0f},{green:.0f},{blue:.0f})"
        for red, green, blue in attention_scale_rgb(steps) * 255.0
    ]


def _window() -> tuple[tuple[float, float], tuple[float, float]]:
    half = WINDOW_WIDTH_HU / 2
    return (WINDOW_LEVEL_HU - half, WINDOW_LEVEL_HU + half), (0.0, 255.0)


def _size(plane: Plane, px_per_mm: float) -> tuple[int, int]:
    """(width, height) of the picture in pixels, as Pillow wants it."""
    height, width = plane.size_mm
    return max(1, round(width * px_per_mm)), max(1, round(height * px_per_mm))


def _grey(plane: Plane, size: tuple[int, int]) -> np.ndarray:
    """Grey values 0–255, float32 (height, width), resized in HU and windowed after."""
    grey: np.ndarray = np.interp(_resized(plane.hu, size), *_window()).astype(np.float32)
    return grey


def _resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 (height, width): smooth where enlarged, averaged where shrunk."""
    from PIL import Image

    return np.asarray(
        Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    )


def _outline(
    mask: np.ndarray, size: tuple[int, int], width_px: float = _CONTOUR_WIDTH_PX
) -> np.ndarray:
    """Opacity of a smooth, even line along the border of a mask, 0–1, float32 (height, width)."""
    if not mask.any():
        return np.zeros(size[::-1], np.float32)
    level = _soft(mask, size)
    rows, columns = np.gradient(level)
    slope = np.hypot(rows, columns)
    distance = np.abs(level - 0.5) / np.maximum(slope, 1e-3)
    opacity: np.ndarray = np.clip(width_px / 2 + 0.5 - distance, 0.0, 1.0)
    return opacity.astype(np.float32)


def _dashed_outline(mask: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Opacities of an unbroken dark line along the border of a mask and of the dashes on it.

    Both are 0–1, float32 (height, width).
    """
    from matplotlib.figure import Figure
    from PIL import Image, ImageDraw

    if not mask.any():
        return np.zeros(size[::-1], np.float32), np.zeros(size[::-1], np.float32)
    # A rim of 0 closes the lines at the edge of the picture.
    level = np.pad(_soft(mask, size), 1)
    fine = (size[0] * _SUPERSAMPLING, size[1] * _SUPERSAMPLING)
    layers = [Image.new("L", fine) for _ in range(2)]
    rim, dashes = (ImageDraw.Draw(layer) for layer in layers)
    # A mask of so few voxels that its blur stays below a half has one line, of no points.
    lines = Figure().add_axes((0, 0, 1, 1)).contour(level, levels=[0.5]).allsegs[0]
    for line in (one for one in lines if len(one) > 1):
        points = (np.asarray(line) - 0.5) * _SUPERSAMPLING
        rim_px = (_LESION_WIDTH_PX + _DARK_RIM_PX) * _SUPERSAMPLING
        rim.line(points.ravel().tolist(), 255, round(rim_px), "curve")
        for dash in _dashes(points, _DASH_PX * _SUPERSAMPLING, _DASH_GAP_PX * _SUPERSAMPLING):
            dashes.line(dash.ravel().tolist(), 255, round(_LESION_WIDTH_PX * _SUPERSAMPLING))
    small = [layer.resize(size, Image.Resampling.BOX) for layer in layers]
    opacities = [np.asarray(one, np.float32) / 255.0 for one in small]
    return opacities[0], opacities[1]


def _dashes(points: np.ndarray, dash: float, gap: float) -> Iterator[np.ndarray]:
    """The dashes of a polyline (n, 2), each a polyline, of even length along it."""
    lengths = np.hypot(*np.diff(points, axis=0).T)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    # As many whole periods as fit best: a closed line then has no seam.
    periods = max(1, round(at[-1] / (dash + gap)))
    period = at[-1] / periods
    for start in period * np.arange(periods):
        end = start + period * dash / (dash + gap)
        inner = at[(at > start) & (at < end)]
        where = np.concatenate([[start], inner, [end]])
        yield np.stack([np.interp(where, at, points[:, axis]) for axis in (0, 1)], axis=1)


def _soft(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask resized and blurred, 0–1, float32 (height, width); its border lies at a half."""
    from PIL import Image, ImageFilter

    soft = Image.fromarray((mask * 255.0).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    # About a voxel of blur takes the stairs out of coarse masks; at least a pixel or so, for a
    # slope that is defined.
    blur = max(1.4, 0.35 * size[0] / mask.shape[1])
    return np.asarray(soft.filter(ImageFilter.GaussianBlur(blur)), np.float32) / 255.0
