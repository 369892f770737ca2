"""`montage.png`: the answer and its evidence on one slide."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from tf_covid.page import palette
from tf_covid.page.figure_style import SLIDE, styled, to_bytes
from tf_covid.page.formats import millilitres, probability, thousands
from tf_covid.report import text as sentences
from tf_covid.report.slide import WIDTH_PX, blank_slide, rectangle, set_limits, shortened, write
from tf_covid.result import DISCLAIMER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tf_covid.report.views import Box, ShownSlice, Views
    from tf_covid.result import Result
    from tf_covid.scan.scan import Scan

#: Number of axial slices on the slide.
_SLICES = 6

#: Most lines of what the models were trained on.
_NOTE_LINES = 2

#: Length of the scale bars, in mm.
_BAR_MM = 50.0


@styled(SLIDE)
def montage(result: Result, scan: Scan, views: Views | None = None) -> bytes:
    """Draw the montage of an answered case.

    Args:
        result: The answer, with its maps.
        scan: The scan behind it.
        views: Slices and planes to show; chosen here where None.

    Returns:
        The slide as a PNG file, 1600 × 900 pixels.
    """
    from tf_covid.report.views import choose

    views = views or choose(result, scan)
    figure, page = blank_slide()
    _headline(page, result)
    _probabilities(page, result)
    _facts(page, result)
    _axial(page, result, scan, views)
    _planes(page, result, scan, views)
    _footer(page, result)
    return to_bytes(figure)


def _headline(page: Axes, result: Result) -> None:
    from matplotlib.patches import FancyBboxPatch

    answer = sentences.headline(result)
    ground, letter = (
        (palette.SLIDE.track, palette.SLIDE.ink)
        if answer.rank is None
        else palette.SEVERITY[answer.rank]
    )
    write(page, 40, 46, shortened(result.case, 40), 24, weight="bold")
    write(
        page,
        40,
        70,
        f"{sentences.task(result)} · {sentences.status(result)}",
        15,
        palette.SLIDE.soft,
    )
    write(page, 40, 87, sentences.provenance(result), 12, palette.SLIDE.soft)
    page.add_patch(
        FancyBboxPatch((40, 94), 104, 88, "round,pad=0,rounding_size=14", facecolor=ground, lw=0)
    )
    write(page, 92, 158, answer.symbol, 60, letter, ha="center", weight="bold")
    write(page, 164, 138, answer.label, 40, weight="bold")
    write(page, 164, 168, answer.heading, 16, palette.SLIDE.soft)


def _probabilities(page: Axes, result: Result) -> None:
    left, top, width = 700, 60, 190
    write(page, 560, 46, "Probabilities", 15, palette.SLIDE.soft)
    for row, bar in enumerate(sentences.bars(result)):
        y = top + row * 25
        weight = "bold" if bar.chosen else "normal"
        write(page, 560, y + 14, bar.name, 17, weight=weight)
        rectangle(page, left, y, width, 16, palette.SLIDE.track)
        rectangle(
            page,
            left,
            y,
            width * bar.probability,
            16,
            palette.SLIDE.accent if bar.chosen else palette.SLIDE_BAR,
        )
        write(
            page,
            left + width + 74,
            y + 14,
            probability(bar.probability),
            17,
            weight=weight,
            ha="right",
        )


def _facts(page: Axes, result: Result) -> None:
    facts = []
    if result.severity is not None:
        score = result.severity.ct_score
        facts.append(("CT score", "–" if score is None else f"{score:.1f} of 25"))
        if result.severity.ct_score_read is not None:
            facts.append(("read from lobes", f"{result.severity.ct_score_read} of 25"))
    if result.lungs is not None:
        lungs = result.lungs
        facts.append(("Involved lung", f"{lungs.involvement_percent:.1f} %"))
        facts.append(("Lung volume", millilitres(lungs.volume_ml)))
        facts.append(("right, left", f"{thousands(lungs.right_ml)}, {millilitres(lungs.left_ml)}"))
        facts.append(("Slices used", f"{lungs.slices_kept} of {lungs.slices_total}"))
    pitch = 25 if len(facts) <= 5 else 22
    for row, (name, value) in enumerate(facts):
        y = 74 + row * pitch
        write(page, 1010, y, name, 17, palette.SLIDE.soft)
        write(page, 1250, y, value, 17, ha="right", weight="bold" if row == 0 else "normal")
    write(page, 1010, 46, "Key figures", 15, palette.SLIDE.soft)
    worst = [flag for flag in sentences.quality_flags(result) if flag.level != "info"]
    write(page, 1290, 46, "Scan quality", 15, palette.SLIDE.soft)
    lines = list(dict.fromkeys(map(sentences.warning, worst))) or ["no warnings"]
    if len(lines) > 5:
        lines = [*lines[:4], f"and {len(lines) - 4} more: see the report"]
    for row, line in enumerate(lines):
        write(
            page,
            1290,
            74 + row * 25,
            shortened(line, 32),
            17,
            palette.SLIDE.warn if worst else palette.SLIDE.ink,
        )


def _show(
    page: Axes,
    result: Result,
    scan: Scan,
    axis: int,
    index: int,
    box: Box,
    frame: tuple[float, ...],
    coloured: bool,
    letters: str,
) -> tuple[float, float, float, float]:
    """Draw a plane into a frame, as large as fits, and return the rectangle that it fills.

    Both are (x, y, width, height); `letters` are those at the left and the right edge.
    """
    from matplotlib.patheffects import withStroke

    from tf_covid.report import pictures
    from tf_covid.report.views import result_maps

    dark_rim = [withStroke(linewidth=2.5, foreground="#000000")]
    plane = pictures.cut(scan, result_maps(result), axis, index, box)
    height_mm, width_mm = plane.size_mm
    px_per_mm = min(frame[2] / width_mm, frame[3] / height_mm)
    picture = pictures.overlay(plane, px_per_mm) if coloured else pictures.plain(plane, px_per_mm)
    width, height = picture.size
    x, y = round(frame[0] + (frame[2] - width) / 2), round(frame[1] + (frame[3] - height) / 2)
    page.imshow(
        picture,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(x, x + width, y + height, y),
        aspect="auto",
        interpolation="nearest",
        zorder=2,
    )
    set_limits(page)
    for letter, at, side in ((letters[0], x + 6, "left"), (letters[1], x + width - 6, "right")):
        write(
            page,
            at,
            y + height / 2,
            letter,
            15,
            palette.ON_PICTURE,
            ha=side,
            weight="bold",
            path_effects=dark_rim,
        )
    base = y + height - 7
    page.plot(
        (x + 8, x + 8 + _BAR_MM * px_per_mm),
        (base, base),
        color=palette.ON_PICTURE,
        linewidth=1.4,
        zorder=3,
        path_effects=dark_rim,
        solid_capstyle="butt",
    )
    write(page, x + 8, base - 5, "5 cm", 12, palette.ON_PICTURE, path_effects=dark_rim)
    return x, y, width, height


def _axial(page: Axes, result: Result, scan: Scan, views: Views) -> None:
    """Six slices in two rows, with mask and attention."""
    left, top, width, height, gap = 40, 200, 310, 288, 6
    for cell, chosen in enumerate(_spread(views)):
        x = left + (cell % 3) * (width + gap)
        y = top + (cell // 3) * (height + 26 + gap)
        _show(page, result, scan, 0, chosen.index, views.box, (x, y, width, height), True, "RL")
        write(page, x + 2, y + height + 19, f"slice {chosen.index + 1}", 15, weight="bold")
        write(
            page, x + width - 2, y + height + 19, chosen.reason, 14, palette.SLIDE.soft, ha="right"
        )


def _spread(views: Views) -> list[ShownSlice]:
    """At most six of the slices to show: those of the overview are left out first."""
    from tf_covid.report.views import OVERVIEW

    chosen = list(views.slices)
    for reason in (OVERVIEW, "high attention", "large involved area"):
        for candidate in [one for one in chosen if one.reason == reason][::2]:
            if len(chosen) > _SLICES:
                chosen.remove(candidate)
    return chosen[:_SLICES]


def _planes(page: Axes, result: Result, scan: Scan, views: Views) -> None:
    """Coronal plane, plain and coloured, and the curves from head to feet beneath."""
    left, top, width, height, gap = 1010, 200, 272, 288, 6
    for column, coloured in enumerate((False, True)):
        x = left + column * (width + gap)
        drawn = _show(
            page,
            result,
            scan,
            1,
            views.position[1],
            views.box,
            (x, top, width, height),
            coloured,
            "RL",
        )
        if coloured:
            per_slice = drawn[3] / (views.box[0].stop - views.box[0].start)
            for chosen in _spread(views):
                y = drawn[1] + (chosen.index + 0.5 - views.box[0].start) * per_slice
                page.plot(
                    (drawn[0], drawn[0] + drawn[2]),
                    (y, y),
                    color=palette.ON_PICTURE,
                    linewidth=0.7,
                    alpha=0.7,
                    zorder=3,
                    linestyle=(0, (3, 4)),
                )
    from_front_mm = (views.position[1] + 0.5) * scan.spacing_mm[1]
    write(page, left + 2, top + height + 19, "coronal", 15, weight="bold")
    write(
        page,
        left + 76,
        top + height + 19,
        f"{from_front_mm:.0f} mm from the front",
        14,
        palette.SLIDE.soft,
    )
    write(
        page,
        left + 2 * width + gap,
        top + height + 19,
        "lines: the slices shown",
        14,
        palette.SLIDE.soft,
        ha="right",
    )
    _curves(page, result, scan, views)


def _curves(page: Axes, result: Result, scan: Scan, views: Views) -> None:
    import numpy as np

    from tf_covid.report.headfeet import cut_off, involvement
    from tf_covid.report.views import result_maps

    # "Of each slice" does not fit beside the rule; the axis runs over the slices.
    how = sentences.involved_by(result.lungs) if result.lungs else "of each slice"
    panels = [(f"involved lung, %: {how}", involvement(result, scan))]
    if result.attention is not None:
        panels.append(("mean attention of each slice", views.attention))
    kept = result_maps(result).kept
    first, last = views.box[0].start, views.box[0].stop
    mm = (np.arange(first, last) + 0.5) * scan.spacing_mm[0]
    height = 0.29 / len(panels)
    for row, (title, values) in enumerate(panels):
        bottom = 0.105 + (len(panels) - 1 - row) * (height + 0.012)
        panel = page.figure.add_axes(
            (1044 / WIDTH_PX, bottom, 516 / WIDTH_PX, height - 0.03), facecolor=palette.SLIDE.page
        )
        shown = values[first:last]
        panel.fill_between(mm, shown, color=palette.SLIDE.accent, alpha=0.2, linewidth=0)
        panel.plot(mm, shown, color=palette.SLIDE.accent, linewidth=1.6)
        panel.fill_between(
            mm,
            0,
            1,
            where=kept[first:last],
            color=palette.SLIDE.accent,
            alpha=0.10,
            linewidth=0,
            transform=panel.get_xaxis_transform(),
        )
        panel.set(xlim=(first * scan.spacing_mm[0], last * scan.spacing_mm[0]), ylim=(0, None))
        for low, high, percent in cut_off(result, scan) if row == 0 else ():
            where = (low + high + 1) / 2 * scan.spacing_mm[0]
            if mm[0] <= where <= mm[-1]:
                panel.text(
                    where,
                    0.93 * values.max(),
                    f"↑ {percent:.0f} %",
                    fontsize=9,
                    color=palette.SLIDE.warn,
                    ha="center",
                    va="top",
                )
        panel.set_title(title, fontsize=10.5, color=palette.SLIDE.ink, loc="left", pad=4)
        panel.tick_params(
            colors=palette.SLIDE.soft, labelsize=9, labelbottom=row == len(panels) - 1
        )
        panel.locator_params(axis="y", nbins=3)
        for side in panel.spines.values():
            side.set_color(palette.SLIDE.track)
        if row == len(panels) - 1:
            panel.set_xlabel(
                "mm below the top of the scan; shaded: slices used",
                fontsize=10,
                color=palette.SLIDE.soft,
            )


def _footer(page: Axes, result: Result) -> None:
    write(page, 40, 882, DISCLAIMER, 16, palette.SLIDE.warn, weight="bold")
    note = textwrap.wrap(" ".join(sentences.notes(result)), 105)
    if len(note) > _NOTE_LINES:
        note = [*note[: _NOTE_LINES - 1], shortened(" ".join(note[_NOTE_LINES - 1 :]), 105)]
    for row, line in enumerate(note):
        y = 887 - 17 * (len(note) - 1 - row)
        write(page, 1560, y, line, 13, palette.SLIDE.soft, ha="right")
    _legend(page, result)


def _legend(page: Axes, result: Result) -> None:
    """What the lines and the colours of the pictures mean."""
    from tf_covid.report import pictures

    # Above the pictures, where the colours are looked at.
    write(page, 40, 197, sentences.attention_caution(result), 13, palette.SLIDE.warn, weight="bold")
    y = 852.0
    page.plot((40, 64), (y - 5, y - 5), color=palette.CONTOUR, linewidth=1.6, zorder=3)
    write(page, 70, y, "lungs", 13, palette.SLIDE.soft)
    left = 124.0
    if result.maps is not None and result.maps.voxels.has_lesions:
        page.plot(
            (left, left + 26),
            (y - 5, y - 5),
            color=palette.LESION,
            linewidth=1.6,
            linestyle=(0, (3, 1.6)),
            zorder=3,
        )
        legend = sentences.lesion_legend(result)
        write(page, left + 32, y, legend, 13, palette.SLIDE.soft)
        left += 310.0
    if result.attention is None:
        return
    if not sentences.attention_is_empty(result):
        colours = pictures.attention_scale_rgb(64)
        page.imshow(
            colours[None],
            extent=(left, left + 70, y + 1, y - 11),
            aspect="auto",
            interpolation="nearest",
            zorder=2,
        )
        set_limits(page)
        left += 78.0
    write(page, left, y, sentences.attention_legend(result), 13, palette.SLIDE.soft)
