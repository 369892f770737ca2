"""Many inputs, one answer each: what `tfcovid infer` does."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tf_covid.cohort.manifest import read_manifest
from tf_covid.errors import OutputError, ScanRefused
from tf_covid.pipeline import refused, stratify, versions
from tf_covid.report import write_case
from tf_covid.result import Finding, Result
from tf_covid.scan import Case, find_cases, read_mask
from tf_covid.weights import catalog, quarantine

if TYPE_CHECKING:
    from tf_covid.local import LocalModels


@dataclass(frozen=True)
class Options:
    """What decides the answer, besides the scan.

    Args:
        models: Shipped names or `.keras` files.
        precision: "float32" or "bfloat16".
        attention: Method, or "none".
        attention_target: "severity" or "class".
        lungs: The user's own mask.
        identifiers: Keep the header's identifiers in the result.
    """

    models: tuple[str, ...] = ("severity-i3d",)
    precision: str = "float32"
    attention: str = "gradcam"
    attention_target: str = "severity"
    lungs: Path | None = None
    identifiers: bool = False


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Args:
        case: Its name.
        values: What `result.json` holds.
        folder: Its folder.
        kept: A finished answer to the same question was there and stays.
        problem: Why there is no answer, in one line; None where there is one.
    """

    case: str
    values: dict[str, Any]
    folder: Path
    kept: bool = False
    problem: str | None = None

    def line(self) -> str:
        """One line for a person."""
        severity, covid, lungs = (self.values[key] for key in ("severity", "covid", "lungs"))
        if severity is not None:
            answer = f"class {severity['class']} ({severity['label']})"
            if severity["ct_score"] is not None:
                answer += f", CT score {severity['ct_score']:.1f} of 25"
        else:
            answer = f"COVID-19 {'positive' if covid['positive'] else 'negative'} ({covid['probability']:.2f})"
        done = "kept" if self.kept else f"{self.values['timings_s']['total']:.1f} s"
        involved = f"{lungs['involvement_percent']:.1f} % of the lungs involved"
        return f"{self.case}: {answer}, {involved} ({done}) {self.folder / 'report.html'}"


class Run:
    """One call of `infer`: models are loaded once, at the first scan that needs them.

    Args:
        out: Folder of the answers.
        options: What decides the answer.
        overwrite: Replace an answer of the same name to another question.
        before_models: Called once before TensorFlow is needed.

    Raises:
        ModelError: If a named model does not exist.
    """

    def __init__(
        self,
        out: Path,
        options: Options,
        *,
        overwrite: bool = False,
        before_models: Callable[[], None] | None = None,
    ) -> None:
        self.out, self.options, self.overwrite = out, options, overwrite
        self._before_models = before_models
        files = [catalog.find(name) for name in (*options.models, "lungs-unet")]
        self._question = [
            [quarantine.sha256(file) for file in files],
            quarantine.sha256(options.lungs) if options.lungs else None,
            [options.precision, options.attention, options.attention_target, options.identifiers],
            versions(),
        ]

    @cached_property
    def models(self) -> LocalModels:
        """The networks, loaded at first use: keeping finished cases needs no TensorFlow."""
        if self._before_models is not None:
            self._before_models()
        from tf_covid.local import LocalModels

        return LocalModels(self.options.models, precision=self.options.precision)

    def answer(self, case: Case) -> Outcome:
        """Read, stratify and write one case, unless its answer is there."""
        folder = self.out / case.name
        request = self._request(case)
        before = _finished(folder)
        if before is not None and before.get("versions", {}).get("request") == request:
            return Outcome(case.name, before, folder, kept=True, problem=_problem(before))
        if before is not None and not self.overwrite:
            message = "An answer of this name to another scan, model or option is there; see --overwrite."
            taken = refused(case.name, [Finding("name_taken", "error", message)])
            return Outcome(case.name, taken.as_dict(), folder, problem=f"name_taken: {message}")
        start = time.perf_counter()
        scan = None
        try:
            scan = case.read()
            mask = read_mask(self.options.lungs, scan) if self.options.lungs else None
            read = time.perf_counter() - start
            result = self._stratify(scan, mask)
        except ScanRefused as refusal:
            result, read = refused(case.name, refusal.findings), time.perf_counter() - start
        result = dataclasses.replace(
            result,
            versions=result.versions | {"request": request},
            timings_s={"read": read, **result.timings_s} if result.status != "refused" else {},
        )
        try:
            written = write_case(result, scan, folder, since=start)
        except OutputError as error:
            return Outcome(case.name, result.as_dict(), folder, problem=f"not_written: {error}")
        values = written.as_dict()
        return Outcome(case.name, values, folder, problem=_problem(values))

    def _stratify(self, scan: Any, mask: Any) -> Result:
        options, models = self.options, self.models
        import tensorflow as tf

        try:
            return stratify(
                scan,
                models,
                lungs=mask,
                attention=options.attention,
                attention_target=options.attention_target,
                identifiers=options.identifiers,
            )
        except (MemoryError, tf.errors.ResourceExhaustedError) as error:
            message = "There is not enough memory for this scan."
            raise ScanRefused([Finding("too_large", "error", message)]) from error

    def _request(self, case: Case) -> str:
        text = json.dumps([case.name, case.fingerprint(), *self._question], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def cases_of(inputs: Sequence[Path]) -> Iterator[Case]:
    """The cases of all inputs, with names that are unique among them.

    Args:
        inputs: Scans, folders, zips, and manifests (`.csv`), whose names of cases are used.

    Raises:
        ManifestError: If a manifest has a wrong row.
    """
    names: set[str] = set()
    for path in inputs:
        for case in _of_manifest(path) if path.suffix.lower() == ".csv" else find_cases(path):
            name, number = case.name, 2
            while name.lower() in names:
                name, number = f"{case.name}-{number}", number + 1
            names.add(name.lower())
            yield dataclasses.replace(case, name=name)


def _of_manifest(path: Path) -> Iterator[Case]:
    for row in read_manifest(path):
        found = find_cases(row.path)
        case = dataclasses.replace(found[0], name=row.case)
        if len(found) > 1:
            message = f"The path of this row holds {len(found)} studies or files; a row names one."
            case = dataclasses.replace(case, findings=(Finding("several_cases", "error", message, len(found)),))
        yield case


def _finished(folder: Path) -> dict[str, Any] | None:
    """What an earlier run answered; a folder without a readable result is no answer."""
    try:
        values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _problem(values: dict[str, Any]) -> str | None:
    if values.get("status") != "refused":
        return None
    errors = [finding for finding in values["findings"] if finding["level"] == "error"]
    return "; ".join(f"{finding['code']}: {finding['message']}" for finding in errors)
