"""A mixed load: good requests between malformed, lying, oversize, aborted and slow ones."""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from load import LOST, Client, Question, Reply, in_threads, message, patiently, rest_body
from processes import ServerProcess

#: Codes of a request that makes no sense, and of a name that is not there.
_INVALID, _MISSING = ("400", "INVALID_ARGUMENT"), ("404", "NOT_FOUND")


@dataclass(frozen=True)
class Site:
    """What a request is made of.

    Args:
        model: Name of the road; its clips are asked of another model.
        scans, clips: Good questions.
        most_bytes: Largest request that the server takes.
    """

    model: str
    scans: Sequence[Question]
    clips: Sequence[Question]
    most_bytes: int


#: The reply, and the question if a good answer is one to it.
_Answered = tuple[Reply, Question | None]


@dataclass(frozen=True)
class Kind:
    """One kind of request.

    Args:
        name: For people.
        share: How often it comes, against the others.
        codes: The right ones; a good answer must have the right values, too.
        ask: Sends one.
    """

    name: str
    share: int
    codes: tuple[str, ...]
    ask: Callable[[Client, Site, random.Random], _Answered]


@dataclass
class Tally:
    """What became of the requests of one kind."""

    sent: int = 0
    right: int = 0
    waits: int = 0
    lost: int = 0
    wrong: int = 0
    longest_s: float = 0.0
    faults: list[str] = field(default_factory=list)


def _good_grpc(client: Client, site: Site, rng: random.Random) -> _Answered:
    question = rng.choice(site.scans)
    return client.by_grpc(question.message), question


def _good_clip(client: Client, site: Site, rng: random.Random) -> _Answered:
    question = rng.choice(site.clips)
    return client.by_grpc(question.message), question


def _good_rest(client: Client, site: Site, rng: random.Random) -> _Answered:
    question = rng.choice(site.scans)
    return client.predict(site.model, question.body), question


def _slow(client: Client, site: Site, rng: random.Random) -> _Answered:
    question = rng.choice(site.scans)
    step = len(question.body) // 12 + 1
    pieces = [question.body[start : start + step] for start in range(0, len(question.body), step)]
    return (
        client.by_rest(f"/v1/models/{site.model}:predict", pieces, pause_s=rng.uniform(0.05, 0.2)),
        question,
    )


def _malformed(client: Client, site: Site, rng: random.Random) -> _Answered:
    body = rng.choice(site.scans).body
    bodies = [
        b"",
        b"nonsense",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b'{"inputs": ',
        b"[1, 2, 3]",
        b'"inputs"',
        b'{"signature_name": 5, "inputs": {}}',
        body[: rng.randrange(1, len(body))],
        body + b"}",
        body * 2,
    ]
    return client.predict(site.model, rng.choice(bodies)), None


def _types_rest(client: Client, site: Site, rng: random.Random) -> _Answered:
    values = [[1, 2], [None], "text", [{"b64": "*"}], [{"b64": 5}], {"b64": {}}, [["AAAA"]], True]
    inputs = {"hu_bytes": rng.choice(values), "shape": [[1, 1, 1]]}
    if rng.random() < 0.5:
        shapes = [[[1.5, 2, 2]], [["1", 2, 2]], [[2**40, 1, 1]], "1", [[None, 1, 1]]]
        inputs = {"hu_bytes": [{"b64": "AAA="}], "shape": rng.choice(shapes)}
    return (
        client.predict(
            site.model, json.dumps({"signature_name": "serving_bytes", "inputs": inputs}).encode()
        ),
        None,
    )


def _types_grpc(client: Client, site: Site, rng: random.Random) -> _Answered:
    hu, depth = np.zeros((1, 4, 16, 16)), np.array([4])
    good = {"hu": hu.astype(np.int16), "depth": depth.astype(np.int32)}
    wrong = [{"hu": hu}, {"depth": depth}, {"hu": np.array([b"text"], object)}, {"more": depth}]
    inputs = {**good, **rng.choice(wrong)}
    return client.by_grpc(message(site.model, "serving_default", inputs).SerializeToString()), None


def _unknown_rest(client: Client, site: Site, rng: random.Random) -> _Answered:
    name = rng.choice(
        [
            "nobody",
            f"{site.model}/versions/999",
            "..%2f..",
            "x" * 3000,
            f"{site.model}/versions/one",
        ]
    )
    return client.predict(name, rng.choice(site.scans).body), None


def _unknown_grpc(client: Client, site: Site, rng: random.Random) -> _Answered:
    name, version = rng.choice(
        [("nobody", None), (site.model, 999), ("../..", None), ("x" * 3000, None)]
    )
    request = message(name, "serving_default", {"hu": np.zeros((1, 4, 16, 16), np.int16)}, version)
    return client.by_grpc(request.SerializeToString()), None


def _shapes_rest(client: Client, site: Site, rng: random.Random) -> _Answered:
    shape = rng.choice(
        [(4, 16, 17), (0, 16, 16), (4, 16, -16), (4, 256), (4, 16, 16, 1), (2**31 - 1,) * 3]
    )
    return client.predict(site.model, rest_body(np.zeros((4, 16, 16), np.int16), shape)), None


def _shapes_grpc(client: Client, site: Site, rng: random.Random) -> _Answered:
    shape = rng.choice([(4, 16, 16), (1, 0, 16, 16), (1, 4, 0, 16), (1, 4, 16, 16, 1), ()])
    inputs = {"hu": np.zeros(shape, np.int16), "depth": np.array([4], np.int32)}
    return client.by_grpc(message(site.model, "serving_default", inputs).SerializeToString()), None


def _lying(client: Client, site: Site, rng: random.Random) -> _Answered:
    """A tensor that is not what it says."""
    hu = np.zeros((1, 4, 16, 16), np.int16)
    request = message(site.model, "serving_default", {"hu": hu, "depth": np.array([4], np.int32)})
    proto = request.inputs["hu"]
    proto.tensor_content = hu.tobytes()
    lie = rng.randrange(6)
    if lie == 0:  # more than there is
        proto.tensor_shape.dim[1].size = 4000
    elif lie == 1:  # less than there is
        proto.tensor_content += b"\0\0"
    elif lie == 2:  # 4 TB in one value
        proto.tensor_content = b""
        proto.int_val.append(7)
        for axis, size in enumerate((1, 2048, 32768, 32768)):
            proto.tensor_shape.dim[axis].size = size
    elif lie == 3:  # sizes that overflow
        for axis in range(4):
            proto.tensor_shape.dim[axis].size = rng.choice([2**62, 2**32, -1])
    elif lie == 4:  # no 16-bit number
        proto.tensor_content = b""
        proto.int_val.append(70_000)
    else:
        proto.dtype = 99
    return client.by_grpc(request.SerializeToString()), None


def _no_message(client: Client, site: Site, rng: random.Random) -> _Answered:
    return client.by_grpc(b"\xff" + rng.randbytes(rng.randrange(1, 5000))), None


def _oversize_said(client: Client, site: Site, rng: random.Random) -> _Answered:
    return (
        client.by_rest(
            f"/v1/models/{site.model}:predict",
            [b"{"],
            length=site.most_bytes * rng.choice([2, 2**40]),
        ),
        None,
    )


def _oversize_rest(client: Client, site: Site, rng: random.Random) -> _Answered:
    piece = b" " * 2**20
    path = rng.choice([f"/v1/models/{site.model}:predict", "/v1/scans"])
    return client.by_rest(path, [piece] * (site.most_bytes // len(piece) + 1)), None


def _oversize_grpc(client: Client, site: Site, rng: random.Random) -> _Answered:
    hu = np.zeros((1, site.most_bytes // 2 // 2**16 + 1, 256, 256), np.int16)
    return (
        client.by_grpc(message(site.model, "serving_default", {"hu": hu}).SerializeToString()),
        None,
    )


def _aborted(client: Client, site: Site, rng: random.Random) -> _Answered:
    """Goes in the middle of its body, or after it; then the server must still be there."""
    body, connection = rng.choice(site.scans).body, client.connect()
    try:
        client.begin(connection, f"/v1/models/{site.model}:predict", len(body))
        connection.send(body[: rng.choice([0, 1, len(body) // 2, len(body) - 1, len(body)])])
        time.sleep(rng.choice([0, 0.02, 0.2]))
    finally:
        connection.close()
    return _health(client), None


def _cancelled(client: Client, site: Site, rng: random.Random) -> _Answered:
    question = rng.choice([*site.scans, *site.clips])
    call = client.call.future(question.message, timeout=client.patience_s)
    time.sleep(rng.choice([0, 0.02, 0.2]))
    call.cancel()
    reply = client.reply_of(call)
    return (_health(client), None) if reply.code == "CANCELLED" else (reply, question)


def _rubbish_scan(client: Client, site: Site, rng: random.Random) -> _Answered:
    heads = [
        b"",
        b"no scan",
        b"PK",
        b"\x5c\x01\0\0",
        rng.randbytes(50_000),
        b"\x89PNG",
        b"\0" * 400,
    ]
    return client.by_rest("/v1/scans", [rng.choice(heads)]), None


def _broken_scan(client: Client, site: Site, rng: random.Random) -> _Answered:
    """Begins like a zip or NIfTI, so that a process is started to read it."""
    nifti = b"\x5c\x01\0\0" + bytes(340) + b"n+1\0"
    head = rng.choice([b"PK\x03\x04", b"\x1f\x8b\x08", nifti])
    return client.by_rest("/v1/scans", [head, rng.randbytes(5000)]), None


def _health(client: Client) -> Reply:
    connection = client.connect()
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        answer.read()
        return Reply(str(answer.status))
    except OSError as error:
        return Reply(LOST, f"/healthz: {error}")
    finally:
        connection.close()


KINDS = (
    Kind("good scan, gRPC", 5, ("OK",), _good_grpc),
    Kind("good scan, REST", 5, ("200",), _good_rest),
    Kind("good clip, gRPC", 5, ("OK",), _good_clip),
    Kind("good scan, REST, dribbled", 2, ("200",), _slow),
    Kind("malformed JSON", 3, _INVALID, _malformed),
    Kind("wrong types, REST", 2, _INVALID, _types_rest),
    Kind("wrong types, gRPC", 2, _INVALID, _types_grpc),
    Kind("unknown model or version, REST", 1, _MISSING, _unknown_rest),
    Kind("unknown model or version, gRPC", 1, _MISSING, _unknown_grpc),
    Kind("wrong shapes, REST", 2, _INVALID, _shapes_rest),
    Kind("wrong shapes, gRPC", 2, _INVALID, _shapes_grpc),
    Kind("lying protos", 3, _INVALID, _lying),
    # grpcio itself says so, before any code of ours is asked.
    Kind("no proto at all", 1, ("INTERNAL", *_INVALID), _no_message),
    Kind("oversize by its headers, REST", 1, ("413",), _oversize_said),
    Kind("oversize, REST", 2, ("413",), _oversize_rest),
    Kind("oversize, gRPC", 2, ("RESOURCE_EXHAUSTED",), _oversize_grpc),
    Kind("aborted, REST", 3, ("200",), _aborted),
    Kind("cancelled, gRPC", 2, ("200", "OK"), _cancelled),
    Kind("rubbish to /v1/scans", 1, ("400",), _rubbish_scan),
    Kind("broken zip or NIfTI to /v1/scans", 1, ("400", "422"), _broken_scan),
)


def mix(
    server: ServerProcess, site: Site, count: int, clients: int, *, patience_s: float, seed: int
) -> dict[str, Tally]:
    """Let several clients send requests of all kinds.

    Args:
        server: Who is asked.
        site: What requests are made of.
        count: Of requests; every kind comes at least once where they are enough.
        clients: How many send at once.
        patience_s: How long a client waits for one answer.
        seed: Of the order, and of all that is drawn.
    """
    rng = random.Random(seed)
    drawn = rng.choices(KINDS, [kind.share for kind in KINDS], k=max(count - len(KINDS), 0))
    plan = [*rng.sample(KINDS, len(KINDS)), *drawn][:count]
    rng.shuffle(plan)
    tallies, lock, todo = {kind.name: Tally() for kind in KINDS}, threading.Lock(), iter(plan)

    def work(client: Client, rng: random.Random) -> None:
        while True:
            with lock:
                kind = next(todo, None)
                if kind is None:
                    return
                tallies[kind.name].sent += 1
            begin, asked = time.monotonic(), list[Question | None]()

            def ask(kind: Kind = kind, asked: list[Question | None] = asked) -> Reply:
                reply, question = kind.ask(client, site, rng)
                asked.append(question)
                return reply

            reply, waits = patiently(ask, begin + patience_s)
            with lock:
                _count(tallies[kind.name], kind, reply, asked[-1], waits, time.monotonic() - begin)

    in_threads(server, patience_s, clients, seed, work)
    return tallies


def _count(
    tally: Tally, kind: Kind, reply: Reply, question: Question | None, waits: int, seconds: float
) -> None:
    tally.waits += waits
    tally.longest_s = max(tally.longest_s, seconds)
    fault = "" if reply.code in kind.codes else f"{reply.code} {reply.text}"
    if not fault and question is not None:
        fault = question.fault_of(reply.outputs)
    tally.right += not fault
    tally.lost += reply.code == LOST
    tally.wrong += bool(fault) and reply.code != LOST
    tally.faults += [fault] if fault else []


def sent_by_kind(tallies: dict[str, Tally]) -> Counter[str]:
    """Sums over all kinds."""
    names = ("sent", "right", "lost", "wrong", "waits")
    return Counter(
        {name: sum(getattr(tally, name) for tally in tallies.values()) for name in names}
    )
