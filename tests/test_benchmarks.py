"""The measuring programs: every one is there to be called, whatever was moved."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"

#: Imports all modules in one process, as a command imports its own.
_IMPORTS = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
def test_every_program_finds_what_it_imports() -> None:
    names = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert {"lobes", "lungs", "real", "severity"} <= set(names)
    done = subprocess.run(
        [sys.executable, "-c", _IMPORTS, str(BENCHMARKS), *names],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
