"""How much of an input is believed, as arguments that a test or a small machine can lower."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds that are checked before memory is taken, because headers lie.

    Args:
        voxels: Most voxels of one scan; the default is 4 GiB of int16.
        archive_bytes: Most bytes that the members of a zip may have together, unpacked.
        archive_members: Most members of a zip.
        gap_mm: Widest distance between two neighbouring slices that is repaired by interpolation,
            in mm.
    """

    voxels: int = 2**31
    archive_bytes: int = 4 * 2**30
    archive_members: int = 20_000
    gap_mm: float = 10.0


DEFAULT = Limits()
