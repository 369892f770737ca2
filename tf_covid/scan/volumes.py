"""Volume files of every format but DICOM, behind one door: which names they have, and how one is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tf_covid.scan import itk, nifti
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import Source
from tf_covid.scan.volume import Reading, Stored, read_stored

#: How the names of volume files end, in lower case.
VOLUME_NAMES = (*nifti.NAMES, *itk.NAMES)


def is_volume(name: str) -> bool:
    """Whether a file is a volume file, by its name."""
    return name.lower().endswith(VOLUME_NAMES)


def data_file_of(source: Source) -> str | None:
    """The bare name of the file beside `source` that holds its voxels; None if `source` holds them itself.

    Raises:
        ScanRefused: If the header cannot be read, or names anything but one file in its own folder.
    """
    return None


@contextmanager
def open_volume(sources: Sequence[Source], limits: Limits = DEFAULT) -> Iterator[Stored]:
    """The volume in a file, or in a header and its data file.

    Args:
        sources: The header, and the data file that it names (`data_file_of`), if any.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: See the readers of the formats.
    """
    opener = nifti.open_nifti if sources[0].name.lower().endswith(nifti.NAMES) else itk.open_itk
    with opener(sources[0], limits) as stored:
        yield stored


def read_volume(sources: Sequence[Source], limits: Limits = DEFAULT) -> Reading:
    """HU of a volume file.

    Args:
        sources: As for `open_volume`.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: See the readers of the formats.
    """
    with open_volume(sources, limits) as stored:
        return read_stored(stored, "The only volume of the file.")
