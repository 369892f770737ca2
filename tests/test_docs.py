"""What the documents name is there: files, modules, rooms, links."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import tf_covid
from tests.test_house import CHECKOUT, FILES, ROAD, module_name
from tests.test_house import HOUSE as PACKAGE

DOCUMENTS = sorted(
    [
        *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "Makefile", ".ci/run")),
        *(CHECKOUT / "docs").rglob("*.md"),
        *(CHECKOUT / "deploy").glob("*.md"),
        *(CHECKOUT / "benchmarks").glob("*.py"),
        *(CHECKOUT / "examples").glob("*.py"),
    ]
)

#: Paths of files in the checkout, and dotted names of the package.
PATH = re.compile(
    r"(?<![\w./-])((?:tf_covid|tests|benchmarks|configs|deploy|examples|docs)/[\w./-]*\w\.\w+)"
)
IN_A_ROOM = re.compile(rf"(?<![\w./-])((?:{'|'.join(ROAD)}|serving)/[\w/]+\.py)\b")
DOTTED = re.compile(r"(?<![\w./-])tf_covid(?:\.\w+)+(?![\w/])")
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def relative(file: Path) -> str:
    return file.relative_to(CHECKOUT).as_posix()


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of the package, or an attribute of one."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        module = ".".join(parts[:cut])
        try:
            if importlib.util.find_spec(module) is None:
                continue
        except ModuleNotFoundError:
            continue
        rest = parts[cut:]
        if not rest:
            return True
        if module == "tf_covid":
            return rest[0] in tf_covid.__all__
        source = importlib.util.find_spec(module).origin  # type: ignore[union-attr]
        # Not imported: a document may name what needs TensorFlow, or an extra.
        text = Path(str(source)).read_text("utf-8")
        front_door = str(source).endswith("__init__.py")  # it gives names of its modules
        name = re.escape(rest[0])
        place = rf"\b{name}\b" if front_door else rf"^(?:(?:def|class) )?{name}\b"
        return re.search(place, text, re.MULTILINE) is not None
    return False


@pytest.mark.parametrize("file", DOCUMENTS, ids=relative)
def test_files_that_are_named_are_there(file: Path) -> None:
    text = file.read_text("utf-8")
    assert not [path for path in PATH.findall(text) if not (CHECKOUT / path).exists()]
    assert not [path for path in IN_A_ROOM.findall(text) if not (PACKAGE / path).exists()]


@pytest.mark.parametrize("file", DOCUMENTS, ids=relative)
def test_modules_that_are_named_are_there(file: Path) -> None:
    named = set(DOTTED.findall(file.read_text("utf-8"))) - {"tf_covid.egg"}
    assert not [name for name in sorted(named) if not is_there(name)]


@pytest.mark.parametrize("file", [file for file in DOCUMENTS if file.suffix == ".md"], ids=relative)
def test_links_lead_somewhere(file: Path) -> None:
    links = LINK.findall(file.read_text("utf-8"))
    assert not [link for link in links if not (file.parent / link).exists()]


def test_the_maps_show_every_room() -> None:
    picture = (CHECKOUT / "docs/architecture.md").read_text("utf-8")
    front = tf_covid.__doc__ or ""
    for each in ROAD:
        assert re.search(rf"\b{each}(/|\.py)", picture), f"docs/architecture.md lacks {each}"
        assert re.search(rf"\b{each}\b", front), f"tf_covid/__init__.py lacks {each}"
    # The rule is written as the list that is enforced.
    assert " → ".join(ROAD) in picture


def test_the_map_names_no_file_that_is_gone() -> None:
    picture = (CHECKOUT / "docs/architecture.md").read_text("utf-8")
    ours = {file.name for file in FILES}
    top = {file.name for file in CHECKOUT.glob("*.py")} | {
        file.name for file in (CHECKOUT / "tests").rglob("*.py")
    }
    named = set(re.findall(r"(?<![<\w./-])(\w+\.py)\b", picture)) - {"utils.py", "stratifier.py"}
    assert not named - ours - top


def test_what_is_named_is_looked_for() -> None:
    """The test of the tests: names that are gone are found out."""
    assert is_there("tf_covid.scan.reader")
    assert is_there("tf_covid.load_model")
    assert is_there("tf_covid.scan.check.check")
    assert not is_there("tf_covid.serving.server")
    assert not is_there("tf_covid.scan.check.gone")
    assert PATH.findall("see `tests/gone.py`, docs/x.md") == ["tests/gone.py", "docs/x.md"]
    assert module_name(CHECKOUT / "tf_covid/scan/reader.py") == "tf_covid.scan.reader"
