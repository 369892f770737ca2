"""A small `tfcovid fit` that tests start as a process, and what it leaves."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Dropout and all that is changed at random stay as they are without settings.
CONFIG = """
clip = [16, 32, 32]
working_grid = [24, 48, 48]
batch = 2
learning_rate = 1e-4
epochs = 3
network = { dense = 16 }
[[stages]]
epochs = 1
train_from = "head"
"""


def fit_command(manifest: Path, out: Path, *more: str, config: str = CONFIG) -> list[str]:
    """Two folds of `severity`; the scans of one manifest are read once for all runs."""
    file = out.parent / "config.toml"
    file.write_text(config)
    program = [sys.executable, "-m", "tf_covid.cli", "fit", str(manifest), "--out", str(out)]
    asked = ["--task", "severity", "--model", "ltc", "--folds", "2", "--config", str(file)]
    return [*program, *asked, "--cache", str(manifest.parent / "cache"), *more]


def curves_of(run: Path) -> list[dict[str, list[float]]]:
    """The curves of both folds."""
    return [
        json.loads((run / f"fold-{fold}" / "curves.json").read_text())["curves"] for fold in (0, 1)
    ]
