"""`tfcovid verify`: proof that Keras, SavedModel, another runtime and a server answer alike."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from tf_covid.client.remote import card_sha256s
from tf_covid.client.transport import GrpcServer, RestServer, connect
from tf_covid.errors import ServingError
from tf_covid.export import graph_ops
from tf_covid.export.savedmodel import CLIP_SUFFIX
from tf_covid.exported import TOLERANCE
from tf_covid.local import LocalModels
from tf_covid.phantom.cohort import write_cohort
from tf_covid.scan import find_cases
from tf_covid.server.server import Server
from tf_covid.server.settings import ServerSettings
from tf_covid.verify import replay
from tf_covid.verify.openvino import SIGNATURES, OpenVino
from tf_covid.verify.reference import Reference, largest_difference, reference

#: REST writes numbers as text: only the signatures that are made for it are asked that way.
REST_SIGNATURES = ("serving_bytes", "infer_bytes", "classify_clip")

#: Seconds that the export may take for all scans in a process of its own.
_REPLAY_S = 1800.0

Ask = Callable[[str, dict[str, np.ndarray]], dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """One way of asking, about one scan.

    Args:
        route: "SavedModel", "OpenVINO", "REST", "gRPC", or "NIfTI against DICOM".
        scan: Name of the scan.
        signature: Which was asked.
        difference: The largest, see `exported.TOLERANCE`; None where it was not checked.
        where: The value that differs most; or why it was not checked.
    """

    route: str
    scan: str
    signature: str
    difference: float | None
    where: str

    @property
    def holds(self) -> bool:
        """False where the answers differ."""
        return self.difference is None or self.difference <= TOLERANCE

    def line(self) -> str:
        """For a person."""
        if self.difference is None:
            return f"{self.route:20} {self.scan:16} not checked: {self.where}"
        verdict = "ok" if self.holds else f"DIFFERS in {self.where}"
        return (
            f"{self.route:20} {self.scan:16} {self.signature:16} {self.difference:.1e}  {verdict}"
        )


def verify(
    source: str | Path | LocalModels,
    export: Path,
    servers: Sequence[str] = (),
    scans: Sequence[Path] = (),
    on_message: Callable[[str], None] = lambda text: None,
    token: str | None = None,
) -> Iterator[Check]:
    """Compare, one check after the other.

    Args:
        source: The model: a shipped name or a `.keras` file; or one behind its lung models.
        export: Its export, `…/NAME` (the newest version) or `…/NAME/VERSION`.
        servers: URLs of servers that have the model under the name of the export's folder; none:
            the embedded server is started over the export, and asked by REST and gRPC.
        scans: Chest CTs; none: a synthetic patient, as DICOM and as NIfTI.
        on_message: Called with a line about what is going on.
        token: Token of the servers.

    Raises:
        ServingError: If the export is missing or a way of asking fails.
        ModelError, ScanRefused: If the model or a scan cannot be used.
    """
    folder = version_folder(export)
    clip = folder.parent.with_name(folder.parent.name + CLIP_SUFFIX) / folder.name
    for position in (folder, clip):
        _check_safe(position)
    models = source if isinstance(source, LocalModels) else LocalModels([source])
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        on_message("asking Keras and tf-keras-vis")
        asked = list(_references(models, scans, temporary))
        if not scans:
            yield _formats(*asked)
        on_message("asking the SavedModel in a process of its own")
        for request, signature, answer in _replayed(folder, asked, temporary):
            yield _check("SavedModel", request, signature, answer)
        yield from _clip_entry(clip, asked, temporary)
        on_message("asking OpenVINO")
        yield from _with_openvino(folder, asked)
        if not servers:
            servers = stack.enter_context(_embedded(folder, temporary))
        for url in servers:
            server = connect(url, token)
            stack.callback(server.close)
            on_message(f"asking {url}")
            yield from _with_server(server, folder, asked)


def version_folder(export: Path) -> Path:
    """The folder of an export's version: itself, or the newest in it.

    Raises:
        ServingError: If there is none.
    """
    # Not resolved: a link's own name is that of the model on a server.
    export = export.absolute()
    if (export / "saved_model.pb").is_file():
        return export
    paths = export.glob("*/saved_model.pb")
    results = [
        path for path in paths if path.parent.name.isascii() and path.parent.name.isdecimal()
    ]
    if not results:
        raise ServingError(
            f"{export}: no export is there; `tfcovid export MODEL --out {export}` writes one"
        )
    return max(results, key=lambda path: int(path.parent.name)).parent


def _check_safe(folder: Path) -> None:
    """Refuse what a server would refuse, before it is loaded here: a SavedModel is a program."""
    if not (folder / "saved_model.pb").is_file():
        return
    try:
        saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        for graph in saved.meta_graphs:
            graph_ops.check(graph)
    except (DecodeError, OSError) as error:
        raise ServingError(
            f"{folder}: saved_model.pb cannot be read ({type(error).__name__})"
        ) from error
    except ServingError as error:
        raise ServingError(f"{folder}: {error}") from error


def _references(models: LocalModels, scans: Sequence[Path], folder: Path) -> Iterator[Reference]:
    if not scans:
        for kind in ("dicom", "nifti"):
            write_cohort(folder / kind, 1, seed=7, size=192, slices=48, format=kind)
        scans = [
            next((folder / "dicom").glob("*/dicom")),
            next((folder / "nifti").glob("*/ct.nii.gz")),
        ]
    for path in scans:
        for case in find_cases(path):
            yield reference(models, case.name, case.read().hu)


def _formats(dicom: Reference, nifti: Reference) -> Check:
    right, other = dicom.right["explain"], nifti.right["explain"]
    difference, where = largest_difference(
        right, {name: np.asarray(value)[np.newaxis] for name, value in other.items()}
    )
    return Check("NIfTI against DICOM", dicom.name, "Keras", difference, where)


def _check(route: str, reference: Reference, signature: str, answer: dict[str, Any]) -> Check:
    if signature == "infer_bytes" and card_sha256s(answer, route) != reference.sha256s:
        return Check(route, reference.name, signature, float("inf"), "card_bytes")
    return Check(
        route, reference.name, signature, *largest_difference(reference.right[signature], answer)
    )


def _replayed(
    export: Path, asked: Sequence[Reference], folder: Path
) -> Iterator[tuple[Reference, str, dict[str, Any]]]:
    questions = [(one, signature) for one in asked for signature in one.inputs]
    answers = _ask_alone(export, [(name, one.inputs[name]) for one, name in questions], folder)
    for (one, name), answer in zip(questions, answers, strict=True):
        yield one, name, answer


def _clip_entry(clip: Path, asked: Sequence[Reference], folder: Path) -> Iterator[Check]:
    """The second export, which takes prepared clips only."""
    if not (clip / "saved_model.pb").is_file():
        yield Check("clip entry", "", "serving_default", None, f"{clip} is not there")
        return
    questions = [("serving_default", one.inputs["classify_clip"]) for one in asked]
    for one, answer in zip(asked, _ask_alone(clip, questions, folder), strict=True):
        yield Check(
            "clip entry",
            one.name,
            "serving_default",
            *largest_difference(one.right["classify_clip"], answer),
        )


def _ask_alone(
    export: Path, questions: Sequence[tuple[str, dict[str, np.ndarray]]], folder: Path
) -> list[dict[str, np.ndarray]]:
    """What a SavedModel answers in a process of its own."""
    files = folder / "questions.npz", folder / "answers.npz"
    replay.pack(files[0], questions)
    command = [sys.executable, "-m", "tf_covid.verify.replay", str(export), *map(str, files)]
    try:
        done = subprocess.run(  # noqa: S603  # our own module; no shell
            command, capture_output=True, text=True, timeout=_REPLAY_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ServingError(f"{export}: no answer in {_REPLAY_S:.0f} s") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no further text"])[-1]
        raise ServingError(
            f"{export}: the SavedModel fails in a process of its own: {reason[:500]}"
        )
    return [answer for _, answer in replay.unpack(files[1])]


def _with_openvino(export: Path, asked: Sequence[Reference]) -> Iterator[Check]:
    for signature in SIGNATURES:
        try:
            runtime = OpenVino(export, signature)
        except ServingError as error:
            # Nothing to hold against the export where OpenVINO is not installed; else it is.
            if not isinstance(error.__cause__, ImportError):
                raise
            yield Check("OpenVINO", "", signature, None, str(error))
            return
        for one in asked:
            yield _check("OpenVINO", one, signature, runtime(one.inputs[signature]))


def _with_server(
    server: RestServer | GrpcServer, export: Path, asked: Sequence[Reference]
) -> Iterator[Check]:
    name, version = export.parent.name, int(export.name)
    rest = isinstance(server, RestServer)
    for one in asked:
        for signature in REST_SIGNATURES if rest else one.inputs:
            answer = server.predict(name, signature, one.inputs[signature], version)
            yield _check("REST" if rest else "gRPC", one, signature, answer)


@contextmanager
def _embedded(export: Path, folder: Path) -> Iterator[Sequence[str]]:
    """URLs of an embedded server that has this version only."""
    position = folder / "models" / export.parent.name
    position.mkdir(parents=True)
    (position / export.name).symlink_to(export.resolve(), target_is_directory=True)
    with Server(
        ServerSettings(models=folder / "models", port=0, grpc_port=0, time_limit_s=_REPLAY_S)
    ) as server:
        if not server.wait_until_ready(_REPLAY_S, export.parent.name):
            raise ServingError(f"{export}: the embedded server cannot load it")
        yield [server.rest_url, f"grpc://{server.grpc_address}"]
