"""The wheel, installed outside the checkout, holds everything and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "tf_covid", "saved_models")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a stale build/ must not leak into it.

    An export and a stray file lie beside the weights.
    """
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(
                CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        else:
            shutil.copy(CHECKOUT / name, copy)
    export = copy / "saved_models/somebody/1"
    export.mkdir(parents=True)
    for decoy in (
        export / "saved_model.pb",
        export / "model.keras",
        copy / "saved_models/notes.txt",
    ):
        decoy.write_text("not to be packaged")
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", str(out), str(copy))
    (built,) = out.glob("tf_covid-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own; its dependencies are this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def pip(*arguments: str) -> None:
    run = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def outside(folder: Path, *command: str) -> str:
    """Run a command far from the checkout, with the installed wheel first on the path."""
    environment = os.environ | {"PYTHONPATH": str(folder)}
    run = subprocess.run(
        command, capture_output=True, text=True, cwd=folder.parent, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


def test_the_wheel_holds_what_is_in_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("tf_covid/")}
    code = {
        file.relative_to(CHECKOUT).as_posix()
        for file in (CHECKOUT / "tf_covid").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc"
    }
    models = {
        f"tf_covid/saved_models/{file.parent.name}/{file.name}"
        for pattern in ("*/model.keras", "*/README.md")
        for file in (CHECKOUT / "saved_models").glob(pattern)
    }
    assert held == code | models | {"tf_covid/saved_models/__init__.py"}


def test_it_finds_its_weights_outside_the_checkout(installed: Path) -> None:
    code = (
        "import json, tf_covid; from importlib import resources; from tf_covid.weights import"
        " catalog\nfolder ="
        " resources.files('tf_covid.saved_models')\nprint(json.dumps([tf_covid.__file__,"
        " str(folder), {k: str(v) for k, v in catalog.shipped().items()}]))"
    )
    package, folder, shipped = json.loads(outside(installed, sys.executable, "-c", code))
    assert Path(package) == installed / "tf_covid/__init__.py"
    assert Path(folder) == installed / "tf_covid/saved_models"
    assert set(shipped) == {
        file.parent.name for file in (CHECKOUT / "saved_models").glob("*/model.keras")
    }
    assert all(
        Path(path).is_relative_to(installed) and Path(path).is_file() for path in shipped.values()
    )


def test_the_command_is_installed(installed: Path) -> None:
    assert "infer" in outside(installed, sys.executable, str(installed / "bin/tfcovid"), "--help")
