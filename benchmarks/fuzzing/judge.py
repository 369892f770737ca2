"""What became of an input, and whether its files betray what a silent answer did not say."""

from __future__ import annotations

import resource
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fuzzing.draw import Input
from fuzzing.mutation import ANATOMY, PIXELS_ONLY, Changed
from fuzzing.streams import are_whole
from tf_covid.errors import ScanRefused
from tf_covid.scan import Scan, find_cases

#: In the order of the table. "betrayed" is a silent wrong answer that the input itself tells from a
#: right one.
OUTCOMES = (
    "equal",
    "flagged",
    "refused",
    "several cases",
    "silent",
    "betrayed",
    "crash",
    "over memory",
    "over time",
)
MOST_MIB, MOST_CPU_S = 1024, 10.0
#: A slice differs as a whole where more than this share of its voxels is off by more than so many
#: HU.
_WHOLE_SHARE, _WHOLE_HU = 0.5, 150
_SAME_MM = 1e-3


@dataclass(frozen=True)
class Truth:
    """What the unchanged base is read as."""

    hu: np.ndarray
    affine: np.ndarray
    codes: frozenset[str]
    infos: frozenset[str]


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Args:
        outcome: One of `OUTCOMES`.
        codes: Of the new warnings, or of the errors.
        betrayed_by: What tells, where the answer is silent.
        why: Why nothing tells, or what was raised.
        most_hu: Largest difference from the truth; −1 where the shape differs.
        cpu_s: Processor time, with that of child processes.
        mib: Resident memory above what the process had before.
    """

    outcome: str
    codes: tuple[str, ...] = ()
    betrayed_by: str = ""
    why: str = ""
    most_hu: int = 0
    cpu_s: float = 0.0
    mib: float = 0.0
    noise: str = field(default="", compare=False)


def truth_of(path: Path) -> Truth:
    """Read an unchanged base.

    Raises:
        ScanRefused: If it is not read.
    """
    (case,) = find_cases(path)
    scan = case.read()
    infos = frozenset(flag.code for flag in scan.quality_flags if flag.level == "info")
    return Truth(scan.hu, scan.affine, frozenset(_warnings(scan)), infos)


def _warnings(scan: Scan) -> list[str]:
    return [flag.code for flag in scan.quality_flags if flag.level == "warning"]


def outcome_of(path: Path, drawn: Input, truth: Truth) -> Outcome:
    """Read an input and sort what became of it."""
    with _measured() as used:
        try:
            cases = find_cases(path)
            scans = [case.read() for case in cases] if len(cases) == 1 else []
            result = (
                _several(len(cases))
                if len(cases) != 1
                else _compare(scans[0], drawn.changed, truth)
            )
        except ScanRefused as error:
            errors = tuple(flag.code for flag in error.quality_flags if flag.level == "error")
            result = Outcome("refused", errors, why=str(error)[:300])
        except Exception as error:  # whatever else comes is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {error}"
            result = Outcome("crash", why=text[:300])
    cpu_s, mib = used
    over = (
        "over memory" if mib > MOST_MIB else "over time" if cpu_s > MOST_CPU_S else result.outcome
    )
    why = result.why if over == result.outcome else f"{result.outcome}; {result.why}"
    return Outcome(
        over, result.codes, result.betrayed_by, why, result.most_hu, round(cpu_s, 3), round(mib, 1)
    )


def _several(count: int) -> Outcome:
    return Outcome(
        "several cases" if count else "crash", why="" if count else "find_cases gave nothing"
    )


def _compare(scan: Scan, changed: Changed, truth: Truth) -> Outcome:
    new = tuple(sorted(set(_warnings(scan)) - truth.codes))
    same_shape = scan.hu.shape == truth.hu.shape
    away = np.abs(scan.hu.astype(np.int32) - truth.hu) if same_shape else None
    most = -1 if away is None else int(away.max(initial=0))
    moved = not np.allclose(scan.affine, truth.affine, rtol=0, atol=_SAME_MM)
    if most == 0 and not moved:
        return Outcome("equal", new)
    told = sorted({flag.code for flag in scan.quality_flags} - truth.codes - truth.infos)
    if most == 0 and _only_shifted(scan.affine, truth.affine):
        new = tuple(told)  # the answer needs no position: information is enough
    if new:
        return Outcome("flagged", new, most_hu=most)
    betrayed, why = _judge(changed, away)
    return Outcome(
        "betrayed" if betrayed else "silent", (), betrayed, "" if betrayed else why, most
    )


def _only_shifted(one: np.ndarray, other: np.ndarray) -> bool:
    return np.allclose(one[:3, :3], other[:3, :3], rtol=0, atol=_SAME_MM)


def _judge(changed: Changed, away: np.ndarray | None) -> tuple[str, str]:
    """What betrays a silent difference.

    By the mutation, by the code stream's own lengths, by the slices beside it.
    """
    if changed.harmless:
        return "harmless", ""
    if changed.betrayed_by:
        return changed.betrayed_by, ""
    if changed.why == ANATOMY:
        return "", changed.why
    if changed.why == PIXELS_ONLY and not are_whole(changed.base):
        return "length", ""
    if away is not None:
        whole = (away > _WHOLE_HU).mean(axis=(1, 2)) > _WHOLE_SHARE
        if whole.any() and not whole.all():
            return "neighbour", ""
    return "", changed.why


@contextmanager
def _measured() -> Iterator[list[float]]:
    """Processor seconds and MiB of resident memory that the block took, filled in at its end."""
    used: list[float] = []
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew from here
    rss, cpu, child = (
        _status("VmRSS"),
        _cpu(),
        resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
    )
    yield used
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    used += [_cpu() - cpu, max(_status("VmHWM") - rss, after if after > child else 0) / 1024]


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def _cpu() -> float:
    held = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in held)
