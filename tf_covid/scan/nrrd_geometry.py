"""Where an NRRD file places its voxels.

Space, directions, spacings and origin in words of the format → RAS mm.
"""

from __future__ import annotations

import re

import numpy as np

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.geometry import in_millimetres, no_position

#: Signs that make a space's axes R, A and S.
_SPACES = {
    **dict.fromkeys(("right-anterior-superior", "ras"), (1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-anterior-superior", "las"), (-1.0, 1.0, 1.0)),
    **dict.fromkeys(("left-posterior-superior", "lps"), (-1.0, -1.0, 1.0)),
}
_TIMED = {
    **{f"{name}-time": signs for name, signs in _SPACES.items() if "-" in name},
    **{f"{name}t": signs for name, signs in _SPACES.items() if "-" not in name},
}
#: Spaces of the format whose axes have no direction in the patient.
_NAMELESS = ("scanner-xyz", "3d-right-handed", "3d-left-handed")
#: ITK takes the axes of a space without a name for L, P and S.
_LPS = (-1.0, -1.0, 1.0)
# The header is read as Latin-1: a µ that is written in UTF-8 has two letters there.
_UNITS = {
    **dict.fromkeys(("mm", "millimeter", "millimeters", "millimetre", "millimetres"), ("mm", 1.0)),
    **dict.fromkeys(("cm", "centimeter", "centimeters"), ("cm", 10.0)),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), ("m", 1000.0)),
    **dict.fromkeys(
        ("um", "µm", "âµm", "micron", "microns", "micrometer", "micrometers"), ("µm", 0.001)
    ),
}
_UNSTATED = ("", "???", "none")


def nrrd_affine(
    fields: dict[str, str], sizes: tuple[int, ...], axes: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """(4, 4), stored index → RAS mm, and what the header leaves open.

    Args:
        fields: Fields of the header, by name.
        sizes: Sizes of all stored axes.
        axes: The numbers of the three axes in space.

    Raises:
        ScanRefused: `bad_header`, `bad_affine`.
    """
    signs, flags = _space(fields)
    affine = np.eye(4)
    if "spacedirections" in fields:
        affine[:3, :3] = _directions(fields["spacedirections"], len(sizes), axes)
    else:
        spacings, results = _spacings(fields, sizes, axes)
        affine[:3, :3] = np.diag(spacings)
        if not any(flag.code == "orientation_unknown" for flag in flags):
            message = (
                "The header states no space directions; the axes are assumed to run along those of"
                " its space."
            )
            flags += (QualityFlag("orientation_unknown", "warning", message),)
        flags += results
    affine[:3, 3] = _origin(fields)
    if "spaceorigin" not in fields and not flags:
        flags += (no_position(),)
    scale, converted = _units(fields, axes)
    return np.diag([*signs, 1.0]) @ scale @ affine, flags + converted


def _space(fields: dict[str, str]) -> tuple[tuple[float, float, float], tuple[QualityFlag, ...]]:
    name = fields.get("space", "").lower()
    if name in _SPACES or name in _TIMED:
        return {**_SPACES, **_TIMED}[name], ()
    if name and name.removesuffix("-time") not in _NAMELESS:
        raise refusal("bad_header", "The NRRD header states a space that the format does not have.")
    what = (
        f"The space of the header ({name}) names no axes of the patient"
        if name
        else "The header states no space"
    )
    message = f"{what}; left, posterior, superior (LPS) is assumed."
    return _LPS, (QualityFlag("orientation_unknown", "warning", message),)


def _directions(text: str, count: int, axes: tuple[int, int, int]) -> np.ndarray:
    """One column for each axis in space."""
    vectors = re.findall(r"none|\([^()]*\)", text.lower())
    if len(vectors) != count or re.sub(r"none|\([^()]*\)|\s", "", text.lower()):
        raise refusal(
            "bad_header", f"The NRRD header has {count} axes, but not as many space directions."
        )
    columns = [_vector(vectors[axis], "space directions") for axis in axes]
    return np.array(columns).T


def _vector(word: str, name: str) -> np.ndarray:
    """The first three numbers of "(a,b,c)" (a fourth is time); finite ones.

    Raises:
        ScanRefused: `bad_header`, `bad_affine`.
    """
    try:
        numbers = [float(part) for part in word.strip("()").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (3, 4) or "_" in word:
        raise refusal("bad_header", f"The NRRD header's {name} are not made of three numbers.")
    if not np.isfinite(numbers).all():
        raise refusal(
            "bad_affine", f"The NRRD header's {name} hold a number that is none (NaN or infinity)."
        )
    return np.array(numbers[:3])


def _origin(fields: dict[str, str]) -> np.ndarray:
    if "spaceorigin" not in fields:
        return np.zeros(3)
    text = fields["spaceorigin"]
    if not re.fullmatch(r"\([^()]*\)", text):
        raise refusal("bad_header", "The NRRD header's space origin is not made of three numbers.")
    return _vector(text, "space origin")


def _spacings(
    fields: dict[str, str], sizes: tuple[int, ...], axes: tuple[int, int, int]
) -> tuple[list[float], tuple[QualityFlag, ...]]:
    """Mm of the axes in space.

    `spacings`, else `axis mins` and `axis maxs`, else 1, as ITK assumes.
    """
    spacings = _numbers(fields, "spacings", len(sizes))
    if spacings is not None:
        used = [abs(spacings[axis]) for axis in axes]
        if np.isfinite(used).all() and min(used) > 0:
            return used, ()
        if not np.isnan(used).all():
            raise refusal(
                "bad_affine",
                "The NRRD header's spacings hold zero or no number for an axis in space.",
            )
    low, high = (_numbers(fields, name, len(sizes)) for name in ("axismins", "axismaxs"))
    if low is not None and high is not None:
        centers = fields.get("centerings", "").lower().split()
        gaps = [sizes[axis] - (axis < len(centers) and centers[axis] == "node") for axis in axes]
        used = [
            abs(high[axis] - low[axis]) / max(1, gap) for axis, gap in zip(axes, gaps, strict=True)
        ]
        if np.isfinite(used).all() and min(used) > 0:
            message = (
                "The header states axis mins and maxs but no spacings; they were computed, which"
                " ITK does not."
            )
            return used, (QualityFlag("spacing_unknown", "warning", message),)
    message = (
        "The header states no size of its voxels; 1 mm is assumed, so every volume may be wrong."
    )
    return [1.0, 1.0, 1.0], (QualityFlag("spacing_unknown", "warning", message),)


def _numbers(fields: dict[str, str], name: str, count: int) -> list[float] | None:
    if name not in fields:
        return None
    try:
        numbers = [float(word) for word in fields[name].split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or "_" in fields[name]:
        raise refusal("bad_header", f"The NRRD header's {name} are not {count} numbers.")
    return numbers


def _units(
    fields: dict[str, str], axes: tuple[int, int, int]
) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """`space units` belong to `space directions`, `units` to `spacings`.

    One unit for all three axes.
    """
    directed = "spacedirections" in fields
    units = re.findall(r'"([^"]*)"', fields.get("spaceunits" if directed else "units", ""))
    used = units[:3] if directed else [units[axis] for axis in axes if axis < len(units)]
    stated = {word.strip().lower() for word in used} - set(_UNSTATED)
    if not stated:
        return np.eye(4), ()
    results = {_UNITS.get(word) for word in stated}
    unit = results.pop()
    if unit is None or results:
        message = (
            "The header measures its voxels in a unit that is not known, or in several; they were"
            " taken for mm."
        )
        return np.eye(4), (QualityFlag("units_unknown", "warning", message),)
    return in_millimetres(*unit)
