"""The cache: each scan is read, and its lungs found, once; what a network is fed with lies in a TFRecord a scan.

A record's name is a hash of the bytes of the scan, of the masks that go into it and of every setting, so that a changed
scan or setting never meets what was made before. A record counts once its `.json` is there, which is written last.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import multiprocessing
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tf_covid.atomic import replacing, write_text
from tf_covid.cohort.infer import case_of_row
from tf_covid.cohort.manifest import Row
from tf_covid.errors import CohortError, ModelError, OutputError, ScanRefused
from tf_covid.result import Finding
from tf_covid.scan import Scan, lung_findings, read_mask
from tf_covid.weights import Preprocessing, quarantine

if TYPE_CHECKING:
    import tensorflow as tf

#: Part of each record's name; a change of what a record holds, or of how it is made, is another number here.
FORMAT = 1

#: The largest working grid (D, H, W) of a training; records on a network's own grid may be larger.
LARGEST_GRID = (64, 192, 192)

#: Free space that is left on the disk, in bytes.
_RESERVE = 200 << 20

Progress = Callable[[Sequence[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Wanted:
    """What is kept of a scan.

    Args:
        kind: "clips": the kept slices within the lung box, with the lungs that the lung model finds (for classifiers).
            "planes": whole slices, evenly chosen, with the lungs of the manifest (for a lung model).
        grid: Frames, height and width of what is kept.
        preprocessing: Slice rule and box.
        lungs: The lung model, by name or file.
        lungs_sha256: Its file's hash.
        lesions: Whether the lesion masks of the manifest are kept, too.
    """

    kind: Literal["clips", "planes"]
    grid: tuple[int, int, int]
    preprocessing: Preprocessing
    lungs: str
    lungs_sha256: str
    lesions: bool = False

    def __post_init__(self) -> None:
        if min(self.grid) < 1:
            raise CohortError(f"the sides of the working grid must be positive, not {self.grid}")

    def settings(self) -> list[Any]:
        """All that decides what a record holds, besides the scan. Window and input scaling come after the cache."""
        rule = self.preprocessing.model_dump(include={"slice_minimum", "box", "box_margin"})
        return [FORMAT, self.kind, self.grid, rule, self.lungs_sha256, self.lesions]

    def bytes_each(self) -> int:
        """Size of a record."""
        cells = int(np.prod(self.grid))
        return 2 * cells + (1 + self.lesions) * -(-cells // 8) + 256


@dataclass(frozen=True)
class Entry:
    """A record that is there.

    Args:
        case: Its case.
        path: The TFRecord.
        marks: What must not be on both sides of a fold, as hashes: "pixels", and "study" and "patient" of a DICOM
            header.
        findings: Codes of what was noticed about the scan.
        shape: Of the scan, (D, H, W).
        kept: Number of slices that the record was made of.
    """

    case: str
    path: Path
    marks: dict[str, str]
    findings: tuple[str, ...]
    shape: tuple[int, int, int]
    kept: int


@dataclass(frozen=True)
class Filled:
    """The records of a cohort, and why a scan has none."""

    entries: dict[str, Entry]
    skipped: dict[str, str]


def fill(
    rows: Sequence[Row], folder: Path, wanted: Wanted, *, workers: int = 1, max_skipped: int = 0,
    progress: Progress | None = None,
) -> Filled:  # fmt: skip
    """Make the records that are not there yet.

    Args:
        rows: The cohort.
        folder: The cache; made if needed. Several processes may fill it.
        wanted: What is kept of a scan.
        workers: Number of processes; 1 works in this one.
        max_skipped: How many scans may be refused.
        progress: Wraps the rows, to show how far the work is.

    Raises:
        CohortError: If more scans are refused, or a process died.
        OutputError: If the disk has too little space, or cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror})") from error
    _check_space(len(rows), folder, wanted)
    entries: dict[str, Entry] = {}
    skipped: dict[str, str] = {}
    done = _work_through(rows, folder, wanted, min(workers, len(rows)))
    for row in progress(rows) if progress else rows:
        found = next(done)
        if isinstance(found, Entry):
            entries[row.case] = found
        else:
            skipped[row.case] = found
    if len(skipped) > max_skipped:
        facts = "".join(f"\n{case}: {why}" for case, why in skipped.items())
        raise CohortError(
            f"{len(skipped)} of {len(rows)} scans cannot be used, and --max-skipped allows {max_skipped}:{facts}"
        )
    return Filled(entries, skipped)


def needed_bytes(count: int, wanted: Wanted) -> int:
    """Space that the records of so many scans take."""
    return count * wanted.bytes_each()


def _check_space(count: int, folder: Path, wanted: Wanted) -> None:
    there = sum(1 for _ in folder.glob("*.tfrecord"))
    needed, free = needed_bytes(max(count - there, 0), wanted), shutil.disk_usage(folder).free
    if needed + _RESERVE > free:
        raise OutputError(f"{folder}: the cache needs {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free")


def _work_through(rows: Sequence[Row], folder: Path, wanted: Wanted, workers: int) -> Iterator[Entry | str]:
    if workers <= 1:
        yield from (make(row, folder, wanted) for row in rows)
        return
    # Spawned, since TensorFlow may already run threads in this process.
    context = multiprocessing.get_context("spawn")
    threads = max((os.cpu_count() or 1) // workers, 1)
    try:
        with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(threads,)) as pool:
            jobs = [pool.submit(make, row, folder, wanted) for row in rows]
            try:
                yield from (job.result() for job in jobs)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except BrokenProcessPool as error:
        raise CohortError(
            "a process that reads scans was killed, most likely for want of memory; what it made is kept: "
            "use fewer workers and start again"
        ) from error


def _start(threads: int) -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def make(row: Row, folder: Path, wanted: Wanted) -> Entry | str:
    """One record: the one that is there, a new one, or why there is none.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        case = case_of_row(row)
        masks = [path for path in (row.lungs if wanted.kind == "planes" else None, _lesions(row, wanted)) if path]
        if wanted.kind == "planes" and row.lungs is None:
            return "no_lungs: the manifest names no lung mask"
        mark = case.fingerprint()
        key = hashlib.sha256(
            json.dumps([mark, [quarantine.sha256(path) for path in masks], wanted.settings()]).encode()
        ).hexdigest()[:32]
        path = folder / f"{key}.tfrecord"
        # An input that cannot be read twice has no fingerprint, and matches nothing.
        if mark and (entry := _kept(row.case, path)):
            return entry
        scan = case.read()
        if scan.fingerprint != mark:
            return "changed: the scan was written to while it was read"
        return _write(row, scan, path, wanted)
    except (ScanRefused, ModelError) as refusal:
        return str(refusal)
    except OSError as error:
        return f"unreadable: {error.strerror or type(error).__name__}"


def _lesions(row: Row, wanted: Wanted) -> Path | None:
    return row.lesions if wanted.lesions else None


def _kept(case: str, path: Path) -> Entry | None:
    try:
        facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if not path.is_file() or path.stat().st_size != facts.pop("bytes"):
            return None
        d, h, w = facts.pop("shape")
        return Entry(case, path, facts["marks"], tuple(facts["findings"]), (d, h, w), facts["kept"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _secret(folder: Path) -> bytes:
    """The cache's own random bytes, made once, whoever comes first."""
    path = folder / ".secret"
    if not path.exists():
        fresh = folder / f".secret.{secrets.token_hex(8)}"
        fresh.touch(0o600)
        fresh.write_bytes(secrets.token_bytes(32))
        with suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes()


def _write(row: Row, scan: Scan, path: Path, wanted: Wanted) -> Entry:
    import tensorflow as tf

    secret = _secret(path.parent)

    lesions = _lesions(row, wanted)
    try:
        ill = read_mask(lesions, scan, may_be_empty=True) if lesions else None
        if wanted.kind == "planes":
            assert row.lungs is not None
            planes, kept = _planes(scan, read_mask(row.lungs, scan), ill, wanted.grid), scan.shape[0]
        else:
            planes, kept = _road(wanted.grid, wanted.preprocessing, wanted.lungs).clip(scan, ill)
    except (MemoryError, tf.errors.ResourceExhaustedError) as error:
        raise ScanRefused([Finding("too_large", "error", "There is not enough memory for this scan.")]) from error
    marks = {"pixels": hashlib.sha256(scan.hu.tobytes()).hexdigest()}
    for name, key in (("study", "study_uid"), ("patient", "patient_id")):
        # Hashed with the cache's secret: all numbers of a hospital are soon tried against a plain hash.
        if value := scan.identifiers.get(key):
            marks[name] = hmac.new(secret, value.encode(), "sha256").hexdigest()
    entry = Entry(row.case, path, marks, tuple(finding.code for finding in scan.findings), scan.shape, kept)
    try:
        with replacing(path) as partial, tf.io.TFRecordWriter(str(partial)) as writer:
            writer.write(_example(planes).SerializeToString())
    except tf.errors.OpError as error:
        raise OutputError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from error
    facts = asdict(entry) | {"bytes": path.stat().st_size}
    del facts["case"], facts["path"]  # the same scan may be called otherwise tomorrow
    write_text(json.dumps(facts), path.with_suffix(".json"))
    return entry


def _example(planes: dict[str, np.ndarray | None]) -> tf.train.Example:
    """HU as int16, masks packed to bits; a mask that nobody drew is empty."""
    import tensorflow as tf

    def feature(values: np.ndarray | None) -> tf.train.Feature:
        packed = b"" if values is None else np.packbits(values).tobytes() if values.dtype == bool else values.tobytes()
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[packed]))

    return tf.train.Example(features=tf.train.Features(feature={key: feature(part) for key, part in planes.items()}))


def _planes(
    scan: Scan, lungs: np.ndarray, lesions: np.ndarray | None, grid: tuple[int, int, int]
) -> dict[str, np.ndarray | None]:
    """Whole slices, evenly chosen, as `LungSegmenter` brings them onto its grid; a mask is where half a cell is."""
    from tf_covid.layers.resample import clipped_hu, full_axis_matrix, in_plane

    count, height, width = grid
    chosen = np.linspace(0, scan.shape[0] - 1, count).round().astype(int)
    rows, columns = full_axis_matrix(height, scan.shape[1]), full_axis_matrix(width, scan.shape[2])

    def small(volume: np.ndarray) -> np.ndarray:
        return np.asarray(in_plane(rows, volume, columns))

    hu = small(clipped_hu(scan.hu[chosen]).numpy())
    return {
        "hu": np.rint(hu).astype("<i2"),
        "lungs": small(lungs[chosen].astype(np.float32)) >= 0.5,
        "lesions": None if lesions is None else small(lesions[chosen].astype(np.float32)) >= 0.5,
    }


class _Road:
    """The stages between a scan and its clip, as `infer` runs them; the classifier that follows does not matter."""

    def __init__(self, grid: tuple[int, int, int], preprocessing: Preprocessing, lungs: str) -> None:
        import keras
        import tensorflow as tf

        from tf_covid.stratifier_model import Stratifier
        from tf_covid.weights import load

        nobody = keras.Sequential([keras.Input((*grid, 1)), keras.layers.Identity()])
        self.stratifier = Stratifier(nobody, load(lungs).network, preprocessing)
        volume = tf.TensorSpec([1, None, None, None], tf.int16)
        self.segment = tf.function(
            self.stratifier.segment, input_signature=[volume, tf.TensorSpec([1], tf.int32)], jit_compile=False
        )
        self.sample = tf.function(
            self._sample, input_signature=[volume, volume, tf.TensorSpec([1, None, None, None], tf.float32)]
        )

    def _sample(self, hu: Any, lesions: Any, probability: Any) -> tuple[Any, ...]:
        road = self.stratifier
        keep = road.slice_rule(probability)
        box = road.lung_box(probability, keep)
        return *(road.sampler(part, keep, box)[0] for part in (hu, probability, lesions)), keep[0]

    def clip(self, scan: Scan, lesions: np.ndarray | None) -> tuple[dict[str, np.ndarray | None], int]:
        """HU, lungs and lesions on the working grid, and how many slices they were made of."""
        hu = scan.hu[np.newaxis]
        found = self.segment(hu, np.array([len(scan.hu)], np.int32))["lungs"]
        share = (found.numpy()[0] > 0.5).mean(axis=(1, 2))
        minimum = self.stratifier.slice_rule.minimum
        findings = lung_findings(share, min_fraction=minimum, spacing_mm=scan.spacing_mm)
        if any(finding.level == "error" for finding in findings):
            raise ScanRefused([*scan.findings, *findings])
        ill = np.zeros_like(hu) if lesions is None else lesions[np.newaxis].astype(np.int16)
        values, lungs, diseased, keep = (part.numpy() for part in self.sample(hu, ill, found))
        planes = {"hu": np.rint(values).astype("<i2"), "lungs": lungs >= 0.5}
        return planes | {"lesions": None if lesions is None else diseased >= 0.5}, int(keep.sum())


# One a process: a model is loaded once, before the first scan that needs it.
_road = functools.lru_cache(maxsize=1)(_Road)
