"""Many inputs, one answer each: what `tfcovid infer` does."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.atomic import make_folder
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.errors import OptionError, OutputError, ScanRefused, TfCovidError
from tf_covid.extras import optional_import
from tf_covid.outcomes import CaseOutcome, Summary, finished, lost, problem_of
from tf_covid.page.figure_style import get_ready
from tf_covid.pipeline import Models, refused, stratify, versions
from tf_covid.report import write_case
from tf_covid.result import QualityFlag, Result
from tf_covid.scan import Case, Scan, mask_files
from tf_covid.scan.reader import Reader
from tf_covid.weights import catalog, quarantine

if TYPE_CHECKING:
    from tf_covid.dicom_results.write import DicomResults


@dataclass(frozen=True)
class Options:
    """What decides the answer, besides the scan.

    Args:
        models: Shipped names or `.keras` files.
        precision: "float32" or "bfloat16".
        attention: Method, or "none".
        attention_target: "severity" or "class".
        lungs: The user's own mask.
        lungs_labels: The values of it that stand for lung, where it holds labels.
        identifiers: Keep the header's identifiers in the result.
        lungs_model: 2D lung model, by name or file; None: the one that ships.
        lobes_model: 3D lobe model, by name or file, or "none"; None: the one that ships, which
            gates only where the models were trained behind it.
        allow_other_lungs: Answer behind other lung models than the networks were trained behind.
        dicom: DICOM objects to write as well; None for none. They need the extra [dicom].
        runtime: "tensorflow" or "openvino", which computes in this process.
    """

    models: tuple[str, ...] = ("severity-i3d",)
    precision: str = "float32"
    attention: str = "gradcam"
    attention_target: str = "severity"
    lungs: Path | None = None
    identifiers: bool = False
    lungs_labels: tuple[int, ...] = ()
    lungs_model: str | None = None
    lobes_model: str | None = None
    allow_other_lungs: bool = False
    dicom: DicomOptions | None = None
    runtime: str = "tensorflow"

    def __post_init__(self) -> None:
        if self.lungs_labels and self.lungs is None:
            raise OptionError("--lungs-labels are labels of the mask that --lungs names.")

    def check_cases(self, count: int) -> None:
        """Check that the options fit so many cases.

        Raises:
            OptionError: If a user's mask would stand for several scans, or for none.
        """
        if self.lungs is not None and count != 1:
            raise OptionError(
                f"--lungs is the mask of one scan, but the input holds {count} cases."
            )

    def check_runtime(self) -> None:
        """Check that the runtime can answer with these options.

        Raises:
            OptionError: If they need the models of Keras.
        """
        if self.runtime == "tensorflow":
            return
        if self.lungs is not None or self.precision != "float32":
            raise OptionError("--lungs and --precision bfloat16 need --runtime tensorflow.")
        if self.attention_target != "severity" or self.attention not in ("none", "gradcam"):
            raise OptionError(
                "--runtime openvino explains by gradcam what raises severity, or nothing (none)."
            )

    def check_server(self) -> None:
        """Check that a server can answer with these options.

        Raises:
            OptionError: If they need the models in this process.
        """
        if self.runtime != "tensorflow":
            raise OptionError("--runtime is of this process, not of a --server.")
        if self.lungs is not None or self.precision != "float32":
            raise OptionError(
                "--lungs and --precision need the models in this process, not a --server."
            )
        if self.lungs_model or self.lobes_model or self.allow_other_lungs:
            raise OptionError(
                "--lungs-model, --lobes-model and --allow-other-lungs need the models in this"
                " process: a --server has those that were exported."
            )
        if self.attention_target != "severity" or self.attention not in ("none", "gradcam"):
            raise OptionError(
                "A --server explains by gradcam what raises severity, or nothing (none)."
            )


class Run:
    """One call of `infer`: models are loaded once, before the first scan that needs them.

    Args:
        out: Folder of the answers; made if needed.
        options: What decides the answer.
        overwrite: Replace an answer of the same name to another question.
        remote: Models of a server, which answer instead of those of this process.
        load_models: Loads the models of this process; None: those of Keras are built.
        reader: The process that reads the scans; they are read in this one without it.

    Raises:
        ModelError: If a named model does not exist.
        OutputError: If `out` cannot be written to.
    """

    def __init__(
        self,
        out: Path,
        options: Options,
        *,
        overwrite: bool = False,
        remote: Models[Any] | None = None,
        load_models: Callable[[], Models[Any]] | None = None,
        reader: Reader | None = None,
    ) -> None:
        self.out, self.options, self.overwrite = out, options, overwrite
        self._remote, self._load_models, self._reader = remote, load_models, reader
        self._drawing = False
        files = (
            remote.files_sha256
            if remote
            else [quarantine.sha256(catalog.find(name)) for name in _model_files(options)]
        )
        mask, version = _own_mask(options), versions()["tf-covid"]
        how = [options.precision, options.attention, options.attention_target]
        if options.runtime != "tensorflow":
            how.append(options.runtime)
        # The shipped lobe model gates where it is named, and only beside its own otherwise.
        gate = [options.lobes_model is None, options.lobes_model == catalog.NO_LOBES]
        gate.append(options.allow_other_lungs)
        #: What decides the answer beside the scan, and what tells one request from another.
        self._decides = [files, mask, how, gate, version]
        self._identity = [files, mask, [*how, options.identifiers], gate, version]
        if options.dicom is not None:
            optional_import("highdicom", "dicom")  # before any work
        make_folder(out)
        if not os.access(out, os.W_OK | os.X_OK):
            raise OutputError(f"{out}: cannot be written to")

    @property
    def identity(self) -> str:
        """What is asked of every scan, as a hash: models, masks, options."""
        objects = [] if self.options.dicom is None else [dataclasses.astuple(self.options.dicom)]
        text = json.dumps([*self._identity, *objects], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def models(self) -> Models[Any]:
        """The networks, loaded at first use: keeping finished cases needs no TensorFlow."""
        if self._remote is not None:
            return self._remote
        if self._load_models is not None:
            return self._load_models()
        from tf_covid.local import LocalModels

        return LocalModels(
            self.options.models,
            lungs=self.options.lungs_model,
            lobes=self.options.lobes_model,
            precision=self.options.precision,
            allow_other_lungs=self.options.allow_other_lungs,
        )

    def answer(self, case: Case) -> CaseOutcome:
        """Read, stratify and write one case, unless its answer is there.

        A refusal is no answer: what refused a scan may have been put right, so it is tried again.
        """
        folder = self.out / case.name
        before = finished(folder)
        if before is not None and before["status"] != "refused":
            # An input that cannot be read twice has no fingerprint, and matches nothing.
            fingerprint = self._reader.fingerprint(case) if self._reader else case.fingerprint()
            if fingerprint and before["versions"].get("request") == self._request(
                case.name, fingerprint
            ):
                return CaseOutcome(case.name, before, folder, kept=True)
            if not self.overwrite:
                message = (
                    "an answer of this name to another scan, model or option is there; see"
                    " --overwrite"
                )
                return CaseOutcome(case.name, before, folder, problem=f"name_taken: {message}")
        start = time.perf_counter()
        scan = further = None
        try:
            if case.refused:
                raise ScanRefused(case.quality_flags)  # for which nobody need wait for TensorFlow
            models, scan, read = self._models_and_scan(case)
            if not self._drawing:
                self._drawing = True
                threading.Thread(target=get_ready, daemon=True).start()  # beside the networks
            start = time.perf_counter() - read
            result = self._stratify(scan, models)
            request = self._request(case.name, scan.fingerprint)
            result = dataclasses.replace(
                result,
                versions=result.versions | {"request": request},
                timings_s={"read": read, **result.timings_s},
                answered_at=self._answered_at(before, scan, case.name) or result.answered_at,
            )
            if (dicom := self.options.dicom) is not None and result.status != "refused":
                result, further = self._dicom(result, scan, models, folder, dicom)
        except ScanRefused as refusal:
            result = refused(case.name, refusal.quality_flags)
        try:
            written = write_case(result, scan, folder, since=start, further=further)
        except (OutputError, MemoryError) as error:
            text = str(error) or "there is not enough memory to write it"
            return lost(folder, "not_written", text)
        values = written.as_dict()
        return CaseOutcome(case.name, values, folder, problem=problem_of(values, case.path))

    def _models_and_scan(self, case: Case) -> tuple[Models[Any], Scan, float]:
        """The models, the scan, and the seconds that it took to read.

        A reader of its own reads while the models are loaded here; and a wrong model is no matter
        of one scan, so its error is the one that is raised.
        """

        def read(reader: Reader | None) -> tuple[Scan, float]:
            start = time.perf_counter()
            scan = reader.read(case) if reader else case.read()
            return scan, time.perf_counter() - start

        if self._reader is None or "models" in self.__dict__:
            models = self.models
            return models, *read(self._reader)
        with ThreadPoolExecutor(1) as thread:
            reading = thread.submit(read, self._reader)
            models = self.models
            return models, *reading.result()

    def _stratify(self, scan: Scan, models: Models[Any]) -> Result:
        options = self.options
        try:
            return stratify(
                scan,
                models,
                lungs=options.lungs,
                lungs_labels=options.lungs_labels,
                attention=options.attention,
                attention_target=options.attention_target,
                identifiers=options.identifiers,
            )
        except Exception as error:
            if not _out_of_memory(error):
                raise
            message = "There is not enough memory for this scan."
            raise ScanRefused([QualityFlag("too_large", "error", message)]) from error

    def _dicom(
        self, result: Result, scan: Scan, models: Models[Any], folder: Path, dicom: DicomOptions
    ) -> tuple[Result, DicomResults | None]:
        """The DICOM objects; where there can be none, the result says why."""
        from tf_covid.dicom_results.write import DicomResults, NoDicomResults

        weights = _weights(result, models.weights_sha256)
        decides = [*self._decides, models.weights_sha256, models.versions]
        objects: DicomResults | None = None
        try:
            objects = DicomResults(
                result, scan, json.dumps(decides), weights, dicom, folder / "report.dcm"
            )
            if not objects.map_lacking:
                return result, objects
            message = f"attention_map.dcm was not written: {objects.map_lacking}."
            flag = QualityFlag("no_dicom_map", "info", message)
        except NoDicomResults as reason:
            message = f"No DICOM objects were written: {reason}."
            flag = QualityFlag("no_dicom_results", "warning", message)
        return dataclasses.replace(result, quality_flags=(*result.quality_flags, flag)), objects

    def _request(self, name: str, fingerprint: str) -> str:
        return self._request_with(self.options.dicom, name, fingerprint)

    def _request_with(self, dicom: DicomOptions | None, name: str, fingerprint: str) -> str:
        """A hash of what is asked, with these DICOM objects."""
        # At the end, and only where they are asked for: requests of before stay what they were.
        objects = [] if dicom is None else [dataclasses.astuple(dicom)]
        text = json.dumps([name, fingerprint, *self._identity, *objects], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _answered_at(self, before: dict[str, Any] | None, scan: Scan, name: str) -> str | None:
        """When this very question was answered before, with or without DICOM objects."""
        if before is None or not scan.fingerprint:
            return None
        asked = before["versions"].get("request")
        every = itertools.starmap(DicomOptions, itertools.product((False, True), repeat=3))
        same = asked in [
            self._request_with(dicom, name, scan.fingerprint) for dicom in (None, *every)
        ]
        return before.get("answered_at") if same else None


def _out_of_memory(error: Exception) -> bool:
    """Whether an error is want of memory, of Python or of TensorFlow, if that is there."""
    tensorflow = sys.modules.get("tensorflow")
    kinds = (MemoryError, *([tensorflow.errors.ResourceExhaustedError] if tensorflow else ()))
    return isinstance(error, kinds)


def _weights(result: Result, sha256s: Sequence[str]) -> dict[str, str]:
    """`Models.weights_sha256` by what they are: networks, then the lung models."""
    names: list[str] = []
    for model in result.models:
        again = names.count(model.name)
        names.append(f"{model.name} ({again + 1})" if again else model.name)
    names += ["lung model", "lobe model"][: len(sha256s) - len(names)]
    return dict(zip(names, sha256s, strict=True))


def _model_files(options: Options) -> list[str]:
    """Names and files of all models that may decide the answer."""
    names = [*options.models, options.lungs_model or catalog.LUNGS]
    if options.lobes_model:
        return names if options.lobes_model == catalog.NO_LOBES else [*names, options.lobes_model]
    # Whether the networks were trained behind it, only reading them would tell.
    return [*names, *({catalog.LOBES} & catalog.shipped().keys())]


def _own_mask(options: Options) -> list[Any] | None:
    """What decides about the user's own mask: the hashes of its files, and its labels."""
    if options.lungs is None:
        return None
    try:
        files: Sequence[Path] = mask_files(options.lungs)
    except ScanRefused:  # each case says why
        files = [options.lungs]
    return [[quarantine.sha256(file) for file in files], sorted(options.lungs_labels)]


def run_cases(run: Run, cases: Iterable[Case]) -> Iterator[CaseOutcome]:
    """Answer case after case, and keep `summary.csv` of the output folder.

    A fault of ours in one case costs the others nothing: the first one is raised in the end.

    Raises:
        ModelError, ServingError: If the models cannot answer any scan.
        OutputError: If the summary cannot be written.
    """
    summary = Summary(run.out)
    fault: Exception | None = None
    for case in cases:
        outcome, error = answer_one(run, case)
        fault = fault or error
        summary.add(outcome)
        yield outcome
    summary.write()
    if fault is not None:
        raise fault


def answer_one(run: Run, case: Case) -> tuple[CaseOutcome, Exception | None]:
    """What became of a case, and the fault of ours that it met, if any.

    Raises:
        ModelError, ServingError: If the models cannot answer any scan.
    """
    try:
        return run.answer(case), None
    except TfCovidError:
        raise
    except Exception as error:  # no error of ours has a name for it
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return lost(run.out / case.name, "internal_error", text), error
