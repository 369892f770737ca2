"""Series whose images state several patients or studies: no part may answer for the full scan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.dicom import Instance

#: Images of two parts closer than this lie at one place: two scans of one region, not two parts of
#: one scan, in mm.
_SAME_PLACE_MM = 0.05


def torn_flags(studies: Sequence[Sequence[Instance]]) -> list[tuple[QualityFlag, ...]]:
    """For each case, an error where its series goes on in another case.

    An anonymiser that gives all patients one SeriesInstanceUID leaves scans that lie over each
    other: those stay apart and are answered. Parts of one series have one matrix and no place in
    common, and reach into each other.

    Args:
        studies: Headers of each case.

    Returns:
        One tuple for each of `studies`.
    """
    parts: dict[str, list[tuple[int, list[Instance]]]] = {}
    for index, study in enumerate(studies):
        series: dict[str, list[Instance]] = {}
        for one in study:
            if one.series_uid and one.modality == "CT" and len(one.frames) == 1:
                series.setdefault(one.series_uid, []).append(one)
        for uid, members in series.items():
            parts.setdefault(uid, []).append((index, members))
    torn: dict[int, int] = {}
    for results in parts.values():
        if len(results) > 1 and _one_scan([members for _, members in results]):
            torn |= {index: len(results) for index, _ in results}
    return [(_flag(torn[index]),) if index in torn else () for index in range(len(studies))]


def _flag(count: int) -> QualityFlag:
    message = (
        f"The images of one series state {count} different patients or studies (PatientID"
        " (0010,0020), StudyInstanceUID (0020,000D)), and this case is a part of it: its other"
        " slices lie in another case. Correct these elements, or export the series again."
    )
    return QualityFlag("torn_series", "error", message, count)


def _one_scan(parts: Sequence[Sequence[Instance]]) -> bool:
    """Whether parts of equal matrix and direction continue each other, with no place in common."""
    alike = {
        (
            one.rows,
            one.columns,
            one.frames[0].spacing,
            tuple(round(part, 3) for part in one.frames[0].orientation),
        )
        for members in parts
        for one in members
    }
    orientation = np.array(parts[0][0].frames[0].orientation, dtype=np.float64)
    if len(alike) != 1 or orientation.shape != (6,) or not np.isfinite(orientation).all():
        return False
    normal = np.cross(orientation[:3], orientation[3:])
    positions = [
        np.array(
            [
                float(np.array(one.frames[0].position) @ normal)
                for one in members
                if len(one.frames[0].position) == 3
            ]
        )
        for members in parts
    ]
    if any(position.size == 0 or not np.isfinite(position).all() for position in positions):
        return False
    every = np.sort(np.concatenate(positions))
    steps = np.diff(every)
    if steps.size < 2 or steps.min() < _SAME_PLACE_MM:
        return False
    # Together they are one even stack: two scans that happen to lie apart leave a gap or uneven
    # steps.
    return bool(np.abs(steps - np.median(steps)).max() <= 0.1 * np.median(steps) + _SAME_PLACE_MM)
