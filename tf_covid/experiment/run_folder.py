"""What `tfcovid fit` is asked for, and the folder of a run: one process, one request at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.atomic import remove_leftovers, write_text
from tf_covid.errors import OutputError, TrainingError
from tf_covid.experiment.phantom_source import chests_asked
from tf_covid.phantom.mark import phantom_mark
from tf_covid.pipeline import versions
from tf_covid.tasks import TASKS
from tf_covid.training import checkpoint
from tf_covid.training.settings import Settings, current_names
from tf_covid.weights import catalog, quarantine
from tf_covid.weights.catalog import LOBES, LUNGS, NO_LOBES

#: Stands in the file of every network of a run, unless told otherwise.
NOTE = "Trained by tfcovid fit on a cohort of its user. Not validated for clinical use."


@dataclass(frozen=True)
class FitRequest:
    """What is to be trained.

    Args:
        manifest: The cohort; `phantom:N` for N synthetic chests.
        task: Name of a row of `tasks.TASKS`.
        model: Network.
        out: The run's folder.
        settings: Settings of the training.
        init: Shipped name or file whose weights it starts from; None: at random.
        folds: Number of folds; 0: none, all but the validation cases are trained on.
        by_site: A fold a site instead.
        folds_file: Folds of an earlier run.
        lungs: 2D lung model, which a classifier is trained behind.
        lobes: 3D lobe model that gates it, or "none"; None: the shipped one, if there is one.
        cache: Folder of the records; None: in the run's folder.
        max_skipped: Most scans that may be unusable.
        mirrored: Train on all devices.
        note: What the model files say of their training data.
        patient_fingerprints: Whether they keep salted fingerprints of the patients' ids beside
            those of the scans.
        training_workers: Processes that train each network together.
        trained_by: Who trains, and with how many threads; "this process" or "Ray, 4 cores".
    """

    manifest: Path
    task: str
    model: str
    out: Path
    settings: Settings
    init: str | Path | None = None
    folds: int = 4
    by_site: bool = False
    folds_file: Path | None = None
    lungs: str = LUNGS
    lobes: str | None = None
    cache: Path | None = None
    max_skipped: int = 0
    mirrored: bool = False
    note: str = NOTE
    patient_fingerprints: bool = False
    training_workers: int = 1
    trained_by: str = "this process"

    def __post_init__(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ManifestError: If MANIFEST is `phantom:` and no number of chests.
            TrainingError: If there is nothing to validate on, or synthetic chests are to be folded.
        """
        if self.chests is not None and not self.single:
            raise TrainingError(
                "phantom:N is for --folds none: its chests come and go; `tfcovid phantom` writes a"
                " cohort that folds can be made of"
            )
        if self.single and not self.settings.validation_fraction:
            raise TrainingError(
                "--folds none needs validation_fraction > 0: no fold is tested, so that nothing"
                " else tells what the network has learned"
            )

    @property
    def chests(self) -> int | None:
        """Synthetic chests that are asked for; None where the manifest is a file."""
        return chests_asked(self.manifest)

    @property
    def single(self) -> bool:
        """Whether one network is trained on all but the validation cases."""
        return not (self.folds or self.folds_file or self.by_site)

    @property
    def lobes_model(self) -> str:
        """The lobe model that gates the lung model; "none" without one, or where none is needed."""
        if TASKS[self.task].cache_kind != "clips":
            return NO_LOBES
        return self.lobes or (LOBES if LOBES in catalog.shipped() else NO_LOBES)

    def cohort(self, scans: int) -> dict[str, Any]:
        """The cohort as `study.json` names it, of a run whose folder is held.

        Args:
            scans: Number of its scans that are used.
        """
        # The manifest's hash when the run began: its file may have changed meanwhile.
        began = json.loads((self.out / "run.json").read_text("utf-8"))["question"]
        fingerprint = (
            {"sha256": began["manifest_sha256"]}
            if self.chests is None
            else {"phantom_mark": began["phantom_mark"]}
        )
        return {"name": self.manifest.name, **fingerprint, "scans": scans}

    def weights(self) -> dict[str, str]:
        """Hashes of the weights that the run begins with, and that it is trained behind."""
        hashes = {
            "init": quarantine.sha256(catalog.find(self.init)) if self.init else "scratch",
            "lungs_sha256": quarantine.sha256(catalog.find(self.lungs)),
        }
        if self.lobes_model != NO_LOBES:
            hashes["lobes_sha256"] = quarantine.sha256(catalog.find(self.lobes_model))
        return hashes

    def identity(self) -> dict[str, Any]:
        """What decides the run's weights."""
        cohort = (
            {"manifest_sha256": quarantine.sha256(self.manifest)}
            if self.chests is None
            else {"chests": self.chests, "phantom_mark": phantom_mark()}
        )
        return {
            **cohort,
            "task": self.task,
            "model": self.model,
            **self.weights(),
            "folds": (
                quarantine.sha256(self.folds_file)
                if self.folds_file
                else "site"
                if self.by_site
                else self.folds or "none"
            ),
            "mirrored": self.mirrored,
            "settings": self.settings.model_dump(mode="json"),
            "tf-covid": versions()["tf-covid"],
            # Only where it was asked for: a run that began before there was this option goes on.
            **({"patient_fingerprints": True} if self.patient_fingerprints else {}),
        }


@contextmanager
def exclusive_run_folder(
    request: FitRequest, *, workers: int, resume: bool, on_message: Callable[[str], None]
) -> Iterator[None]:
    """Hold the folder of a run for this process only, and for this request only.

    Args:
        request: What is to be trained.
        workers: Processes that fill the cache; stands in `run.json`.
        resume: Whether the folder holds a run that is to be finished.
        on_message: Hears of a difference that changes the bits of the weights.

    Raises:
        TrainingError: If another process works there, or the run there is another.
        OutputError: If the folder cannot be written to, or is to be empty and is not.
    """
    identity = request.identity()
    try:
        request.out.mkdir(parents=True, exist_ok=True)
        there = [path for path in request.out.iterdir() if path.name != ".lock"]
    except OSError as error:
        raise OutputError(f"{request.out}: cannot be written to ({error.strerror})") from error
    with _locked(request.out / ".lock", f"{request.out}: another process is working there"):
        _same_request(
            request, identity, there, workers=workers, resume=resume, on_message=on_message
        )
        for folder in (request.out, request.out / "figures", *request.out.glob("fold-*")):
            remove_leftovers(folder)
        yield


@contextmanager
def exclusive_fold(request: FitRequest, fold: int, *, wait_s: float = 60.0) -> Iterator[None]:
    """Hold one fold of a run whose folder another process holds.

    Args:
        request: What is being trained.
        fold: Index of the fold.
        wait_s: Longest wait for a process that ends, in seconds.

    Raises:
        TrainingError: If another process trains it.
        OutputError: If the folder cannot be written to.
    """
    busy = f"fold_runs: another process trains fold {fold} of {request.out}"
    with _locked(request.out / f".lock-fold-{fold}", busy, wait_s):
        yield


@contextmanager
def _locked(path: Path, busy: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock of a file; `busy` is said where another process has it for too long."""
    try:
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise OutputError(f"{path.parent}: cannot be written to ({error.strerror})") from error
    until = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() >= until:
                    raise TrainingError(busy) from error
                time.sleep(1.0)
        yield
    finally:
        with suppress(OSError):
            os.close(lock)


def _same_request(
    request: FitRequest,
    identity: dict[str, Any],
    there: Sequence[Path],
    *,
    workers: int,
    resume: bool,
    on_message: Callable[[str], None],
) -> None:
    known = request.out / "run.json"
    here = checkpoint.environment() | {
        "training_workers": request.training_workers,
        "trained_by": request.trained_by,
    }
    if not there:
        # A record is the same whoever made it, so that a run may go on with another number of
        # workers.
        facts = {"question": identity, "environment": here, "workers": workers}
        if request.init is not None:
            # For a reader: what counts is the hash above.
            facts["init"] = catalog.name_of(request.init)
        write_text(json.dumps(facts, indent=1), known)
        return
    if not resume:
        raise OutputError(
            f"{request.out} is not empty: --resume goes on with a run of the same settings"
        )
    try:
        before = json.loads(known.read_text("utf-8"))
        asked, where = dict(before["question"]), before["environment"]
        # A setting that there was not yet had its default.
        asked["settings"] = Settings.model_validate(current_names(asked["settings"])).model_dump(
            mode="json"
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"{request.out}: holds no run of tfcovid fit") from error
    identity = json.loads(json.dumps(identity))
    if asked != identity:
        other = sorted(key for key in {*asked, *identity} if asked.get(key) != identity.get(key))
        raise TrainingError(
            f"{request.out}: the run there differs in {', '.join(other)}; choose another --out"
        )
    if other := checkpoint.differences(where, here):
        on_message(
            f"warning: the run began with other {', '.join(other)}: its weights will not be the"
            " same bit for bit"
        )
