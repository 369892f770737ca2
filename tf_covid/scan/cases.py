"""Inputs → cases: which patients and studies lie in a path, what they are called, and how each is read."""

from __future__ import annotations

import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan import archive, checks, dicom
from tf_covid.scan.checks import refusal
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.names import case_names
from tf_covid.scan.quiet import quiet
from tf_covid.scan.scan import Scan
from tf_covid.scan.source import FileSource, Source, fingerprint
from tf_covid.scan.volume import Reading
from tf_covid.scan.volumes import is_volume, read_volume

#: An answer of ours holds both of these, and files of no other name than those below.
_ANSWER = {"result.json", "report.html"}
_ANSWER_STEMS = {"result", "report", "montage", "lungs", "attention"}
#: What a killed run leaves beside its answers.
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.(old|partial)")


@dataclass(frozen=True)
class Case:
    """One patient's study, or one volume file. Nothing is decoded before `read`.

    Args:
        name: Safe as a folder name, unique among the cases found together, without any identifier of the patient.
        path: The input: a file, a folder or a zip.
        members: Names of the files of `path` that belong to this case; empty if `path` is the file itself.
        instances: Their DICOM headers; empty for volume files.
        quality_flags: What was noticed while looking; with an error among them, `read` refuses.
    """

    name: str
    path: Path
    members: tuple[str, ...] = ()
    instances: tuple[dicom.Instance, ...] = field(default=(), repr=False)
    quality_flags: tuple[QualityFlag, ...] = ()
    limits: Limits = DEFAULT

    def fingerprint(self) -> str:
        """sha256 (hex) over the raw bytes of the files that belong to this case; empty if they cannot be read."""
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
        if any(flag.level == "error" for flag in self.quality_flags):
            raise ScanRefused(self.quality_flags)
        try:
            with quiet(), self._sources() as sources:
                reading = self._reading(sources)
                mark = fingerprint(sources)
        except ScanRefused as error:
            raise ScanRefused((*error.quality_flags, *self.quality_flags)) from None
        except (OSError, *archive.ERRORS):
            message = "The input could not be read to its end: it is damaged, or it went away."
            raise ScanRefused((QualityFlag("truncated_file", "error", message), *self.quality_flags)) from None
        except MemoryError:
            message = "There is not enough memory for this scan."
            raise ScanRefused((QualityFlag("too_large", "error", message), *self.quality_flags)) from None
        quality_flags = self.quality_flags + reading.quality_flags + checks.gate(reading.hu, reading.source.axes[2])
        if any(flag.level == "error" for flag in quality_flags):
            raise ScanRefused(quality_flags)
        return Scan(
            case=self.name,
            hu=reading.hu,
            affine=reading.affine,
            source=reading.source,
            fingerprint=mark,
            quality_flags=quality_flags,
            interpolated=reading.interpolated,
            chosen_because=reading.chosen_because,
            identifiers=reading.identifiers or {},
        )

    @contextmanager
    def _sources(self) -> Iterator[list[Source]]:
        if self.path.is_dir():
            yield [FileSource.of(self.path / name, self.path) for name in self.members]
        elif self.members:
            wanted = set(self.members)
            with archive.open_archive(self.path, self.limits) as members:
                yield [member for member in members if member.name in wanted]
        else:
            yield [FileSource.of(self.path)]

    def _reading(self, sources: Sequence[Source]) -> Reading:
        if self.instances:
            return dicom.read_study(self.instances, {source.name: source for source in sources}, self.limits)
        return read_volume(sources, self.limits)


def find_cases(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> list[Case]:
    """The cases in a path, from headers only.

    Args:
        path: A DICOM folder, file or DICOMDIR, a zip of one, a NIfTI, NRRD or MHA file, or a folder of those.
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
    except (OSError, *archive.ERRORS):
        message = "The input cannot be read: it is damaged, or access is denied."
        return [_refused(path, (QualityFlag("unreadable", "error", message),), limits)]


def _find(path: Path, limits: Limits) -> list[Case]:
    if not path.exists():
        raise refusal("not_found", "There is no such file or folder.")
    if path.is_dir():
        return _cases(path, _walk(path), limits)
    if not stat.S_ISREG(path.stat().st_mode):
        raise refusal("not_found", "The path is neither a regular file nor a folder.")
    lower = path.name.lower()
    if is_volume(path.name):
        return [Case(case_names(path, [""], [()])[0], path, limits=limits)]
    if path.name.upper() == "DICOMDIR":
        # The index is not believed: the folder it lies in is searched, which finds everything it points to and more.
        return _cases(path.parent, _walk(path.parent), limits)
    if lower.endswith(".zip") or zipfile.is_zipfile(path):
        with archive.open_archive(path, limits) as members:
            return _cases(path, members, limits)
    if path.stat().st_size == 0:
        raise refusal("empty_file", "The file is empty.")
    return _cases(path, [FileSource.of(path)], limits)


def _walk(folder: Path) -> list[Source]:
    """Every regular file below, in order of its name, without our own answers, whole or half-written.

    Links to folders are not followed: they may run in circles.
    """
    found: list[Source] = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not _HALF_WRITTEN.fullmatch(name))
        if _is_answer(files):
            continue
        for name in sorted(files):
            path = Path(root, name)
            if path.is_file():
                found.append(FileSource.of(path, folder))
    return found


def _is_answer(files: Sequence[str]) -> bool:
    stems = {name.partition(".")[0] for name in files if not name.startswith(".")}
    return _ANSWER.issubset(files) and stems <= _ANSWER_STEMS


def _cases(path: Path, sources: Sequence[Source], limits: Limits) -> list[Case]:
    """Group what the sources hold: DICOM by patient and study; else each volume file is a case."""
    instances: list[dicom.Instance] = []
    volumes: list[Source] = []
    foreign = damaged = 0
    for source in sources:
        if is_volume(source.name) and not _hidden(source):
            volumes.append(source)
            continue
        try:
            instance = dicom.read_header(source)
        except dicom.Damaged:
            damaged += 1
            continue
        if instance is None:
            foreign += 1
        else:
            instances.append(instance)
    if not instances:
        if volumes and not damaged:
            return _volume_cases(path, volumes, foreign, limits)
        raise _nothing(len(sources), damaged)
    quality_flags = _bystanders(foreign + len(volumes), damaged)
    studies: dict[tuple[str, str], list[dicom.Instance]] = {}
    for instance in instances:
        patient = instance.patient_id or instance.patient_name
        studies.setdefault((patient, instance.study_uid), []).append(instance)
    groups = sorted(studies.values(), key=lambda group: min(instance.name for instance in group))
    parts = [_folder([instance.name for instance in group]) for group in groups]
    names = case_names(path, parts, groups)
    single = path.is_file() and not zipfile.is_zipfile(path)
    return [
        Case(name, path, () if single else tuple(one.name for one in group), tuple(group), quality_flags, limits)
        for name, group in zip(names, groups, strict=True)
    ]


def _volume_cases(path: Path, volumes: Sequence[Source], foreign: int, limits: Limits) -> list[Case]:
    parts = [source.name for source in volumes] if len(volumes) > 1 else [""]
    names = case_names(path, parts, [()] * len(volumes))
    quality_flags = _bystanders(foreign, 0)
    return [
        Case(name, path, (source.name,), quality_flags=quality_flags, limits=limits)
        for name, source in zip(names, volumes, strict=True)
    ]


def _hidden(source: Source) -> bool:
    """macOS leaves `._name` and `__MACOSX/` beside every file that it packs."""
    parts = PurePosixPath(source.name)
    return parts.name.startswith("._") or "__MACOSX" in parts.parts


def _folder(names: Sequence[str]) -> str:
    """The folder that all of these files lie in, relative to the input."""
    parents = [PurePosixPath(name).parent.as_posix() for name in names]
    common = os.path.commonpath(parents) if parents else ""
    return "" if common == "." else common


def _bystanders(foreign: int, damaged: int) -> tuple[QualityFlag, ...]:
    quality_flags = []
    if foreign:
        message = f"{foreign} other file(s) in the input were left alone."
        quality_flags.append(QualityFlag("foreign_files", "info", message, foreign))
    if damaged:
        message = f"{damaged} DICOM file(s) have a header that cannot be read; they were left out."
        quality_flags.append(QualityFlag("unreadable_files", "warning", message, damaged))
    return tuple(quality_flags)


def _nothing(count: int, damaged: int) -> ScanRefused:
    if damaged:
        message = f"No DICOM header could be read: {damaged} of {count} file(s) are cut off, damaged or not accessible."
        return refusal("truncated_file", message, damaged)
    return refusal("no_scan", f"There is no scan among the {count} file(s) of the input.", count)


def _refused(path: Path, quality_flags: tuple[QualityFlag, ...], limits: Limits) -> Case:
    return Case(case_names(path, [""], [()])[0], path, quality_flags=quality_flags, limits=limits)


def read(path: str | os.PathLike[str], limits: Limits = DEFAULT) -> Scan:
    """The one case in a path.

    Raises:
        ScanRefused: With coded quality flags; `several_cases` if the path holds more than one.
    """
    cases = find_cases(path, limits)
    if len(cases) == 1:
        return cases[0].read()
    counts = Counter("study" if case.instances else "file" for case in cases)
    kinds = " and ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(counts.items())).replace(
        "studys", "studies"
    )
    raise refusal("several_cases", f"The input holds {kinds}; find_cases() gives each of them.", len(cases))
