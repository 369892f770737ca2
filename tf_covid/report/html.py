"""`report.html`: one file that opens from disk, without network, scripts or anybody's name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tf_covid.page.data_uri import jpeg_uri
from tf_covid.page.templates import template
from tf_covid.report import text
from tf_covid.result import DISCLAIMER

if TYPE_CHECKING:
    from tf_covid.report.views import Views
    from tf_covid.result import Result
    from tf_covid.scan.scan import Scan

#: Longest side of a picture in pixels: about twice its usual size on the page, for sharp prints and
#: screens, and so that it can be enlarged; of the coronal picture of the figure.
_PICTURE_PX, _FIGURE_PX = 560, 760

#: Length of the scale bars, in mm.
_BAR_MM = 50.0

#: Planes nearer to each other than this, in mm, show the same.
_SAME_PLANE_MM = 5.0


def render(result: Result, scan: Scan | None, drawn: Mapping[str, Any] | None = None) -> str:
    """The page of one case.

    Args:
        result: The answer, with its maps; a refused one has none.
        scan: The scan behind it; None for a refused case only.
        drawn: Result of `draw` for this case; drawn here where None.

    Raises:
        ValueError: If an answered case comes without its scan or its maps.
    """
    context: dict[str, Any] = {
        "result": result,
        "text": text,
        "disclaimer": DISCLAIMER,
        "levels": text.LEVELS,
        "quality_flags": text.quality_flags(result),
    }
    if result.status != "refused":
        if scan is None or result.maps is None:
            raise ValueError("an answered case needs its scan and its maps to be drawn")
        context |= draw(result, scan) if drawn is None else drawn
    return template("tf_covid.report", "report.html.j2").render(context)


def draw(result: Result, scan: Scan, views: Views | None = None) -> dict[str, Any]:
    """The pictures and figures of an answered case: all that takes time, apart from the text.

    Args:
        result: The answer, with its maps.
        scan: The scan behind it.
        views: Slices and planes to show; chosen here where None.
    """
    from tf_covid.report import headfeet, lobe_drawing, pictures
    from tf_covid.report.views import choose

    views = views or choose(result, scan)
    has_attention = result.maps is not None and result.maps.attention is not None
    return {
        "headline": text.headline(result),
        "bars": text.bars(result),
        "score_ranges": text.score_ranges(),
        "notes": text.notes(result),
        "has_attention": has_attention,
        "has_lesions": result.maps is not None and result.maps.voxels.has_lesions,
        "scale": pictures.attention_scale(),
        "window": (
            f"level {pictures.WINDOW_LEVEL_HU} HU, width {pictures.WINDOW_WIDTH_HU} HU".replace(
                "-", "−"
            )
        ),
        "slices_choice": text.slices_choice(views),
        "slices": _axial_pictures(result, scan, views),
        "figure": headfeet.layout(result, scan, views, has_attention),
        "coronal": _picture_pair(
            result, scan, views, axis=1, index=views.middle_row, longest_px=_FIGURE_PX
        ),
        "coronal_mm": _in_plane_mm(scan, 1, views.middle_row),
        "bar_mm": _BAR_MM,
        "planes": _planes(result, scan, views),
        "slice_lines": _slice_lines(views),
        "position_reason": views.position_reason,
        "kept_range": _kept_range(result, scan),
        "lobes": lobe_drawing.draw_lobes(result.lobes) if result.lobes else [],
        "lobe_legend": lobe_drawing.legend(),
        "lobe_drawing_size": lobe_drawing.SIZE,
    }


def _axial_pictures(result: Result, scan: Scan, views: Views) -> list[dict[str, Any]]:
    involvement = result.lungs.involvement_per_slice if result.lungs else ()
    numbers = scan.instance_numbers or (None,) * scan.shape[0]
    shown = []
    for chosen in views.slices:
        index = chosen.index
        shown.append(
            _picture_pair(result, scan, views, axis=0, index=index)
            | {
                "number": index + 1,
                "instance_number": numbers[index],
                "reason": chosen.reason,
                "below_top_mm": (index + 0.5) * scan.spacing_mm[0],
                # The z of LPS, as the source file gives it: what a viewing station shows as slice
                # location.
                "z_mm": float(scan.affine[2] @ (index, 0.0, 0.0, 1.0)),
                "involvement": involvement[index] / 100.0 if involvement else None,
                "interpolated": index in scan.interpolated,
            }
        )
    return shown


def _picture_pair(
    result: Result,
    scan: Scan,
    views: Views,
    axis: int,
    index: int,
    longest_px: int = _PICTURE_PX,
) -> dict[str, Any]:
    from tf_covid.report import pictures
    from tf_covid.report.views import result_maps

    plane = pictures.cut(scan, result_maps(result), axis, index, views.box)
    height_mm, width_mm = plane.size_mm
    px_per_mm = longest_px / max(height_mm, width_mm)
    return {
        "plain": jpeg_uri(pictures.plain(plane, px_per_mm)),
        "overlay": jpeg_uri(pictures.overlay(plane, px_per_mm)),
        "width_mm": width_mm,
        "height_mm": height_mm,
        "bar_percent": 100.0 * _BAR_MM / width_mm,
    }


def _planes(result: Result, scan: Scan, views: Views) -> list[dict[str, Any]]:
    """The coronal and the sagittal plane of the evidence; without one that the figure has."""
    rows = abs(views.position[1] - views.middle_row)
    shown = []
    if rows * scan.spacing_mm[1] >= _SAME_PLANE_MM:
        shown.append(("coronal", 1, "R", "L"))
    shown.append(("sagittal", 2, "A", "P"))
    return [
        _picture_pair(result, scan, views, axis, views.position[axis])
        | _in_plane_mm(scan, axis, views.position[axis])
        | {"name": name, "left": left, "right": right}
        for name, axis, left, right in shown
    ]


def _in_plane_mm(scan: Scan, axis: int, index: int) -> dict[str, float]:
    """Where a coronal (axis 1) or sagittal (2) plane lies: mm from the first voxel, and in LPS."""
    centre = [(size - 1) / 2 for size in scan.shape]
    centre[axis] = index
    return {
        "from_edge_mm": (index + 0.5) * scan.spacing_mm[axis],
        "lps_mm": float(scan.affine[2 - axis] @ (*centre, 1.0)),
    }


def _slice_lines(views: Views) -> list[tuple[float, int]]:
    """The axial slices that are shown, as lines across a plane: percent from its top, number."""
    first, last = views.box[0].start, views.box[0].stop
    return [
        (100.0 * (shown.index + 0.5 - first) / (last - first), shown.index + 1)
        for shown in views.slices
    ]


def _kept_range(result: Result, scan: Scan) -> tuple[int, int, float] | None:
    """(first, last) kept slice, from 1, and the length from one to the other in mm."""
    from tf_covid.report.views import result_maps

    kept = [int(index) for index in result_maps(result).kept.nonzero()[0]]
    if not kept:
        return None
    return kept[0] + 1, kept[-1] + 1, (kept[-1] + 1 - kept[0]) * scan.spacing_mm[0]
