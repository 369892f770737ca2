"""Volume files of every format but DICOM: which names they have, and how one is opened."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import PurePosixPath

from tf_covid.scan import metaimage, nifti, nifti_header, nrrd
from tf_covid.scan.checks import refusal
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import DiskFile, ScanFile
from tf_covid.scan.volume import LoadedVolume, RawVolume, load_volume

#: How the names of volume files end, in lower case; the `.img`, `.raw` or `.zraw` of a header is no
#: volume of its own.
VOLUME_NAMES = (*nifti.NAMES, *nrrd.NAMES, *metaimage.NAMES)

_OPENERS = {
    "NIfTI": nifti.open_nifti,
    "NRRD": nrrd.open_nrrd,
    "MetaImage": metaimage.open_metaimage,
}
_ENDINGS = {"NIfTI": nifti.NAMES, "NRRD": nrrd.NAMES, "MetaImage": metaimage.NAMES}
#: Names of headers whose voxels lie in another file.
_HEADERS = (".hdr", ".nhdr", ".mhd")
#: How much of a file is looked at to tell its format.
HEAD_BYTES = 4096


def is_volume(name: str) -> bool:
    """Whether a file is a volume file, by its name."""
    return name.lower().endswith(VOLUME_NAMES)


def kind_of(head: bytes, name: str = "") -> str | None:
    """The format that a file's first bytes show.

    "NIfTI" (with Analyze 7.5 in a `.hdr`), "NRRD" or "MetaImage".

    Args:
        head: The first `HEAD_BYTES` bytes, compressed or not.
        name: Of the file: Analyze has no magic, so that it is believed for `.hdr` only.
    """
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        except zlib.error:
            return None
    if head.startswith(b"NRRD000"):
        return "NRRD"
    header = nifti_header.parse(head[: nifti_header.HEADER_BYTES])
    if header is not None and (header.kind != "analyze" or name.lower().endswith(".hdr")):
        return "NIfTI"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head):
        return "MetaImage"
    return None


def data_file_of(source: ScanFile) -> str | None:
    """The bare name of the file beside `source` that holds its voxels.

    None if `source` holds them itself.

    Raises:
        ScanRefused: If the header cannot be read, or names anything but one file in its own folder.
    """
    name = PurePosixPath(source.name).name
    lower = name.lower()
    if lower.endswith(".hdr"):
        return (
            f"{name[:-4]}{'.IMG' if name.endswith('.HDR') else '.img'}"
            if nifti.is_pair(source)
            else None
        )
    if lower.endswith(".nhdr"):
        return _bare(nrrd.data_file_field(source))
    if lower.endswith(".mhd"):
        return _bare(metaimage.data_file_field(source))
    return None


def _bare(name: str | None) -> str | None:
    """A data file is one file in the header's own folder: no path, no list and no pattern."""
    if name is None:
        return None
    if name.upper().split()[:1] == ["LIST"] or "%" in name:
        raise refusal(
            "detached_data",
            "The header spreads its voxels over several files (list or pattern); join them.",
        )
    plain = name.removeprefix("./")
    if not plain or plain.startswith(".") or re.search(r"[/\\:\x00-\x1f]", plain):
        message = (
            "The header points to data outside of its own folder; put the data file beside it, by"
            " its bare name."
        )
        raise refusal("detached_data", message)
    return plain


def _data(sources: Sequence[ScanFile]) -> ScanFile | None:
    """The data file of a header: handed over, or found beside it.

    Never a link, never in another folder.
    """
    header = sources[0]
    if not header.name.lower().endswith(_HEADERS) or (name := data_file_of(header)) is None:
        return None
    folder = PurePosixPath(header.name).parent
    for source in sources[1:]:
        if PurePosixPath(source.name) == folder / name:
            return _no_link(source)
    if isinstance(header, DiskFile) and (path := header.path.with_name(name)).is_file():
        return _no_link(
            replace(header, path=path, name=(folder / name).as_posix(), size=path.stat().st_size)
        )
    message = (
        "The voxels lie in another file that the header names; it is not beside the header. Give"
        " both together."
    )
    raise refusal("detached_data", message)


def _no_link(source: ScanFile) -> ScanFile:
    if isinstance(source, DiskFile) and source.path.is_symlink():
        raise refusal(
            "detached_data",
            "The data file beside the header is a link to another place; links are not read.",
        )
    return source


@contextmanager
def open_volume(sources: Sequence[ScanFile], limits: Limits = DEFAULT) -> Iterator[RawVolume]:
    """The volume in a file, or in a header and its data file.

    Args:
        sources: The header, and the data file that it names (`data_file_of`), if any.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: See the readers of the formats.
    """
    source = sources[0]
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    lower = source.name.lower()
    named = next((kind for kind, endings in _ENDINGS.items() if lower.endswith(endings)), None)
    with source.open() as stream:
        results = kind_of(stream.read(HEAD_BYTES), source.name)
    if named and results and results != named:
        ending = _ENDINGS[results][0]
        message = (
            f"The file is {results}, though its name ends like {named}'s; rename it to end in"
            f" {ending}."
        )
        raise refusal(f"not_{'mha' if named == 'MetaImage' else named.lower()}", message)
    if (kind := named or results) is None:
        raise refusal("not_a_volume", "The file is none of NIfTI, NRRD and MetaImage.")
    with _OPENERS[kind](source, _data(sources), limits) as stored:
        yield stored


def read_volume(sources: Sequence[ScanFile], limits: Limits = DEFAULT) -> LoadedVolume:
    """HU of a volume file.

    Args:
        sources: Files of the input, as for `open_volume`.
        limits: Bounds on sizes.

    Raises:
        ScanRefused: See the readers of the formats.
    """
    with open_volume(sources, limits) as stored:
        return load_volume(stored, "The only volume of the file.")
