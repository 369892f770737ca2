"""What a mutation is.

A named change of a base, drawn from a seed, with what in the file betrays it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fuzzing.seeds import Base

#: What can betray a change. "" is nothing: a reader without a crystal ball answers with what is
#: there.
WITNESSES = (
    "",
    "checksum",
    "marker",
    "length",
    "duplicate",
    "geometry",
    "neighbour",
    "header",
    "left out",
)
#: Why nothing betrays a change.
PLAUSIBLE = "plausible in itself, and the same everywhere"
PIXELS_ONLY = "stored voxels changed where the format has no checksum"
ANATOMY = "whole slices exchanged or missing at an end: only anatomy tells"
OTHER_SERIES = "the header says that these belong to another series, study or kind"
SMALL = "within what the slices of one scan differ by"


@dataclass(frozen=True)
class Changed:
    """A changed base.

    Args:
        base: With its new files.
        detail: What was changed, for people.
        betrayed_by: One of `WITNESSES`.
        why: Why nothing betrays it, where nothing does.
        harmless: Every good reader reads it unchanged, so that a refusal is a fault too.
        archive: Bytes of the archive where they are not what `base.packed()` gives.
    """

    base: Base
    detail: str
    betrayed_by: str = ""
    why: str = PLAUSIBLE
    harmless: bool = False
    archive: bytes | None = None


#: Gives None where it does not fit the base.
Apply = Callable[[np.random.Generator, Base], Changed | None]


@dataclass(frozen=True)
class Mutation:
    """One kind of change.

    Args:
        group: structure, header, bytes, cut, mixture, container or bombs.
        kind: Name of the kind.
        families: Of the bases that it fits.
        apply: Makes it.
        share: How often it is drawn, against the others of its group.
    """

    group: str
    kind: str
    families: tuple[str, ...]
    apply: Apply
    share: int = 1


def images(base: Base) -> list[int]:
    """Numbers of the members that hold voxels."""
    return [n for n, (name, _) in enumerate(base.members) if name != "DICOMDIR"]


def part(rng: np.random.Generator, count: int) -> tuple[str, list[int]]:
    """Which of so many slices are changed: one, every fourth, half or all."""
    name = str(rng.choice(["one", "fourth", "half", "all"], p=[0.35, 0.2, 0.2, 0.25]))
    if count == 1:
        return "all", [0]
    if name == "one":
        return name, [int(rng.integers(count))]
    return (
        name,
        {
            "fourth": list(range(1, count, 4)),
            "half": list(range(count // 2)),
            "all": list(range(count)),
        }[name],
    )


def with_files(base: Base, changes: dict[int, bytes]) -> Base:
    """The base with other bytes in some members, by their number."""
    return base.with_members(
        [(name, changes.get(n, data)) for n, (name, data) in enumerate(base.members)]
    )
