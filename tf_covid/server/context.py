"""What both protocols of one server share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from google.protobuf import any_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from tf_covid.server.batcher import Batcher
from tf_covid.server.errors import Unavailable
from tf_covid.server.metrics import Metrics
from tf_covid.server.repository import Repository
from tf_covid.server.servable import Version
from tf_covid.server.settings import ServerSettings
from tf_covid.tensor import Message


@dataclass(frozen=True)
class ServerContext:
    """The parts of one server.

    Args:
        settings: Settings of the server.
        repository: Models that are served.
        batcher: Queue of the computations.
        metrics: Counters of the server.
        stopping: Set once it is to end: it is not ready any more, and takes no scans.
        closed: Set once it takes no more requests; until then a scan in flight may ask for its
            answers.
    """

    settings: ServerSettings
    repository: Repository
    batcher: Batcher
    metrics: Metrics
    stopping: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)

    def check_open(self) -> None:
        """Raise `Unavailable` if no more requests are taken."""
        if self.closed.is_set():
            raise Unavailable("the server is stopping")

    def status(self, name: str, version: int | None) -> Message:
        """`GetModelStatusResponse` of a model, or of one of its versions.

        Raises:
            NotFound: If there is none.
        """
        response = get_model_status_pb2.GetModelStatusResponse()
        for results in self.repository.statuses(name, version):
            row = response.model_version_status.add(version=results.version, state=results.state)
            if results.error:
                row.status.error_code = 2  # UNKNOWN, in TensorFlow's list of codes
                row.status.error_message = results.error
            else:
                row.status.SetInParent()
        return response


def signature_map(version: Version) -> Message:
    """`SignatureDefMap` of a version."""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in version.signature_defs.items():
        signatures.signature_def[name].CopyFrom(definition)
    return signatures


def metadata(version: Version) -> Message:
    """`GetModelMetadataResponse` of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = version.name
    response.model_spec.version.value = version.number
    packed = any_pb2.Any()
    packed.Pack(signature_map(version))
    response.metadata["signature_def"].CopyFrom(packed)
    return response
