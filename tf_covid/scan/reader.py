"""The reader in a process of its own, which may crash, hang or eat memory alone.

A case that the process dies of is refused. The process is a fresh interpreter that imports the scan
room only, never TensorFlow. Voxels come back through a file without a name in shared memory;
everything else is small.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.cases import Case, find_cases
from tf_covid.scan.check import Checked, check_case
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.names import case_names
from tf_covid.scan.scan import Scan
from tf_covid.tensor import Json

if TYPE_CHECKING:
    import numpy as np

#: Address space of the reader above what it has after its imports and what the largest scan takes,
#: in bytes. Threads and allocators reserve much more than they use.
_MEMORY_BYTES = 3 * 2**30
#: Processor time for one job, in seconds, and more for each MB of its files: JPEG-LS takes a tenth
#: of that.
_CPU_S, _CPU_S_PER_MB = 120, 1.0
#: Longest wait for one job, in seconds; a network drive may be slow.
_WAIT_S = 3600.0
_HEAD = struct.Struct("<Q?")
_CHUNK = 1 << 24

#: `sys.path` of this process goes along: a checkout is read as such.
_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from tf_covid.scan.reader import serve
serve(int(sys.argv[2]), int(sys.argv[3]))
"""


class Reader:
    """Finds and reads cases in a child process, which is started again when it has died.

    One thread at a time may use it. It is closed at the end of a `with` block; the child ends with
    this process, however that ends.

    Args:
        wait_s: Longest wait for one job, in seconds.
        memory_bytes: Address space of the child above its imports and the largest scan.
    """

    def __init__(self, *, wait_s: float = _WAIT_S, memory_bytes: int = _MEMORY_BYTES) -> None:
        self._wait_s, self._memory_bytes = wait_s, memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._alive: int | None = None
        self.start()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the child if there is none; it imports what it needs meanwhile."""
        if self._child is not None and self._child.poll() is None:
            return
        self.close()  # what died between two jobs died of none
        ours, theirs = socket.socketpair()
        ended, alive = (
            os.pipe()
        )  # never written to: the child sees its end when this process is gone
        # -P: the folder that we work in may hold an upload, and is no place to import from.
        command = [
            sys.executable,
            "-P",
            "-c",
            _PROGRAM,
            json.dumps(sys.path),
            str(theirs.fileno()),
            str(ended),
        ]
        with theirs:
            try:
                self._child = subprocess.Popen(  # noqa: S603  # our own interpreter and program
                    [*command, str(self._memory_bytes)],
                    pass_fds=(theirs.fileno(), ended),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            finally:
                os.close(ended)
        ours.settimeout(self._wait_s)
        self._line, self._alive = ours, alive

    def close(self) -> None:
        """End the child."""
        child, line, alive = self._child, self._line, self._alive
        self._child = self._line = self._alive = None
        if line is not None:
            line.close()
        if alive is not None:
            os.close(alive)
        if child is not None:
            child.kill()
            child.wait()

    def find(self, path: str | os.PathLike[str], limits: Limits = DEFAULT) -> list[Case]:
        """`find_cases`; a path that the reader dies of is one case that refuses."""
        path = Path(path)
        try:
            results, _ = self._ask("find", (path, limits))
        except _Lost as lost:
            flag = QualityFlag("reader_failed", "error", str(lost))
            return [
                Case(case_names(path, [""], [()])[0], path, quality_flags=(flag,), limits=limits)
            ]
        return cast("list[Case]", results)

    def fingerprint(self, case: Case) -> str:
        """`Case.fingerprint`; empty if the reader dies of it."""
        try:
            return str(self._ask("fingerprint", case)[0])
        except _Lost:
            return ""

    def read(self, case: Case) -> Scan:
        """`Case.read`.

        Raises:
            ScanRefused: As `Case.read` does; with `reader_failed` if the reader dies of it.
        """
        try:
            scan, voxels = self._ask("read", case)
        except _Lost as lost:
            raise ScanRefused(
                [QualityFlag("reader_failed", "error", str(lost)), *case.quality_flags]
            ) from None
        if isinstance(scan, ScanRefused):
            raise scan
        return dataclasses.replace(cast("Scan", scan), hu=voxels)

    def check(self, case: Case) -> Checked:
        """`check_case`; refused with `reader_failed` if the reader dies of it."""
        try:
            return cast("Checked", self._ask("check", case)[0])
        except _Lost as lost:
            flags = (QualityFlag("reader_failed", "error", str(lost)), *case.quality_flags)
            return Checked(case.name, "refused", flags, 0.0)

    def _ask(self, job: str, about: Json) -> tuple[Any, Any]:
        self.start()
        line = self._line
        if line is None:
            raise RuntimeError("the reader has no connection after its start")
        try:
            _send(line, (job, about))
            answer, file = _receive(line)
        except TimeoutError:
            self.close()
            raise _Lost(
                f"The reader was ended after {self._wait_s:.0f} s without an answer."
            ) from None
        except (OSError, EOFError):
            code = self._end_of_child()
            raise _Lost(_how_it_ended(code)) from None
        if isinstance(answer, _Failed):
            if file is not None:
                os.close(file)
            raise _Lost(
                f"The reader stopped at a fault of the program ({answer.where}); please report it."
            )
        return answer, None if file is None else _voxels(answer, file)

    def _end_of_child(self) -> int:
        """How the child that hung up ended."""
        child = self._child
        if child is None:
            raise RuntimeError("the reader has no child process")
        try:
            code = child.wait(5.0)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self.close()
        return code


class _Lost(Exception):
    """The child gave no answer; the text says why, for a flag."""


@dataclasses.dataclass(frozen=True)
class _Failed:
    """The child's answer to a job that ended in a fault of ours: error and place, without text."""

    where: str


def _how_it_ended(code: int) -> str:
    if code == -signal.SIGXCPU:
        return "The reader was ended: this input took too much processor time."
    if code == -signal.SIGKILL:
        return "The reader was killed by the system, most likely for want of memory."
    if code < 0:
        with contextlib.suppress(ValueError):
            return (
                f"The reader died of this input ({signal.Signals(-code).name}); the file is damaged"
                " or made to harm."
            )
    return f"The reader ended at this input (code {code}); the file is damaged or made to harm."


def _voxels(scan: Scan, file: int) -> np.ndarray:
    """int16 (D, H, W) in the memory that the child has filled."""
    import numpy as np

    shape = scan.source.shape
    canonical = [shape[scan.source.axes.index(axis)] for axis in range(3)]
    try:
        memory = mmap.mmap(file, 0, access=mmap.ACCESS_COPY)
    finally:
        os.close(file)
    return np.frombuffer(memory, dtype=np.int16).reshape(canonical)


def _send(line: socket.socket, message: Json, file: int | None = None) -> None:
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    head = _HEAD.pack(len(data), file is not None)
    if file is None:
        line.sendall(head)
    else:
        socket.send_fds(line, [head], [file])
    line.sendall(data)


def _receive(line: socket.socket) -> tuple[Any, int | None]:
    head, files, _, _ = socket.recv_fds(line, _HEAD.size, 1)
    while head and len(head) < _HEAD.size:
        more = line.recv(_HEAD.size - len(head))
        head = head + more if more else b""
    if not head:
        raise EOFError("the other side has gone")
    size, _ = _HEAD.unpack(head)
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        count = line.recv_into(view[at:])
        if not count:
            raise EOFError("the other side has gone")
        at += count
    # What our own child wrote into our own pipe.
    return pickle.loads(data), files[0] if files else None  # noqa: S301


def serve(line: int, ended: int) -> None:
    """What the child does: answer jobs until the other side hangs up.

    Args:
        line: Number of its end of the socket.
        ended: Number of the pipe that ends when the parent is gone.
    """
    threading.Thread(target=_exit_with_parent, args=(ended,), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the scan
    memory_bytes = int(sys.argv[4])
    with socket.socket(fileno=line) as there:
        while True:
            try:
                (job, about), _ = _receive(there)
            except (OSError, EOFError):
                return
            _limit(job, about, memory_bytes)
            answer, voxels = _work(job, about)
            with contextlib.ExitStack() as stack:
                file = None if voxels is None else stack.enter_context(_shared(voxels))
                _send(there, answer, file)
            del answer, voxels  # not held until the next job: the other side has them now


def _work(job: str, about: Json) -> tuple[Any, np.ndarray | None]:
    import numpy as np

    try:
        if job == "find":
            return find_cases(*about), None
        if job == "check":
            return check_case(about), None
        if job == "fingerprint":
            return about.fingerprint(), None
        scan = about.read()
    except ScanRefused as refused:
        return refused, None
    except (
        Exception
    ) as error:  # the outermost layer of this process: whatever it is, one case is refused
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return (
            _Failed(f"{type(error).__name__} at {Path(frame.filename).stem}:{frame.lineno}"),
            None,
        )
    return dataclasses.replace(scan, hu=np.empty((0, 0, 0), np.int16)), scan.hu


@contextlib.contextmanager
def _shared(voxels: np.ndarray) -> Json:
    """Descriptor of an unnamed open file that holds the voxels, in memory where possible."""
    data = voxels.reshape(-1).view("u1").data
    with contextlib.ExitStack() as stack:
        if hasattr(os, "memfd_create"):
            file = os.memfd_create("voxels")
            stack.callback(os.close, file)
        else:
            file = stack.enter_context(tempfile.TemporaryFile()).fileno()
        at = 0
        while at < len(data):
            at += os.write(file, data[at : at + _CHUNK])
        yield file


def _limit(job: str, about: Json, memory_bytes: int) -> None:
    """Bound address space and processor time for the next job."""
    limits = about[1] if job == "find" else about.limits
    with contextlib.suppress(
        OSError
    ):  # no such file on macOS, whose limits of address space mean nothing
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        _lower(resource.RLIMIT_AS, used + 2 * limits.voxels + memory_bytes)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = _CPU_S + _CPU_S_PER_MB * _megabytes(job, about)
    _lower(resource.RLIMIT_CPU, int(usage.ru_utime + usage.ru_stime + seconds))


def _lower(kind: int, value: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _megabytes(job: str, about: Json) -> float:
    """Size of the files of a job, in MB; what cannot be asked counts nothing."""
    path = about[0] if job == "find" else about.path
    with contextlib.suppress(OSError):
        if path.is_file():
            return float(path.stat().st_size / 1e6)
        if job == "find":
            return 1e4  # a folder may hold thousands of scans, of each of which a few kB are read
        return float(sum((path / name).stat().st_size for name in about.members) / 1e6)
    return 0.0


def _exit_with_parent(ended: int) -> None:
    with contextlib.suppress(OSError):
        os.read(ended, 1)
    os._exit(1)
