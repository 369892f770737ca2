"""Inputs → cases: which patients and studies lie in a path, and how each is named and read."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan import archive, checks, dicom
from tf_covid.scan.archive import Members, looks_like_zip, open_zip
from tf_covid.scan.checks import refusal
from tf_covid.scan.contents import ARCHIVE_NAMES, Contents, look, volume_of
from tf_covid.scan.folder import walk
from tf_covid.scan.leftovers import Leftovers, what_it_is
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.names import case_names, unique
from tf_covid.scan.quiet import quiet
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import DiskFile, ScanFile, fingerprint
from tf_covid.scan.tape import gzip_holds_tar, looks_like_tar, open_tar
from tf_covid.scan.torn import torn_flags
from tf_covid.scan.volume import LoadedVolume
from tf_covid.scan.volumes import is_volume, read_volume

_HEAD_BYTES = 512
_NO_SCAN = frozenset({"no_scan"})


@dataclass(frozen=True)
class Case:
    """One patient's study, or one volume file. Nothing is decoded before `read`.

    Args:
        name: Safe as a folder name, unique among the cases found together, without any identifier
            of the patient.
        path: The input: a file, a folder or an archive.
        members: Names of the files that belong to this case, in `path` or, if that is a header,
            beside it; empty if `path` is the only file.
        instances: DICOM headers of the images; empty for volume files.
        quality_flags: What was noticed while looking; with an error among them, `read` refuses.
        limits: Bounds on sizes and repairs.
    """

    name: str
    path: Path
    members: tuple[str, ...] = ()
    instances: tuple[dicom.Instance, ...] = field(default=(), repr=False)
    quality_flags: tuple[QualityFlag, ...] = ()
    limits: Limits = DEFAULT

    @property
    def refused(self) -> bool:
        """Whether it is known already that `read` refuses."""
        return any(flag.level == "error" for flag in self.quality_flags)

    def fingerprint(self) -> str:
        """sha256 (hex) over the raw bytes of the case's files; empty if they cannot be read."""
        try:
            with self._sources() as sources:
                return fingerprint(sources)
        except (ScanRefused, OSError, *archive.ERRORS):
            return ""

    def read(self) -> Scan:
        """The scan, checked.

        Raises:
            ScanRefused: With a coded quality flag for everything that forbids an honest answer.
        """
        if self.refused:
            raise ScanRefused(self.quality_flags)
        try:
            with quiet(), self._sources() as sources:
                reading = self._reading(sources)
                of_bytes = fingerprint(sources)
        except ScanRefused as error:
            raise ScanRefused((*error.quality_flags, *self.quality_flags)) from None
        except (OSError, *archive.ERRORS):
            message = "The input could not be read to its end: it is damaged, or it went away."
            raise ScanRefused(
                (QualityFlag("truncated_file", "error", message), *self.quality_flags)
            ) from None
        except MemoryError:
            message = "There is not enough memory for this scan."
            raise ScanRefused(
                (QualityFlag("too_large", "error", message), *self.quality_flags)
            ) from None
        quality_flags = (
            self.quality_flags
            + reading.quality_flags
            + checks.gate(reading.hu, self._slice_axis(reading))
        )
        if any(flag.level == "error" for flag in quality_flags):
            raise ScanRefused(quality_flags)
        return Scan(
            case=self.name,
            hu=reading.hu,
            affine=reading.affine,
            source=reading.source,
            fingerprint=of_bytes,
            quality_flags=quality_flags,
            interpolated=reading.interpolated,
            chosen_because=reading.chosen_because,
            identifiers=reading.identifiers or {},
            instance_numbers=reading.instance_numbers,
            slice_thickness_mm=reading.slice_thickness_mm,
            source_images=reading.source_images,
            source_series=reading.source_series,
        )

    def _slice_axis(self, reading: LoadedVolume) -> int:
        """The canonical axis that the slices were acquired along.

        Where no header states it, the axis of the widest spacing.
        """
        stored_last = reading.source.axes[2]
        if self.instances:
            return stored_last
        spacing = np.linalg.norm(reading.affine[:3, :3], axis=0)
        return (
            int(np.argmax(spacing)) if spacing.max() > 1.01 * spacing[stored_last] else stored_last
        )

    @contextmanager
    def _sources(self) -> Iterator[list[ScanFile]]:
        """The files of this case, each exactly once.

        Raises:
            ScanRefused: `input_changed` if one of them is not there any more.
        """
        if not self.members:
            yield [DiskFile.of(self.path)]
        elif _is_archive(self.path):
            with _open_archive(self.path, self.limits) as members:
                results = {source.name: source for source in members.sources}
                if not results.keys() >= set(self.members):
                    raise refusal(
                        "input_changed",
                        "The archive has changed since its cases were found; start again.",
                    )
                yield [results[name] for name in self.members]
        else:
            folder = self.path if self.path.is_dir() else self.path.parent
            yield [DiskFile.of(folder / name, folder) for name in self.members]

    def _reading(self, sources: Sequence[ScanFile]) -> LoadedVolume:
        if self.instances:
            return dicom.read_study(
                self.instances, {source.name: source for source in sources}, self.limits
            )
        return read_volume(sources, self.limits)


def find_cases(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> list[Case]:
    """The cases in a path, from headers only.

    Args:
        path: A DICOM folder, file or DICOMDIR, a volume file (NIfTI, NRRD, MetaImage), a zip or tar
            of those, or a folder of any of them.
        limits: Bounds on sizes and repairs.

    Returns:
        At least one case: an input that cannot be read gives one whose `read` refuses and says why.
    """
    path = Path(path)
    try:
        with quiet():
            return _find(path, limits)
    except ScanRefused as error:
        return [_refused(path, error.quality_flags, limits)]
    except PermissionError:
        message = "The input cannot be read: access is denied."
    except (OSError, *archive.ERRORS):
        message = "The input cannot be read: it is damaged, or it went away."
    except MemoryError:
        return [
            _refused(
                path,
                (QualityFlag("too_large", "error", "There is not enough memory for this input."),),
                limits,
            )
        ]
    return [_refused(path, (QualityFlag("unreadable", "error", message),), limits)]


def _find(path: Path, limits: Limits) -> list[Case]:
    if not path.exists():
        what = (
            "The path is a link to nothing."
            if path.is_symlink()
            else "There is no such file or folder."
        )
        raise refusal("not_found", what)
    if path.is_dir():
        return _in_folder(path, limits)
    if not stat.S_ISREG(path.stat().st_mode):
        raise refusal("not_found", "The path is neither a regular file nor a folder.")
    if path.name.upper() == "DICOMDIR":
        # The index is not believed: the folder it lies in is searched, which finds everything it
        # points to and more.
        return _in_folder(path.parent, limits)
    if path.stat().st_size == 0:
        raise refusal("empty_file", "The file is empty.")
    if is_volume(path.name):
        return [_volume_file(path, limits)]
    if _is_archive(path):
        with _open_archive(path, limits) as members:
            contents = look(members.sources, members.left)
            if not contents.studies and not contents.volumes:
                raise _nothing(contents.left, len(members.sources))
            return _cases(path, contents, limits)
    source = DiskFile.of(path)
    contents = look([source], Leftovers())
    if not contents.studies:
        raise (
            _nothing(contents.left, 1)
            if contents.left.damaged
            else refusal("no_scan", what_it_is(source), 1)
        )
    (study,) = contents.studies
    return [Case(case_names(path, [""], [study])[0], path, (), study, (), limits)]


def _is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar: by its name, or else by how it begins."""
    if path.is_dir() or is_volume(path.name):
        return False
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if head[128:132] == b"DICM":
        return False
    return path.name.lower().endswith(ARCHIVE_NAMES) or looks_like_zip(head) or _is_tar(path, head)


def _is_tar(path: Path, head: bytes) -> bool:
    return looks_like_tar(head) or (head[:2] == b"\x1f\x8b" and gzip_holds_tar(path))


@contextmanager
def _open_archive(path: Path, limits: Limits) -> Iterator[Members]:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    named_tar = path.name.lower().endswith(ARCHIVE_NAMES) and not path.name.lower().endswith(".zip")
    tar = _is_tar(path, head) or (named_tar and not looks_like_zip(head))
    if tar and head[:2] != b"\x1f\x8b" and not looks_like_tar(head):
        raise refusal(
            "archive_damaged", "The file is not a tar archive, or its first head is damaged."
        )
    with open_tar(path, limits) if tar else open_zip(path, limits) as members:
        yield members


def _volume_file(path: Path, limits: Limits) -> Case:
    """A volume file by itself; its data file, if it has one, lies beside it."""
    source = DiskFile.of(path)
    volume = volume_of(
        source,
        lambda: {one.name: DiskFile.of(one) for one in path.parent.iterdir() if one.is_file()},
    )
    members = volume.members if len(volume.members) > 1 else ()
    return Case(case_names(path, [""], [()])[0], path, members, (), volume.quality_flags, limits)


def _in_folder(path: Path, limits: Limits) -> list[Case]:
    """The cases of a folder: of its files together, and of each archive in it."""
    sources, left = walk(path)
    archives = [source for source in sources if _is_archive_of_cases(source)]
    apart = {source.name for source in archives}
    contents = look([source for source in sources if source.name not in apart], left)
    own = bool(contents.studies or contents.volumes)
    known = {instance.sop_uid for study in contents.studies for instance in study} - {""}
    inner: list[Case] = []
    broken: list[Case] = []
    left = contents.left
    for source in archives:
        results = find_cases(source.path, limits)
        codes = {
            flag.code for case in results for flag in case.quality_flags if flag.level == "error"
        }
        if codes == _NO_SCAN:
            left += Leftovers(foreign=1)
        elif all(case.refused for case in results):
            broken += results
        elif all(
            case.instances and known.issuperset(one.sop_uid for one in case.instances)
            for case in results
        ):
            left += Leftovers(copies=1)
        else:
            inner += results
    if own and not inner:
        left += Leftovers(unread_archives=len(broken))
    else:
        inner += broken
    contents = dataclasses.replace(contents, left=left)
    if not own and not inner:
        raise _nothing(left, len(sources))
    flags = left.flags()
    inner = [dataclasses.replace(case, quality_flags=case.quality_flags + flags) for case in inner]
    cases = (_cases(path, contents, limits) if own else []) + inner
    names = unique([case.name for case in cases])
    return [dataclasses.replace(case, name=name) for case, name in zip(cases, names, strict=True)]


def _is_archive_of_cases(source: DiskFile) -> bool:
    name = PurePosixPath(source.name)
    return (
        name.name.lower().endswith(ARCHIVE_NAMES)
        and not name.name.startswith("._")
        and _is_archive(source.path)
    )


def _cases(path: Path, contents: Contents, limits: Limits) -> list[Case]:
    """A case for each study, and for each volume file."""
    groups = [*contents.studies, *(() for _ in contents.volumes)]
    parts = [_folder([instance.name for instance in study]) for study in contents.studies]
    parts += [volume.members[0] if len(groups) > 1 else "" for volume in contents.volumes]
    names = case_names(path, parts, groups)
    flags = contents.left.flags()
    studies = [
        Case(name, path, tuple(one.name for one in study), study, (*torn, *flags), limits)
        for name, study, torn in zip(
            names, contents.studies, torn_flags(contents.studies), strict=False
        )
    ]
    volumes = [
        Case(name, path, volume.members, (), (*volume.quality_flags, *flags), limits)
        for name, volume in zip(names[len(studies) :], contents.volumes, strict=True)
    ]
    return studies + volumes


def _folder(names: Sequence[str]) -> str:
    """The folder that all of these files lie in, relative to the input."""
    parents = [PurePosixPath(name).parent.as_posix() for name in names]
    common = os.path.commonpath(parents) if parents else ""
    return "" if common == "." else common


def _nothing(left: Leftovers, count: int) -> ScanRefused:
    if left.damaged:
        message = (
            f"No DICOM header could be read: {left.damaged} of {count} file(s) are cut off, damaged"
            " or not accessible."
        )
        return refusal("truncated_file", message, left.damaged)
    reasons = left.reasons()
    message = (
        f"There is no scan among the {count} file(s) of the"
        f" input{f': {reasons}' if reasons else ''}."
    )
    return refusal("no_scan", message, count)


def _refused(path: Path, quality_flags: tuple[QualityFlag, ...], limits: Limits) -> Case:
    return Case(case_names(path, [""], [()])[0], path, quality_flags=quality_flags, limits=limits)


def only_case(cases: Sequence[Case]) -> Case | None:
    """The one case of an input, or its one DICOM study beside volume files (masks, as a rule)."""
    if len(cases) == 1:
        return cases[0]
    studies = [case for case in cases if case.instances]
    if len(studies) != 1 or any(case.path != studies[0].path for case in cases):
        return None
    message = (
        f"{len(cases) - 1} volume file(s) beside the DICOM study were left alone; name them to read"
        " them."
    )
    flag = QualityFlag("volumes_beside", "warning", message, len(cases) - 1)
    return dataclasses.replace(studies[0], quality_flags=(*studies[0].quality_flags, flag))


def read(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> Scan:
    """The one case in a path; volume files beside a DICOM study are named by a flag of the scan.

    Raises:
        ScanRefused: With coded quality flags; `several_cases` if the path holds more than one.
    """
    cases = find_cases(path, limits)
    case = only_case(cases)
    if case is not None:
        return case.read()
    counts = Counter("study" if case.instances else "file" for case in cases)
    kinds = " and ".join(
        f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(counts.items())
    ).replace("studys", "studies")
    raise refusal(
        "several_cases", f"The input holds {kinds}; find_cases() gives each of them.", len(cases)
    )
