"""What is installed, which decoders and devices work, which weights are there: `tfcovid doctor`."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from tf_covid.errors import ModelError, TfCovidError

if TYPE_CHECKING:
    from tf_covid.weights import LoadedModel

DISTRIBUTION = "tf-covid"


@dataclass(frozen=True)
class Row:
    """One fact.

    `ok` is None where it is only stated, False where the default install promises better.
    """

    name: str
    value: str
    ok: bool | None = None


@dataclass(frozen=True)
class Section:
    """Facts that belong together."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Report:
    """All that the doctor found."""

    sections: tuple[Section, ...]

    @property
    def ok(self) -> bool:
        """False where something that the default install promises is missing."""
        return not self.complaints

    @property
    def complaints(self) -> tuple[str, ...]:
        """One line for each broken promise."""
        rows = [row for section in self.sections for row in section.rows]
        return tuple(f"{row.name}: {row.value}" for row in rows if row.ok is False)


def report() -> Report:
    """Look at everything.

    It takes some seconds, since it imports TensorFlow and loads the shipped weights.
    """
    sections = (
        ("Python", _python),
        ("Packages", _packages),
        ("Extras", _extras),
        ("Machine", _machine),
        ("TensorFlow", _tensorflow),
        ("DICOM transfer syntaxes", _transfer_syntaxes),
        ("Shipped weights", _weights),
    )
    return Report(tuple(Section(title, tuple(rows())) for title, rows in sections))


def render(report: Report) -> str:
    """The report as plain text, for a terminal or an issue."""
    width = max(len(row.name) for section in report.sections for row in section.rows)
    verdicts = {True: "ok  ", False: "FAIL", None: "    "}
    lines = []
    for section in report.sections:
        lines += [
            section.title,
            *(f"  {verdicts[row.ok]} {row.name:{width}}  {row.value}" for row in section.rows),
            "",
        ]
    lines.append("All is there." if report.ok else "Missing or broken:")
    lines += [f"  {complaint}" for complaint in report.complaints]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def _python() -> Iterator[Row]:
    yield Row("python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Row("platform", platform.platform())
    try:
        yield Row(DISTRIBUTION, importlib.metadata.version(DISTRIBUTION), ok=True)
    except importlib.metadata.PackageNotFoundError:
        yield Row(DISTRIBUTION, "not installed; run `pip install -e .` in the checkout", ok=False)


def _requirements(extra: str = "") -> list[Requirement]:
    """What the distribution needs here by default, or only for an extra."""
    try:
        needed = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        return []

    def applies(requirement: Requirement, extra: str) -> bool:
        return requirement.marker is None or requirement.marker.evaluate({"extra": extra})

    default = [requirement for requirement in needed if applies(requirement, "")]
    if not extra:
        return default
    return [
        requirement
        for requirement in needed
        if applies(requirement, extra) and requirement not in default
    ]


def _installed(requirement: Requirement) -> tuple[str, bool]:
    """Version, or what is wrong with it."""
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed", False
    if requirement.specifier.contains(version, prereleases=True):
        return version, True
    return f"{version}, but {requirement.specifier} is needed", False


def _packages() -> Iterator[Row]:
    for requirement in _requirements():
        value, ok = _installed(requirement)
        yield Row(requirement.name, value, ok)


def _extras() -> Iterator[Row]:
    try:
        extras = importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in sorted(extras):
        missing = [
            requirement.name
            for requirement in _requirements(extra)
            if not _installed(requirement)[1]
        ]
        yield Row(extra, f"not installed: {', '.join(missing)}" if missing else "installed")


def _machine() -> Iterator[Row]:
    yield Row("processor cores", f"{len(os.sched_getaffinity(0))} for us of {os.cpu_count()}")
    page, gib = os.sysconf("SC_PAGE_SIZE"), 2**30
    total, free = (os.sysconf(f"SC_{kind}_PAGES") * page / gib for kind in ("PHYS", "AVPHYS"))
    yield Row("memory", f"{total:.1f} GiB, {free:.1f} GiB of it unused")


def _tensorflow() -> Iterator[Row]:
    try:
        keras, tensorflow = importlib.import_module("keras"), importlib.import_module("tensorflow")
    except (ImportError, OSError) as error:
        yield Row("import", _first_line(error), ok=False)
        return
    backend = keras.backend.backend()
    fits = backend == "tensorflow"
    yield Row(
        "Keras backend",
        backend if fits else f"{backend}, but KERAS_BACKEND=tensorflow is needed",
        fits,
    )
    devices = tensorflow.config.list_logical_devices()
    yield Row("devices", ", ".join(device.name.removeprefix("/device:") for device in devices))
    threading = tensorflow.config.threading
    for name, threads in (
        ("threads within an op", threading.get_intra_op_parallelism_threads()),
        ("ops at a time", threading.get_inter_op_parallelism_threads()),
    ):
        yield Row(name, str(threads or "as many as there are cores"))


def _transfer_syntaxes() -> Iterator[Row]:
    try:
        from tf_covid.doctor import decoders
    except ImportError as error:
        yield Row("decoders", _first_line(error), ok=False)
        return
    for name, uid, broken in decoders.check():
        yield Row(name, f"{uid}: {broken}" if broken else uid, ok=not broken)


def _weights() -> Iterator[Row]:
    from tf_covid.weights import catalog, quarantine

    try:
        shipped = catalog.shipped()
    except ModelError as error:
        yield Row("folder", str(error), ok=False)
        return
    if not shipped:
        yield Row("models", f"none in {catalog.folder()}; reinstall {DISTRIBUTION}", ok=False)
    weights = importlib.import_module("tf_covid.weights")
    loaded: dict[str, LoadedModel] = {}
    for name, path in shipped.items():
        digest = quarantine.sha256(path)
        if not path.with_name(catalog.CARD).is_file():
            yield Row(name, "has no model card", ok=False)
        elif not catalog.matches_card(path, digest):
            yield Row(name, f"sha256 {digest} is not the one in its model card", ok=False)
        else:
            try:
                loaded[name] = weights.load(name)
            except (TfCovidError, ImportError, OSError) as error:
                yield Row(name, _first_line(error), ok=False)
    yield from (_fits(name, list(loaded.values())) for name in loaded)


def _fits(name: str, loaded: Sequence[LoadedModel]) -> Row:
    """What a shipped model is, and whether the lung models are there that it was trained behind."""
    model = next(one for one in loaded if one.name == name)
    for kind, behind in (
        ("lung", model.contract.lungs_sha256),
        ("lobe", model.contract.lobes_sha256),
    ):
        if behind is not None and not any(one.is_named(behind) for one in loaded):
            return Row(
                name,
                f"was trained behind a {kind} model that is not shipped (sha256 {behind})",
                ok=False,
            )
    count = model.network.count_params()
    return Row(
        name,
        f"{model.contract.task}, {count / 1e6:.2f} M weights, sha256 {model.sha256[:12]}…",
        ok=True,
    )


def _first_line(error: BaseException) -> str:
    return (
        f"{type(error).__name__}:"
        f" {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    )
