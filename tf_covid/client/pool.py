"""Several servers that have the same models, asked as if they were one.

A request goes to the server that has the fewest; one that fails is left out, asked every now and
then in the background, and comes back. A request that a server lost goes to another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tf_covid.client.remote import AIR, SIGNATURE, card_sha256s, one_scan
from tf_covid.client.transport import (
    AskedServer,
    Inputs,
    Rejected,
    ServerBusy,
    ServerLost,
    ServerUnavailable,
)
from tf_covid.errors import ServingError

#: Seconds between two looks at a server that is left out, at first and at most.
LOOK_AGAIN_S = (1.0, 30.0)

#: Seconds that a request waits while every server is left out.
PATIENCE_S = 60.0

#: A scan that so many servers went away under is not given to another: it may be what ends them.
MAX_LOST = 3

#: Answers of different servers that end a request, where each is at fault in its own words.
_MAX_FAULTS = 2


@dataclass
class _Pooled:
    """A server, and how it stands."""

    server: AskedServer
    in_flight: int = 0
    asked: int = 0
    left_out: bool = False
    #: Has another export than the others: it does not come back.
    other: bool = False


class ServerPool:
    """Several servers behind one front; threads may use it at the same time.

    Args:
        servers: Servers, from `connect`.
        names: Names of the models that are asked for; every server has them.
        on_message: Called with a line when a server is left out, and when it is back.

    Raises:
        ServingError: If no server answers, or two have different exports under one name.
    """

    def __init__(
        self,
        servers: Sequence[AskedServer],
        names: Sequence[str],
        on_message: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._pooled = [_Pooled(server) for server in servers]
        self._names, self._on_message = tuple(names), on_message
        self._changed, self._closed = threading.Condition(), threading.Event()
        #: The card of each model, by the server that answered first.
        self._cards: dict[str, bytes] = {}
        self.url = ", ".join(server.url for server in servers)
        reasons = []
        for pooled in self._pooled:
            try:
                self._look_at(pooled)
            except OtherExport:
                self.close()
                raise
            except ServingError as error:
                reasons.append(str(error))
                self._leave_out(pooled, str(error))
        if len(reasons) == len(self._pooled):
            self.close()
            raise ServingError(f"no server answers: {'; '.join(reasons)}")

    def close(self) -> None:
        """Look at no server any more."""
        self._closed.set()
        with self._changed:
            self._changed.notify_all()

    def predict(
        self, model: str, signature: str, inputs: Inputs, version: int | None = None
    ) -> dict[str, Any]:
        """Named outputs of whichever server has the fewest requests; see `RestServer.predict`.

        Raises:
            Rejected: If a server rejects the scan, or `MAX_LOST` of them went away under it.
            ServerBusy: If every server that is there is busy.
            ServerUnavailable: If none is there for `PATIENCE_S`.
            ServingError: If two servers fail, each in its own words, or all have another export.
        """
        lost, faults, busy = 0, 0, set[int]()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            pooled = self._taken(busy, deadline)
            try:
                answer = pooled.server.predict(model, signature, inputs, version)
                self._check(pooled, model, answer)
                return answer
            except Rejected:
                raise
            except ServerBusy as error:
                busy.add(id(pooled))
                if self._all_of_those_there(busy):
                    raise
                self._on_message(f"{error}; asking another server")
            except ServerUnavailable as error:
                self._leave_out(pooled, str(error))
                lost += isinstance(error, ServerLost)
                if lost >= MAX_LOST:
                    raise Rejected(
                        f"{lost} servers went away while they had this scan; the last: {error}"
                    ) from error
            except OtherExport as error:
                self._leave_out(pooled, str(error))
            except ServingError as error:
                self._leave_out(pooled, str(error))
                faults += 1
                if faults >= min(_MAX_FAULTS, len(self._pooled)):
                    raise
            finally:
                with self._changed:
                    pooled.in_flight -= 1
                    self._changed.notify_all()

    def _taken(self, busy: set[int], deadline: float) -> _Pooled:
        """The server with the fewest requests, which has one more now; waits while none is in."""
        with self._changed:
            while True:
                ready = [one for one in self._pooled if not one.left_out and id(one) not in busy]
                if ready:
                    chosen = min(ready, key=lambda one: (one.in_flight, one.asked))
                    chosen.in_flight += 1
                    chosen.asked += 1
                    return chosen
                if all(one.other for one in self._pooled):
                    raise ServingError(
                        f"other_export: every server has another export now ({self.url}); run again"
                    )
                if busy:  # those that are there were busy, and the others have gone since
                    busy.clear()
                    continue
                left = deadline - time.monotonic()
                if left <= 0 or self._closed.is_set():
                    raise ServerUnavailable(
                        f"none of {len(self._pooled)} servers answers ({self.url})"
                    )
                self._changed.wait(left)

    def _all_of_those_there(self, busy: set[int]) -> bool:
        with self._changed:
            return all(one.left_out or id(one) in busy for one in self._pooled)

    def _leave_out(self, pooled: _Pooled, reason: str) -> None:
        with self._changed:
            if pooled.left_out:
                return
            pooled.left_out = True
        self._on_message(f"{reason}; {pooled.server.url} is left out until it answers")
        threading.Thread(target=self._bring_back, args=(pooled,), daemon=True).start()

    def _bring_back(self, pooled: _Pooled) -> None:
        """Look at a server that is left out until it answers."""
        pause, longest = LOOK_AGAIN_S
        while not self._closed.wait(pause):
            pause = min(2 * pause, longest)
            try:
                self._look_at(pooled)
            except OtherExport as error:
                self._on_message(f"{error}; {pooled.server.url} stays left out")
                return
            except ServingError:
                continue
            with self._changed:
                pooled.left_out = False
                self._changed.notify_all()
            self._on_message(f"{pooled.server.url} answers again")
            return

    def _look_at(self, pooled: _Pooled) -> None:
        """Ask a server for the card of each model.

        Raises:
            ServingError: If it does not answer.
        """
        for name in self._names:
            answer = pooled.server.predict(name, SIGNATURE, one_scan(AIR))
            self._check(pooled, name, answer)

    def _check(self, pooled: _Pooled, name: str, answer: dict[str, Any]) -> None:
        """See that an answer comes from the export that the other servers have.

        Raises:
            OtherExport: If it does not.
        """
        weights = card_sha256s(answer, pooled.server.url)
        (model_card,) = answer["card_bytes"]
        with self._changed:
            right = self._cards.setdefault(name, model_card)
            if model_card == right:
                return
            pooled.other = True
            theirs = card_sha256s({"card_bytes": [right]}, pooled.server.url)
        differs = (
            f"{_short(weights)}, those before it {_short(theirs)}"
            if weights != theirs
            else "of the same weights in an export that differs"
        )
        raise OtherExport(f"other_export: {pooled.server.url} has a model {name} {differs}")


class OtherExport(ServingError):
    """A server has another export than those before it under the same name."""


def _short(sha256s: tuple[str, ...]) -> str:
    return " + ".join(sha256[:12] for sha256 in sha256s)
