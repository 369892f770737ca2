"""The worst slices of a scan as pictures: contours of the lungs, the reference, disease and lobes.

Lung window; the patient's right is at the left of the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from coarse import Blocks, box
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from tf_covid.report.pictures import Plane, plain

#: Size of a picture and of what is written above it, in pixels; scans of one sheet.
TILE, HEAD, TITLE, GAP, SCANS = 420, 40, 30, 8, 10

#: What is shown around lungs and reference, in mm.
MARGIN_MM = 25.0

Colour = tuple[int, int, int]

LUNGS: Colour = (0, 220, 255)
REFERENCE: Colour = (255, 215, 0)
DISEASE: Colour = (255, 60, 60)
FAR: Colour = (255, 0, 255)
LOBES: tuple[Colour, ...] = (
    (120, 200, 120),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)

#: Shares of colour over the grey.
DISEASE_OPACITY, FAR_OPACITY, LOBE_OPACITY = 0.35, 0.35, 0.22


@dataclass(frozen=True)
class View:
    """What there is to draw of a scan; all but `hu` on the grid of its blocks.

    Args:
        name: Name of the case.
        hu: int16 (D, H, W) of the scan itself.
        blocks: How voxels make blocks.
        lungs: bool; the lungs of the answer.
        reference: bool; the reference.
        far: bool; more than 10 mm outside the reference.
        disease: bool; diseased lung, or None.
        lobes: uint8; 1–5, or None.
        doubts: Why the reference is not to be trusted.
    """

    name: str
    hu: np.ndarray
    blocks: Blocks
    lungs: np.ndarray
    reference: np.ndarray
    far: np.ndarray
    disease: np.ndarray | None
    lobes: np.ndarray | None
    doubts: tuple[str, ...]


def draw_scan(view: View) -> Image.Image:
    """One row of the sheet: the title, and a picture with its caption for each worst slice."""
    tiles = list(_tiles(view))
    tallest = max(picture.height for _, picture in tiles)
    out = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TITLE + HEAD + tallest), "black")
    pen = ImageDraw.Draw(out)
    doubts = f"   reference not to be trusted: {', '.join(view.doubts)}" if view.doubts else ""
    pen.text((4, 4), view.name, fill="white", font=_font(18))
    at = 20 + int(pen.textlength(view.name, _font(18)))
    pen.text((at, 7), doubts, fill=REFERENCE, font=_font(15))
    for column, (caption, picture) in enumerate(tiles):
        left = column * (TILE + GAP)
        pen.multiline_text((left + 4, TITLE), caption, fill="white", font=_font(14), spacing=2)
        out.paste(
            picture,
            (left + (TILE - picture.width) // 2, TITLE + HEAD + (tallest - picture.height) // 2),
        )
    return out


def write_sheets(rows: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Write sheet.png, and sheet-2.png and so on where there are more scans than fit on one."""
    paths = []
    for first in range(0, len(rows), SCANS):
        some = rows[first : first + SCANS]
        height = sum(row.height + GAP for row in some) + TITLE
        out = Image.new("RGB", (max(row.width for row in some), height), (60, 60, 60))
        _legend(out)
        top = TITLE
        for row in some:
            out.paste(row, (0, top + GAP))
            top += row.height + GAP
        number = first // SCANS + 1
        paths.append(folder / ("sheet.png" if number == 1 else f"sheet-{number}.png"))
        out.save(paths[-1], optimize=True)
    return paths


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # Matplotlib's own: Pillow's has no ², and not every machine has fonts.
    return ImageFont.truetype(get_data_path() + "/fonts/ttf/DejaVuSans.ttf", size)


def _legend(sheet: Image.Image) -> None:
    pen, font, left = ImageDraw.Draw(sheet), _font(15), 6
    for colour, text in (
        (LUNGS, "lungs of the answer"),
        (REFERENCE, "reference: threshold and closing"),
        (DISEASE, "diseased lung"),
        (FAR, "lung more than 10 mm outside the reference"),
        (LOBES[0], "lobes, each in its colour, where a lobe model looked for them"),
    ):
        pen.rectangle((left, 9, left + 16, 23), fill=colour)
        pen.text((left + 22, 7), text, fill="white", font=font)
        left += 50 + int(pen.textlength(text, font))


def _tiles(view: View) -> Iterator[tuple[str, Image.Image]]:
    """Captions and pictures: three axial slices and a coronal one."""
    around = box(view.lungs | view.reference, view.blocks.spacing_mm, MARGIN_MM)
    around = around or (slice(None), slice(None), slice(None))
    false, missed = view.lungs & view.far, view.lungs ^ view.reference
    asked = [
        ("lung far from the reference", false),
        ("disagreement with the reference", missed),
        ("disease", view.disease),
    ]
    shown: set[int] = set()
    for what, mask in asked:
        index, area = _fullest(mask, 0, view.blocks, shown)
        caption = f"most {what}, {area:.1f} cm²"
        if not area:
            # Nothing of it: the fullest slice of the lungs says more than an empty frame.
            index, _ = _fullest(view.lungs, 0, view.blocks, shown)
            caption = f"no {what}; most lung" if mask is not None else "most lung"
        shown.add(index)
        yield _caption(caption, "slice", view, 0, index), _picture(view, 0, index, around)
    index, area = _fullest(false, 1, view.blocks, set())
    caption = f"coronal, most lung far from the reference, {area:.1f} cm²"
    if not area:
        index, _ = _fullest(view.lungs, 1, view.blocks, set())
        caption = "coronal, most lung"
    yield _caption(caption, "row", view, 1, index), _picture(view, 1, index, around)


def _caption(what: str, plane: str, view: View, axis: int, index: int) -> str:
    return f"{what}\n{plane} {_voxel(view, axis, index) + 1} of {view.hu.shape[axis]}"


def _voxel(view: View, axis: int, index: int) -> int:
    """The voxel in the middle of a block, along an axis."""
    factor = view.blocks.factors[axis]
    return index * factor + factor // 2


def _fullest(mask: np.ndarray | None, axis: int, by: Blocks, shown: set[int]) -> tuple[int, float]:
    """Index and area in cm² of the plane across an axis with most of a mask.

    One that is not shown yet, unless it holds more than anything else.
    """
    if mask is None:
        return 0, 0.0
    others = tuple(other for other in range(3) if other != axis)
    counts = np.count_nonzero(mask, axis=others)
    new = counts.copy()
    new[list(shown)] = 0
    index = int(new.argmax() if new.any() else counts.argmax())
    size = by.spacing_mm[others[0]] * by.spacing_mm[others[1]]
    return index, float(counts[index]) * size / 100.0


def _picture(view: View, axis: int, index: int, around: tuple[slice, slice, slice]) -> Image.Image:
    """The plane at `index` of the blocks across an axis, cropped, with all that was marked."""
    key: list[slice | int] = list(around)
    key[axis] = index
    where = tuple(key)
    fine: list[slice | int] = []
    for one, factor in zip(key, view.blocks.factors, strict=True):
        if isinstance(one, int):
            fine.append(_voxel(view, axis, one))
        else:
            first = (one.start or 0) * factor
            fine.append(slice(first, None if one.stop is None else one.stop * factor))
    rows, columns = (
        side / factor
        for other, (side, factor) in enumerate(
            zip(view.blocks.spacing_mm, view.blocks.factors, strict=True)
        )
        if other != axis
    )
    planes = {"lungs": view.lungs[where], "reference": view.reference[where]}
    hu = view.hu[tuple(fine)]
    # The last block may hold fewer voxels than the crop asks for, and the scan a few more.
    by_rows, by_columns = (
        factor for other, factor in enumerate(view.blocks.factors) if other != axis
    )
    hu = hu[: planes["lungs"].shape[0] * by_rows, : planes["lungs"].shape[1] * by_columns]
    plane = Plane(hu, np.zeros(hu.shape, np.uint8), None, (rows, columns))
    grey = plain(plane, TILE / max(plane.size_mm))
    size = (min(grey.width, TILE), min(grey.height, TILE))
    picture = np.repeat(np.asarray(grey.resize(size), np.float32)[..., None], 3, axis=2)
    if view.lobes is not None:
        lobes = view.lobes[where]
        for number, colour in enumerate(LOBES, 1):
            lobe = _enlarged(lobes == number, size)
            _tint(picture, lobe, colour, LOBE_OPACITY)
            _tint(picture, _border(lobe), colour, 1.0)
    if view.disease is not None:
        diseased = _enlarged(view.disease[where], size)
        _tint(picture, diseased, DISEASE, DISEASE_OPACITY)
        _tint(picture, _border(diseased), DISEASE, 1.0)
    _tint(picture, _enlarged(view.lungs[where] & view.far[where], size), FAR, FAR_OPACITY)
    for name, colour in (("reference", REFERENCE), ("lungs", LUNGS)):
        _tint(picture, _border(_enlarged(planes[name], size)), colour, 1.0)
    return Image.fromarray(np.round(picture).astype(np.uint8))


def _enlarged(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask at the size of the picture, with a smooth border."""
    soft = Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(soft) > 0.5


def _border(mask: np.ndarray) -> np.ndarray:
    """The border of a mask, a pixel and a half wide or so."""
    return mask & ~ndimage.binary_erosion(mask, ndimage.generate_binary_structure(2, 2))


def _tint(picture: np.ndarray, mask: np.ndarray, colour: Colour, opacity: float) -> None:
    """Colour a part of a picture, in place."""
    picture[mask] += (np.array(colour, np.float32) - picture[mask]) * opacity
