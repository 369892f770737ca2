"""Answers from a server, ours or TF Serving.

What `tfcovid infer --server` hands to the pipeline.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_covid.client.transport import AskedServer, Inputs, Rejected, ServerUnavailable
from tf_covid.errors import ScanRefused, ServingError
from tf_covid.exported import MASKS, ExportedModels, described, lungs_sha256s
from tf_covid.result import QualityFlag

#: What a scan is asked with: all that `infer` needs, in one call.
SIGNATURE = "infer_bytes"

#: A scan of air, to ask for a model's card with: every answer brings it.
AIR = np.full((1, 8, 8), -1000, np.int16)

#: How often a busy or restarting server is asked again.
TRIES = 6


class RemoteModels(ExportedModels):
    """One or more models of one task that a server has; the counterpart of `local.LocalModels`.

    Args:
        server: Server, from `connect`; or several, from `client.pool`.
        names: Names of the models on the server.
        on_message: Called with a line when the server has to be asked again.

    Raises:
        ServingError: If the server or one of the models cannot be reached, or is none of ours.
        ModelError: If the models do not go together.
    """

    def __init__(
        self,
        server: AskedServer,
        names: Sequence[str],
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._server, self._on_message = server, on_message
        self._sources = list(names)
        cards = [(name, text_of(self._ask(name, AIR), "card_bytes")) for name in names]
        super().__init__([described(text, server.url, name) for name, text in cards], "the server")

    @property
    def versions(self) -> dict[str, str]:
        """Of the server's side."""
        return {"server": "; ".join(dict.fromkeys(model.version for model in self.models))}

    def asked(self, index: int, hu: np.ndarray) -> dict[str, Any]:
        """What the server answers; its masks, which come as text, as arrays.

        Raises:
            ScanRefused: If the server rejects the scan.
            ServingError: If it does not answer, or with another model than at first.
        """
        model = self.models[index]
        try:
            answer = self._ask(self._sources[index], hu)
        except Rejected as error:
            raise ScanRefused([QualityFlag("server_refused", "error", str(error))]) from error
        if card_sha256s(answer, self._server.url) != (model.sha256, *model.lungs_sha256s):
            raise ServingError(
                f"{self._server.url}: its model {model.name} is another one now; run again"
            )
        masks = {name: f"{name}_bytes" for name in MASKS}
        return answer | {
            name: _volume(answer, field)[np.newaxis]
            for name, field in masks.items()
            if field in answer
        }

    def _ask(self, name: str, hu: np.ndarray) -> dict[str, Any]:
        inputs = one_scan(hu)
        for index in range(1, TRIES + 1):
            try:
                return self._server.predict(name, SIGNATURE, inputs)
            except ServerUnavailable as error:
                if index == TRIES:
                    raise
                self._on_message(f"{error}; asking again")
                time.sleep(min(0.5 * 2**index, 15.0))
        raise AssertionError("the last try returns or raises")


def one_scan(hu: np.ndarray) -> Inputs:
    """Inputs of `SIGNATURE` for one scan, int16 (D, H, W)."""
    return {
        "hu_bytes": np.array([np.ascontiguousarray(hu, "<i2").tobytes()], object),
        "shape": np.array([hu.shape], np.int32),
    }


def text_of(answer: dict[str, Any], name: str) -> bytes:
    """The bytes that an answer has for its only scan.

    Raises:
        ServingError: If it has none.
    """
    try:
        (text,) = list(answer[name])
    except (KeyError, TypeError, ValueError) as error:
        raise ServingError(
            f"the server's answer has no {name}: it is no export of `tfcovid export`"
        ) from error
    if not isinstance(text, bytes):
        raise ServingError(f"the server's {name} are no bytes")
    return text


def _volume(answer: dict[str, Any], name: str) -> np.ndarray:
    """float32 values of a serialized tensor."""
    try:
        return np.asarray(tf.io.parse_tensor(text_of(answer, name), tf.float32))
    except tf.errors.OpError as error:
        raise ServingError(f"the server's {name} are no tensor") from error


def card_sha256s(answer: dict[str, Any], url: str) -> tuple[str, ...]:
    """Identities of the network and of its lung models, from an answer of `infer_bytes`.

    Raises:
        ServingError: If it tells none.
    """
    try:
        facts = json.loads(text_of(answer, "card_bytes"))
        return str(facts["sha256"]), *lungs_sha256s(facts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ServingError(f"{url}: its card cannot be read") from error
