"""The cache: each scan is read, and its lungs found, once.

What a network is fed with lies in a TFRecord a scan.

A record's name is a hash of the bytes of the scan, of the masks that go into it and of every
setting, so that a changed scan or setting never meets what was made before. A record counts once
its `.json` is there, which is written last.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tf_covid.atomic import (
    make_folder,
    remove_leftovers,
    replacing,
    temporary_directory,
    write_text,
)
from tf_covid.cohort.cases import case_of_row
from tf_covid.cohort.likeness import near_key
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.planes import (
    FINER,
    PLANE_SIDE,
    Planes,
    clip_preprocessor,
    tissue_classes,
    whole_slices,
    whole_volume,
)
from tf_covid.cohort.workers import results
from tf_covid.errors import CohortError, ModelError, OutputError, ScanRefused
from tf_covid.lungs import LungReading
from tf_covid.result import Lobe, QualityFlag
from tf_covid.scan import (
    Case,
    Scan,
    check_lesions,
    check_lungs,
    mask_files,
    read_labels,
    read_mask,
)
from tf_covid.severity import LOBES
from tf_covid.tissues import TISSUES
from tf_covid.weights import Preprocessing, quarantine

if TYPE_CHECKING:
    import tensorflow as tf

#: Part of each record's name; a change of what a record holds, or of how it is made, is another
#: number here.
FORMAT = 2

#: Part of the name of each record that was made behind a lobe model; a change of how it gates is
#: another number here.
_GATE = 2

#: Stands in the `.json` of each record whose lobes were read; a change of how they are read is
#: another number here, and reads them anew. No part of a record's name.
READING = 2

#: The largest working grid (D, H, W) of a training; records on a network's own grid may be larger.
LARGEST_GRID = (64, 192, 192)

#: Free space that is left on the disk, in bytes.
_RESERVE = 200 << 20

Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class CacheSpec:
    """What is kept of a scan.

    Args:
        kind: "clips": the kept slices within the lung box, with the lungs that the lung model finds
            (for classifiers). "planes": whole slices, evenly chosen, with the lungs of the manifest
            (for a lung model). "volumes": the whole scan, with the lobes and tissues of the
            manifest (for a lobe model).
        grid: Frames, height and width of what is kept.
        preprocessing: Slice rule and box.
        lungs: The lung model, by name or file.
        lungs_sha256: sha256 of the lung model's file.
        lesions: Whether the lesion masks of the manifest are kept, too.
        lobes: The lobe model that gates the lung model, by name or file; "none" without one.
        lobes_sha256: sha256 of the lobe model's file; "" without one.
        read: Whether the lobes are read, too, where clips are made behind a lobe model. It decides
            nothing of what a network is fed with.
    """

    kind: Literal["clips", "planes", "volumes"]
    grid: tuple[int, int, int]
    preprocessing: Preprocessing
    lungs: str
    lungs_sha256: str
    lesions: bool = False
    lobes: str = "none"
    lobes_sha256: str = ""
    read: bool = True

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise CohortError(f"the sides of the working grid must be positive, not {self.grid}")

    @property
    def reads_lobes(self) -> bool:
        """Whether a record says what was read off the lobes."""
        return self.read and self.kind == "clips" and bool(self.lobes_sha256)

    def settings(self) -> list[Any]:
        """All that decides what a record holds, besides the scan.

        Window and input scaling come after the cache.
        """
        if self.kind == "volumes":
            return [
                FORMAT,
                self.kind,
                self.grid,
                FINER,
                PLANE_SIDE,
            ]  # no lung model has a say in these
        rule = self.preprocessing.model_dump(include={"slice_minimum", "box", "box_margin"})
        gate = [self.lobes_sha256, _GATE] if self.lobes_sha256 else []
        return [FORMAT, self.kind, self.grid, rule, self.lungs_sha256, self.lesions, *gate]

    def bytes_each(self) -> int:
        """Size of a record; of one with compressed labels, more than any had."""
        cells = int(np.prod(self.grid))
        if self.kind == "volumes":
            return 3 * cells + 256
        return 2 * cells + (1 + self.lesions) * -(-cells // 8) + 256


@dataclass(frozen=True)
class CacheRecord:
    """A record that is there.

    Args:
        case: Name of the case.
        path: The TFRecord.
        fingerprints: What must not be on both sides of a fold, as hashes: "pixels", and "study" and
            "patient" of a DICOM header.
        quality_flags: Codes of what was noticed about the scan and its lung mask.
        shape: Shape of the scan, (D, H, W).
        kept: Number of slices that the record was made of.
        lobes: Volume, involvement and score of the five lobes, as `infer` reads them behind the
            same lung models; None where they were not read, or the lobe model saw none.
        involvement_percent: Mean involvement of both lungs, likewise; None where it was not read.
    """

    case: str
    path: Path
    fingerprints: dict[str, str]
    quality_flags: tuple[str, ...]
    shape: tuple[int, int, int]
    kept: int
    lobes: tuple[Lobe, ...] | None = None
    involvement_percent: float | None = None


@dataclass(frozen=True)
class Filled:
    """The records of a cohort, and why a scan has none."""

    records: dict[str, CacheRecord]
    skipped: dict[str, str]


def fill(
    rows: Sequence[ManifestRow],
    folder: Path,
    cache_spec: CacheSpec,
    *,
    workers: int = 1,
    max_skipped: int = 0,
    progress: Progress | None = None,
) -> Filled:
    """Make the records that are not there yet.

    Args:
        rows: The cohort.
        folder: The cache; made if needed. Several processes may fill it.
        cache_spec: What is kept of a scan.
        workers: Number of processes; 1 works in this one.
        max_skipped: Most scans that may be refused.
        progress: Wraps the rows, to show how far the work is.

    Raises:
        CohortError: If more scans are refused, or a process died.
        OutputError: If the disk has too little space, or cannot be written to.
    """
    make_folder(folder)
    remove_leftovers(folder)
    _check_space(rows, folder, cache_spec)
    records: dict[str, CacheRecord] = {}
    skipped: dict[str, str] = {}
    done = results(
        functools.partial(make, folder=folder, cache_spec=cache_spec), rows, min(workers, len(rows))
    )
    for row in progress(rows) if progress else rows:
        outcome = next(done)
        if isinstance(outcome, CacheRecord):
            records[row.case] = outcome
        else:
            skipped[row.case] = outcome
    if len(skipped) > max_skipped:
        facts = "".join(f"\n{case}: {why}" for case, why in skipped.items())
        raise CohortError(
            f"{len(skipped)} of {len(rows)} scans cannot be used, and --max-skipped allows"
            f" {max_skipped}:{facts}"
        )
    return Filled(records, skipped)


def needed_bytes(count: int, cache_spec: CacheSpec) -> int:
    """Space that the records of so many scans take."""
    return count * cache_spec.bytes_each()


def _check_space(rows: Sequence[ManifestRow], folder: Path, cache_spec: CacheSpec) -> None:
    needed, free = needed_bytes(len(rows), cache_spec), shutil.disk_usage(folder).free
    if needed + _RESERVE > free:
        # Which records are there already, only their names tell, and these take reading the scans:
        # others may have filled this cache, too.
        needed = needed_bytes(sum(_lacks(row, folder, cache_spec) for row in rows), cache_spec)
    if needed and needed + _RESERVE > free:
        raise OutputError(
            f"{folder}: the cache needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free"
        )


def _lacks(row: ManifestRow, folder: Path, cache_spec: CacheSpec) -> bool:
    """Whether a record is still to be made of this scan.

    One that will be refused counts, too: nobody knows yet.
    """
    try:
        _, fingerprint, path = _located(row, folder, cache_spec)
    except (ScanRefused, ModelError, OSError):
        return False
    return not fingerprint or kept_record(row.case, path, cache_spec) is None


def make(row: ManifestRow, folder: Path, cache_spec: CacheSpec) -> CacheRecord | str:
    """One record: the one that is there, a new one, or why there is none.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        if cache_spec.kind == "planes" and row.lungs is None:
            return "no_lungs: the manifest names no lung mask"
        if cache_spec.kind == "volumes" and row.lobes is None:
            return "no_lobes: the manifest names no labels of the lobes"
        case, fingerprint, path = _located(row, folder, cache_spec)
        # An input that cannot be read twice has no fingerprint, and matches nothing.
        if fingerprint and (record := kept_record(row.case, path, cache_spec)):
            return record
        scan = case.read()
        if scan.fingerprint != fingerprint:
            return "changed: the scan was written to while it was read"
        return _write(row, scan, path, cache_spec)
    except (ScanRefused, ModelError) as refusal:
        return str(refusal)
    except OSError as error:
        return f"unreadable: {error.strerror or type(error).__name__}"


def _located(row: ManifestRow, folder: Path, cache_spec: CacheSpec) -> tuple[Case, str, Path]:
    """A scan, the hash of its bytes ("" if unknown), and where its record is or will be.

    Raises:
        ScanRefused, ModelError, OSError: If it or a mask cannot be read.
    """
    case = case_of_row(row)
    of_kind = {"clips": (), "planes": (row.lungs,), "volumes": (row.lobes, row.tissues)}
    masks = [path for path in (*of_kind[cache_spec.kind], _lesions(row, cache_spec)) if path]
    fingerprint = case.fingerprint()
    facts = [
        fingerprint,
        [[quarantine.sha256(file) for file in mask_files(path)] for path in masks],
        cache_spec.settings(),
    ]
    return (
        case,
        fingerprint,
        folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.tfrecord",
    )


def _lesions(row: ManifestRow, cache_spec: CacheSpec) -> Path | None:
    return row.lesions if cache_spec.lesions else None


def kept_record(case: str, path: Path, cache_spec: CacheSpec) -> CacheRecord | None:
    """The record at a path; None where it is not there as a whole.

    One whose lobes were not read, or otherwise than now, and should be, counts as not there: it is
    made anew under the same name.

    Args:
        case: Name of the case.
        path: The TFRecord.
        cache_spec: What is kept.
    """
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not path.is_file() or path.stat().st_size != facts.pop("bytes"):
            return None
        d, h, w = facts.pop("shape")
        if cache_spec.reads_lobes and facts.get("reading") != READING:
            return None
        lobes = facts.get("lobes")
        return CacheRecord(
            case,
            path,
            facts["fingerprints"],
            tuple(facts["quality_flags"]),
            (d, h, w),
            facts["kept"],
            None if lobes is None else tuple(Lobe(**lobe) for lobe in lobes),
            facts.get("involvement_percent"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _secret(folder: Path) -> bytes:
    """The cache's own random bytes, made once, whoever comes first."""
    path = folder / ".secret"
    if not path.exists():
        with temporary_directory(path) as made:
            fresh = made / path.name
            fresh.touch(0o600)
            fresh.write_bytes(secrets.token_bytes(32))
            with suppress(FileExistsError):
                os.link(fresh, path)
    return path.read_bytes()


@dataclass(frozen=True)
class Masks:
    """What is known of a scan's voxels, on its own grid; None where nobody drew it.

    Args:
        lungs: bool (D, H, W).
        lesions: bool (D, H, W), the diseased lung.
        classes: uint8 (D, H, W), see `planes.tissue_classes`.
    """

    lungs: np.ndarray | None = None
    lesions: np.ndarray | None = None
    classes: np.ndarray | None = None


def _write(row: ManifestRow, scan: Scan, path: Path, cache_spec: CacheSpec) -> CacheRecord:
    """The record of a scan with the masks that the manifest names."""
    lesions = _lesions(row, cache_spec)
    with _enough_memory():
        lungs, doubts = _own_lungs(row, scan) if cache_spec.kind == "planes" else (None, ())
        classes = None
        if cache_spec.kind == "volumes":
            classes, doubts = _own_classes(row, scan)
        lesion_mask = read_mask(lesions, scan, may_be_empty=True) if lesions else None
        if lesion_mask is not None:
            check_lesions(lesion_mask, scan, lungs)
    return write_record(
        row.case, scan, Masks(lungs, lesion_mask, classes), path, cache_spec, doubts=doubts
    )


def write_record(
    case: str,
    scan: Scan,
    masks: Masks,
    path: Path,
    cache_spec: CacheSpec,
    *,
    doubts: Sequence[QualityFlag] = (),
) -> CacheRecord:
    """The record of a scan that is in memory, whoever drew its masks.

    Args:
        case: Name of the case.
        scan: The scan.
        masks: Its masks; those that the record has no place for are left out.
        path: The TFRecord; its `.json` is written beside it.
        cache_spec: What is kept.
        doubts: What is doubtful about the masks.

    Raises:
        ScanRefused: If there are no lungs in it, or it is too large for the memory.
        OutputError: If it cannot be written.
    """
    import tensorflow as tf

    secret = _secret(path.parent)
    lesions = masks.lesions if cache_spec.lesions else None
    reading: LungReading | None = None
    with _enough_memory():
        planes: Planes
        if cache_spec.kind == "volumes":
            if masks.classes is None:
                raise ScanRefused([QualityFlag("no_lobes", "error", "There are no lobes.")])
            planes, kept = whole_volume(scan, masks.classes, cache_spec.grid), scan.shape[0]
        elif cache_spec.kind == "planes":
            if masks.lungs is None:
                raise ScanRefused([QualityFlag("no_lungs", "error", "There is no lung mask.")])
            planes = whole_slices(scan, masks.lungs, lesions, cache_spec.grid)
            kept = scan.shape[0]
        else:
            planes, kept, reading = clip_preprocessor(
                cache_spec.grid, cache_spec.preprocessing, cache_spec.lungs, cache_spec.lobes
            ).clip(scan, lesions, read=cache_spec.reads_lobes)
    fingerprints = {"pixels": hashlib.sha256(scan.hu.tobytes()).hexdigest()}
    ids = {
        "study": scan.identifiers.get("study_uid"),
        "patient": near_key(scan.identifiers.get("patient_id", "")),
    }
    for name, value in ids.items():
        # Hashed with the cache's secret: all numbers of a hospital are soon tried against a plain
        # hash.
        if value:
            fingerprints[name] = hmac.new(secret, value.encode(), "sha256").hexdigest()
    codes = tuple(flag.code for flag in (*scan.quality_flags, *doubts))
    record = CacheRecord(
        case,
        path,
        fingerprints,
        codes,
        scan.shape,
        kept,
        reading.lobes if reading else None,
        reading.lungs.involvement_percent if reading else None,
    )
    try:
        with replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
            # The same bytes in every process: a message keeps its parts in no order of its own.
            writer.write(_example(planes).SerializeToString(deterministic=True))
    except tf.errors.OpError as error:
        raise OutputError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error
    facts = asdict(record) | {"bytes": path.stat().st_size, "reading": reading and READING}
    del facts["case"], facts["path"]  # the same scan may be called otherwise tomorrow
    write_text(json.dumps(facts), path.with_suffix(".json"))
    return record


@contextmanager
def _enough_memory() -> Iterator[None]:
    """A scan that does not fit into the memory is refused like any other that is no good."""
    import tensorflow as tf

    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise ScanRefused(
            [QualityFlag("too_large", "error", "There is not enough memory for this scan.")]
        ) from error


def _own_lungs(row: ManifestRow, scan: Scan) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """The lungs of the manifest, bool (D, H, W), and what is doubtful about them.

    Raises:
        ScanRefused: If there are none, or they are no mask of this scan's lungs.
    """
    if row.lungs is None:
        raise ScanRefused([QualityFlag("no_lungs", "error", "The manifest names no lung mask.")])
    mask = read_mask(row.lungs, scan)
    return mask, check_lungs(mask, scan)


def _own_classes(row: ManifestRow, scan: Scan) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
    """The classes of the manifest's labels, uint8 (D, H, W), and what is doubtful about the lobes.

    Raises:
        ScanRefused: If there are no lobes, or a file holds no labels of this scan.
    """
    if row.lobes is None:
        raise ScanRefused([QualityFlag("no_lobes", "error", "The manifest names no lobes.")])
    lobes = read_labels(row.lobes, scan, len(LOBES))
    doubts = check_lungs(lobes > 0, scan)
    tissues = read_labels(row.tissues, scan, max(TISSUES.values())) if row.tissues else None
    return tissue_classes(lobes, tissues), doubts


def _example(planes: Planes) -> tf.train.Example:
    """HU as int16, masks packed to bits, labels compressed; a mask that nobody drew is empty."""
    import tensorflow as tf

    def feature(values: np.ndarray | None) -> tf.train.Feature:
        packed = (
            b""
            if values is None
            else np.packbits(values).tobytes()
            if values.dtype == bool
            else zlib.compress(values.tobytes(), 1)
            if values.dtype == np.uint8
            else values.tobytes()
        )
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[packed]))

    return tf.train.Example(
        features=tf.train.Features(feature={key: feature(part) for key, part in planes.items()})
    )
