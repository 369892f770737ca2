"""One uploaded scan, answered by `tfcovid infer` in a process that may fall alone."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tf_covid.server.errors import (
    ClientDisconnected,
    Failed,
    InvalidArgument,
    OutOfMemory,
    RequestError,
    TooSlow,
    Unavailable,
)

#: Files of an answer that are handed out, and what they are.
FILES = {
    "report.html": "text/html; charset=utf-8",
    "montage.png": "image/png",
    "lungs.nii.gz": "application/gzip",
    "lobes.nii.gz": "application/gzip",
    "lesions.nii.gz": "application/gzip",
    "attention.nii.gz": "application/gzip",
}

#: Largest result.json, and most of what the child says that is read, in bytes.
_MOST_JSON, _MOST_WORDS = 8_000_000, 16_384

#: Seconds between two looks whether the child has ended.
_TICK_S = 0.05

#: What `tfcovid infer --one-case` says of an upload with several.
_SEVERAL = re.compile(r"several_cases: (.*)")

#: What the child says when it is this server that did not answer it: its line is nothing for who
#: sent the scan.
_OWN = re.compile(r"https?://\S+ (does not answer|answered (5\d\d|429))")

#: Becomes the command, which the system then kills as soon as this process is gone, whatever that
#: died of. The signal outlives the exec; it comes with the end of the thread that started the
#: child, and that one waits for it.
_ENDS_WITH_US = """
import ctypes, os, signal, sys
ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""

Command = Callable[[Path, Path, str], Sequence[str]]


class SeveralCases(RequestError):
    """An upload with several cases: one patient's answer must not go for another's."""

    http, grpc = 422, "FAILED_PRECONDITION"


@dataclass(frozen=True)
class ProcessLimits:
    """What a child may use.

    Args:
        seconds: Longest time, in seconds.
        memory_bytes: Largest address space, in bytes.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class ScanAnswer:
    """A child's answer.

    Args:
        values: Of result.json.
        files: Files of the answer that are there, of `FILES`.
    """

    values: dict[str, Any]
    files: dict[str, Path]


def infer_command(server: Callable[[], str]) -> Command:
    """The real command: `tfcovid infer UPLOAD --out OUT --one-case --server URL --model NAME`.

    Args:
        server: Tells this server's URL.
    """

    def command(upload: Path, out: Path, model: str) -> Sequence[str]:
        return (
            # -P: the folder that it works in, with the upload, is no place to import from.
            *(
                sys.executable,
                "-P",
                "-m",
                "tf_covid.cli",
                "infer",
                str(upload),
                "--out",
                str(out),
                "--one-case",
            ),
            *("--server", server(), "--model", model),
        )

    return command


def run(
    command: Sequence[str],
    folder: Path,
    out: Path,
    token: str | None,
    limits: ProcessLimits,
    given_up: threading.Event,
) -> ScanAnswer:
    """Run a child until it has written its answer.

    Args:
        command: What to run.
        folder: Private folder that it works in; its temporary files go there, too.
        out: Folder, below, that it writes `<case>/result.json` to.
        token: Handed over as `TFCOVID_TOKEN`, not on the command line, which everybody can read.
        limits: Limits of time and memory.
        given_up: Set when nobody waits any more; the child is killed.

    Raises:
        RequestError: Why there is no answer.
    """
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("TFCOVID_TOKEN", None)
    if token is not None:
        environment["TFCOVID_TOKEN"] = token
    log_file = folder / "words.txt"
    with log_file.open("wb") as said:
        child = subprocess.Popen(  # noqa: S603  # our own program; no shell
            (sys.executable, "-I", "-S", "-c", _ENDS_WITH_US, str(os.getpid()), *command),
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
    try:
        _limit(child.pid, limits, folder)
        _wait(child, time.monotonic() + limits.seconds, given_up)
    finally:
        _kill(child)
    return _answer(child.returncode, out, _last_line(log_file, folder))


def _limit(pid: int, limits: ProcessLimits, folder: Path) -> None:
    """Set the limits from outside.

    Code that runs between fork and exec can hang in a program with many threads.
    """
    try:
        resource.prlimit(pid, resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))  # a core file would hold the scan
    except ProcessLookupError:
        pass  # it has ended already, and its exit code says how


def _wait(child: subprocess.Popen[bytes], until: float, given_up: threading.Event) -> None:
    while child.poll() is None:
        if given_up.wait(_TICK_S):
            raise ClientDisconnected("the client has gone")
        if time.monotonic() > until:
            raise TooSlow("the scan was not answered within the time limit")


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _last_line(log_file: Path, folder: Path) -> str:
    """The last line that the child said, without our temporary paths; "" if it said nothing."""
    size = log_file.stat().st_size
    with log_file.open("rb") as file:
        file.seek(max(size - _MOST_WORDS, 0))
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return (
        (lines[-1] if lines else "")
        .replace(f"{folder}{os.sep}", "")
        .replace(str(folder), "")[:1000]
    )


def _answer(code: int, out: Path, line: str) -> ScanAnswer:
    if code in (-signal.SIGKILL, 137) or "MemoryError" in line or "bad_alloc" in line:
        raise OutOfMemory("out_of_memory: the scan needs more memory than one scan may have here")
    if code < 0 or code > 1:
        raise Failed(f"crashed: the process that answers the scan ended with code {code}")
    if (several := _SEVERAL.search(line)) is not None:
        raise SeveralCases(several[1])
    results = [path for path in out.glob("*/result.json") if path.is_file()] if out.is_dir() else []
    if len(results) > 1:
        raise SeveralCases(f"the upload holds {len(results)} cases; send each for itself")
    if code and not results and _OWN.search(line) is not None:
        raise Unavailable("the server could not answer the scan now; ask again later")
    if not results:
        raise InvalidArgument(line or "the upload holds no readable scan")
    path = results[0]
    try:
        if path.stat().st_size > _MOST_JSON:
            raise Failed("the answer is too large")
        values = json.loads(path.read_bytes())
    except ValueError as error:
        raise Failed("the answer cannot be read") from error
    if not isinstance(values, dict):
        raise Failed("the answer cannot be read")
    if code and values.get("status") != "refused":
        raise Failed(f"the scan was not answered: {line}")
    folder = path.parent
    return ScanAnswer(values, {name: folder / name for name in FILES if (folder / name).is_file()})
