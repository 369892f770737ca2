"""What every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# The phantom's products are small: on a busy machine BLAS' threads would wait for each other. Before NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def real_ct() -> Path:
    """The folder of real scans named in `TF_COVID_REAL_CT`; the test is skipped without it."""
    folder = os.environ.get("TF_COVID_REAL_CT")
    if not folder:
        pytest.skip("needs real scans: set TF_COVID_REAL_CT to their folder")
    path = Path(folder).resolve()
    if not path.is_dir():
        pytest.fail(f"TF_COVID_REAL_CT names {folder}, which is not a folder")
    return path
