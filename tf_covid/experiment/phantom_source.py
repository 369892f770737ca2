"""Synthetic chests as a cohort: MANIFEST is `phantom:N`, and chests are drawn as they are needed.

The pool of an epoch is a window over consecutive seeds. Each epoch it moves on by a share of its
length, so that the oldest chests leave and new ones come; which they are follows from the settings
and the epoch alone. While an epoch trains, the new chests of the next one are drawn beside it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from tf_covid.atomic import make_folder, remove_leftovers, write_text
from tf_covid.cohort import cache
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.cohort.planes import tissue_classes
from tf_covid.cohort.workers import killed_worker, process_pool
from tf_covid.errors import CohortError, ManifestError, OutputError, ScanRefused, TrainingError
from tf_covid.phantom import Chest
from tf_covid.phantom.cohort import draw_readable
from tf_covid.phantom.mark import UNSEEN, VALIDATION, phantom_mark
from tf_covid.scan import Scan, SourceGrid
from tf_covid.severity import LABELS
from tf_covid.tasks import TASKS
from tf_covid.training.settings import PhantomPool, Settings

#: What MANIFEST begins with.
_PREFIX = "phantom:"

#: How far the processes that draw stand back behind the one that trains.
_NICENESS = 5

#: Stands in the file of a network that learned from nothing else.
SYNTHETIC_NOTE = (
    "Trained on synthetic chests only (tf_covid.phantom), on no patient. A demonstration of the"
    " method: not validated on patients, not for clinical use."
)

#: Stands in the row of a chest where another has the path of a mask: there is no such file.
_DRAWN = Path("drawn")


def chests_asked(manifest: Path) -> int | None:
    """Number of chests that `phantom:N` asks for; None where MANIFEST is a file.

    Raises:
        ManifestError: If N is not a count of chests.
    """
    text = str(manifest)
    if not text.startswith(_PREFIX):
        return None
    count = text.removeprefix(_PREFIX)
    if not re.fullmatch("[0-9]{1,6}", count) or not 2 <= int(count) <= VALIDATION:
        raise ManifestError(
            f"{_PREFIX}N needs a whole number of chests from 2 to {VALIDATION}, not {count!r}"
        )
    return int(count)


def scan_of(chest: Chest, case: str) -> Scan:
    """A chest as a reader would return it, were it read from a file.

    Args:
        chest: The chest.
        case: Name of the case.
    """
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ chest.affine
    source = SourceGrid(chest.hu.shape, ras, (0, 1, 2), (False, False, False))
    return Scan(case, np.ascontiguousarray(chest.hu), chest.affine, source, "")


def chest_shape(seed: int, pool: PhantomPool) -> tuple[int, int, int]:
    """(D, H, W) of a chest, which follows from its seed.

    Args:
        seed: Seed of the chest.
        pool: Ranges of slices and sides.
    """
    rng = np.random.default_rng([seed, 0xCA5E])
    side = int(rng.integers(pool.side_pixels[0] // 16, pool.side_pixels[1] // 16 + 1)) * 16
    return int(rng.integers(pool.slices[0], pool.slices[1] + 1)), side, side


@dataclass(frozen=True)
class _Drawn:
    """A chest in the cache, and what is known of it."""

    record: cache.CacheRecord
    ct_score: int
    severity: int
    covid: int
    lobe_scores: tuple[int, ...] | None = None  # not known of chests that an older version drew


@dataclass(frozen=True)
class _Job:
    """A chest that is to be drawn into the cache.

    Args:
        seed: Seed of the chest.
        severity: Severity class that it is drawn to have.
        shape: (D, H, W).
        folder: Folder of its record.
        spec: What is kept of it.
    """

    seed: int
    severity: int
    shape: tuple[int, int, int]
    folder: Path
    spec: cache.CacheSpec

    @property
    def case(self) -> str:
        """Name of the case."""
        return f"phantom-{self.seed:07d}"

    @property
    def path(self) -> Path:
        """The record; its name is a hash of all that decides what it holds."""
        facts = [
            "phantom",
            phantom_mark(),
            self.seed,
            self.severity,
            self.shape,
            self.spec.settings(),
        ]
        name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        return self.folder / f"{name}.tfrecord"

    @property
    def truth(self) -> Path:
        """What is known of the chest; is there before the record is."""
        return self.path.with_suffix(".truth.json")

    def remove(self) -> None:
        """Remove the record from the disk, its `.json` first: without it, it does not count."""
        for path in (self.path.with_suffix(".json"), self.path, self.truth):
            path.unlink(missing_ok=True)


def _make(job: _Job) -> _Drawn | str:
    """One chest: the one that is there, a new one, or why there is none."""
    record = cache.kept_record(job.case, job.path, job.spec)
    if record is None or not job.truth.exists():
        chest = draw_readable(job.seed, job.shape, severity=job.severity)
        facts = {
            "ct_score": int(chest.ct_score),
            "severity": int(chest.severity),
            "covid": int(chest.covid),
            "lobe_scores": [int(score) for score in chest.lobe_scores],
        }
        write_text(json.dumps(facts), job.truth)
        masks = cache.Masks(
            lungs=chest.lungs > 0,
            lesions=chest.lesions,
            classes=tissue_classes(chest.lobes, chest.tissues),
        )
        try:
            record = cache.write_record(
                job.case, scan_of(chest, job.case), masks, job.path, job.spec
            )
        except ScanRefused as refusal:
            return str(refusal)
    return _Drawn(record, **json.loads(job.truth.read_text(encoding="utf-8")))


class PhantomCohort:
    """The chests of a run, a context that ends the processes which draw them.

    What came after the first epoch is removed where the context ends without an error.

    `rows` and `labels` know every chest that was needed so far.

    Args:
        task: Name of the task.
        settings: Settings of the training.
        count: Chests that MANIFEST asks for; a part of them, `validation_fraction`, validates.
        spec: What is kept of a chest.
        out: The run's folder; chests that come later lie in it, and are removed as they leave.
        folder: Folder of the first chests' records.
        shared: Whether other runs may use that folder: nothing is removed from it then.
        workers: Processes that draw.
        on_message: Hears how far the drawing is, in a line.

    Raises:
        TrainingError: If the settings ask for more chests than there are seeds for.
    """

    def __init__(
        self,
        task: str,
        settings: Settings,
        count: int,
        spec: cache.CacheSpec,
        *,
        out: Path,
        folder: Path,
        shared: bool,
        workers: int,
        on_message: Callable[[str], None],
    ) -> None:
        self._task, self._settings, self._spec, self._on_message = task, settings, spec, on_message
        self._folder, self._fresh_folder, self._shared = folder, out / "fresh", shared
        self._facts = out / "chests.json"
        self._validation = min(max(1, round(settings.validation_fraction * count)), count - 1)
        self._pool = count - self._validation
        pool = settings.phantom
        #: Chests that are new in each epoch.
        self.fresh = max(1, round(pool.fresh * self._pool)) if pool.fresh else 0
        self._classes = np.repeat(np.arange(len(LABELS)), pool.per_class)
        last = pool.first_seed + self._pool + self.fresh * (settings.epochs - 1)
        if last > VALIDATION or self._validation > UNSEEN - VALIDATION:
            raise TrainingError(
                f"phantom: the run needs the seeds {pool.first_seed} to {last - 1}, and"
                f" {self._validation} to validate; those for training end at {VALIDATION - 1}, and"
                f" {UNSEEN - VALIDATION} validate: lower first_seed, fresh or the number of chests"
            )
        self._jobs: dict[int, Future[_Drawn | str]] = {}
        self.rows: dict[str, ManifestRow] = {}
        self.labels: dict[str, int] = {}
        self._pixels: set[str] = set()
        self.cases: list[str] = []
        self._workers = process_pool(workers, niceness=_NICENESS)

    def __enter__(self) -> PhantomCohort:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._workers.shutdown(wait=True, cancel_futures=True)
        if kind is None:
            shutil.rmtree(self._fresh_folder, ignore_errors=True)

    @property
    def size(self) -> int:
        """Records of the first epoch."""
        return len(self.cases)

    @property
    def changes(self) -> bool:
        """Whether an epoch has other chests than the one before."""
        return self.fresh > 0

    def describe(self, epochs: int) -> str:
        """Which chests a network has learned from, for its file.

        Args:
            epochs: Epochs that it was trained for.
        """
        first = self._settings.phantom.first_seed
        last = first + self._pool + self.fresh * (epochs - 1) - 1
        return (
            f"synthetic chests of tf_covid.phantom {phantom_mark()}, seeds {first} to {last};"
            f" validated on seeds {VALIDATION} to {VALIDATION + self._validation - 1}"
        )

    def start(self) -> list[cache.CacheRecord]:
        """Draw the chests that validate and, of a new run, those of its first epoch.

        Returns:
            Records of the chests that validate.

        Raises:
            CohortError: If a process died, or too many chests cannot be used.
            OutputError: If the disk has too little space, or cannot be written to.
        """
        for folder in (self._folder, self._fresh_folder):
            make_folder(folder)
            remove_leftovers(folder)
        jobs = [
            self._job(VALIDATION + index, index % len(LABELS), self._folder)
            for index in range(self._validation)
        ]
        self._check_space()
        begins = not self._facts.exists()
        drawn = self._draw([*jobs, *(map(self._training_job, range(self._pool)) if begins else [])])
        validation = drawn[: len(jobs)]
        records = self._known(jobs, validation)
        self._pixels = {record.fingerprints["pixels"] for record in records}
        if begins:
            first = [self._training_job(index) for index in range(self._pool)]
            kept = self._known(first, drawn[len(jobs) :])
            labels = {record.case: self.labels[record.case] for record in kept}
            write_text(json.dumps(labels, indent=1), self._facts)
        else:
            # The chests themselves may have left the disk.
            self.labels |= json.loads(self._facts.read_text(encoding="utf-8"))
        self.cases = list(json.loads(self._facts.read_text(encoding="utf-8")))
        return records

    def of_epoch(self, epoch: int) -> list[cache.CacheRecord]:
        """Records of an epoch, counted from 0; drawn now, where they are not there.

        Those of earlier epochs that are needed no more are removed; the drawing of the next epoch's
        begins.

        Raises:
            CohortError: If a process died, or too many chests cannot be used.
        """
        indices = range(epoch * self.fresh, epoch * self.fresh + self._pool)
        jobs = [self._training_job(index) for index in indices]
        records = self._known(jobs, self._draw(jobs))
        following = range(indices.stop, indices.stop + self.fresh)
        if epoch + 1 < self._settings.epochs:
            for index in following:
                self._submit(self._training_job(index))
        self._remove(indices.start, {*indices, *following})
        return records

    def _training_job(self, index: int) -> _Job:
        seed = self._settings.phantom.first_seed + index
        severity = int(self._classes[seed % len(self._classes)])
        job = self._job(seed, severity, self._folder if index < self._pool else self._fresh_folder)
        # No study asks what the lobes of a chest that trains look like: reading them takes time.
        return dataclasses.replace(job, spec=dataclasses.replace(self._spec, read=False))

    def _job(self, seed: int, severity: int, folder: Path) -> _Job:
        return _Job(seed, severity, chest_shape(seed, self._settings.phantom), folder, self._spec)

    def _submit(self, job: _Job) -> Future[_Drawn | str]:
        if job.seed not in self._jobs:
            # A process each, so one BLAS thread each.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
            self._jobs[job.seed] = self._workers.submit(_make, job)
        return self._jobs[job.seed]

    def _draw(self, jobs: Sequence[_Job]) -> list[_Drawn | str]:
        """All of them, in order; says how far it is, now and then, where many are missing."""
        results: list[_Drawn | str] = []
        began = said = time.monotonic()
        try:
            futures = [self._submit(job) for job in jobs]
            for future in futures:
                results.append(future.result())
                now = time.monotonic()
                if now - said > 10.0:
                    said = now
                    self._on_message(
                        f"chests: {len(results)} of {len(jobs)} are there,"
                        f" {len(results) / (now - began):.2f} a second"
                    )
        except BrokenProcessPool as error:
            raise killed_worker() from error
        return results

    def _known(
        self, jobs: Sequence[_Job], drawn: Sequence[_Drawn | str]
    ) -> list[cache.CacheRecord]:
        """Remember what is known of the chests that can be used; their records.

        Raises:
            CohortError: If more than a tenth cannot be used, or one that trains is one that
                validates.
        """
        records = []
        refused = {}
        for job, one in zip(jobs, drawn, strict=True):
            if isinstance(one, str):
                refused[job.case] = one
                continue
            if one.record.fingerprints["pixels"] in self._pixels:
                raise CohortError(f"leakage: {job.case} trains and validates")
            row = _row(job.case, one.ct_score, one.severity, one.covid, one.lobe_scores)
            label = TASKS[self._task].label_of(row)
            if label is not None:
                self.rows[job.case], self.labels[job.case] = row, label
                records.append(one.record)
        if refused and len(refused) > len(jobs) // 10:
            case, why = next(iter(refused.items()))
            raise CohortError(
                f"{len(refused)} of {len(jobs)} synthetic chests cannot be used, {case} since {why}"
            )
        return records

    def _remove(self, start: int, needed: Iterable[int]) -> None:
        """Remove what was drawn for epochs before, of this process or of one that was killed."""
        jobs = [self._training_job(index) for index in needed]
        there = {job.path.name.partition(".")[0] for job in jobs if job.folder != self._folder}
        for path in self._fresh_folder.iterdir():
            if path.name.partition(".")[0] not in there | {""}:
                path.unlink(missing_ok=True)
        for index in range(start):
            job = self._training_job(index)
            self._jobs.pop(job.seed, None)
            if index < self._pool and not self._shared:
                job.remove()

    def _check_space(self) -> None:
        needed = cache.needed_bytes(2 * self._pool + self._validation, self._spec)
        free = shutil.disk_usage(self._folder).free
        there = sum(path.stat().st_size for path in self._folder.glob("*.tfrecord"))
        if needed - there > free:
            raise OutputError(
                f"{self._folder}: the chests need {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB"
                " are free"
            )


def _row(
    case: str,
    ct_score: int,
    severity: int,
    covid: int,
    lobe_scores: tuple[int, ...] | None = None,
) -> ManifestRow:
    """A chest as a row of a manifest; each is a patient of its own."""
    return ManifestRow(
        case=case,
        patient=case,
        path=_DRAWN,
        ct_score=ct_score,
        severity=severity,
        covid=covid,
        lobe_scores=lobe_scores,
        lungs=_DRAWN,
        lesions=_DRAWN,
        lobes=_DRAWN,
        tissues=_DRAWN,
    )


def example_rows() -> list[ManifestRow]:
    """Rows that know what a chest knows, to build a network from before any is drawn."""
    return [_row("phantom", 0, 0, 0)]
