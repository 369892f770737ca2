"""The rules of the house that a machine can check."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tf_covid

CHECKOUT = Path(__file__).parents[1]
HOUSE = CHECKOUT / "tf_covid"
FILES = sorted(HOUSE.rglob("*.py"))

#: The road. A room may import those before it, never one after it.
ROAD = (
    *(
        "errors",
        "tensor",
        "atomic",
        "extras",
        "severity",
        "tissues",
        "lung_voxels",
        "tasks",
        "result",
        "grids",
        "scan",
        "layers",
    ),
    *(
        "models",
        "weights",
        "preprocessor",
        "stratifier_model",
        "lobes",
        "lungs",
        "attention",
        "answer",
        "exported",
    ),
    *(
        "local",
        "page",
        "report",
        "dicom_results",
        "pipeline",
        "cohort",
        "phantom",
        "study",
        "training",
    ),
    *(
        "outcomes",
        "infer",
        "parallel",
        "experiment",
        "export",
        "client",
        "runtime",
        "cluster",
        "pacs",
        "watch",
        "server",
        "verify",
        "doctor",
        "console",
    ),
    "cli",
)

#: All that `tfcovid --help` may load beside the standard library: anything else takes hundreds of
#: milliseconds, or seconds. `benchmarks/startup.py` measures the time.
LIGHT = {"click", "tf_covid"}


def module_name(file: Path) -> str:
    parts = file.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under `if TYPE_CHECKING:`, which import nothing at run time."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from run_time_nodes(node)


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of all that a file imports, inside functions too."""
    for node in run_time_nodes(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = (
                module_name(file)
                if file.name == "__init__.py"
                else module_name(file).rpartition(".")[0]
            )
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def room(name: str) -> str | None:
    """The room that an imported name lives in.

    None outside, and for what the front door defines.
    """
    parts = name.split(".")
    if parts[0] != "tf_covid" or len(parts) == 1 or parts[1].startswith("__"):
        return None
    return tf_covid._HOMES.get(parts[1], parts[1]) if len(parts) == 2 else parts[1]


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_imports_point_up_the_road_only(file: Path) -> None:
    here = room(module_name(file))
    if here is None:
        return  # The front door opens on every room.
    assert here in ROAD, (
        f"{here} has no place on the road yet: add it here and in docs/architecture.md"
    )
    down = [
        f"line {line}: {name}"
        for line, name in imports(file)
        if (there := room(name)) is not None and ROAD.index(there) > ROAD.index(here)
    ]
    assert not down


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module_name(file) for file in FILES}

    def needs(file: Path) -> set[str]:
        # `from tf_covid.room import name`: a module of that name, or what the room's front door
        # gives.
        names = {name if name in modules else name.rpartition(".")[0] for _, name in imports(file)}
        return names & modules - {module_name(file), "tf_covid"}

    graph = {module_name(file): needs(file) for file in FILES if module_name(file) != "tf_covid"}
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the circle


def test_a_class_name_means_one_thing() -> None:
    homes: dict[str, list[str]] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module_name(file))
    assert not {name: modules for name, modules in homes.items() if len(modules) > 1}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_what_is_public_says_what_it_means(file: Path) -> None:
    tree = ast.parse(file.read_text("utf-8"))
    named = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    silent = [
        node.name for node in named if not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    if tree.body and not ast.get_docstring(tree):
        silent.insert(0, "the module itself")
    assert not silent


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_the_library_does_not_print(file: Path) -> None:
    calls = [
        node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)
    ]
    assert not [f"line {call.lineno}" for call in calls if ast.unparse(call.func) == "print"]


def test_no_room_is_called_utils() -> None:
    assert not [file for file in FILES if "util" in file.stem.lower()]


def test_the_package_list_is_what_is_on_disk() -> None:
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    listed = setup["options"]["packages"].split()
    folders = {module_name(file.parent / "__init__.py") for file in FILES}
    assert sorted(listed) == sorted(folders | {"tf_covid.saved_models"})
    assert (CHECKOUT / "saved_models/__init__.py").is_file()
    assert not [
        folder
        for folder in folders
        if not (CHECKOUT / folder.replace(".", "/") / "__init__.py").is_file()
    ]


def test_every_library_that_is_imported_is_declared() -> None:
    providers = importlib.metadata.packages_distributions()

    def undeclared(file: Path) -> set[str]:
        # Only who imports a .pt, decodes DICOM in the graph, or serves needs the extras of that
        # room.
        extras = {
            **{"cohort": ["tfio"], "weights": ["torch"], "verify": ["serve", "openvino"]},
            **{"export": ["serve"], "client": ["serve"], "server": ["serve"]},
            **{"dicom_results": ["dicom"], "pacs": ["dicom"], "watch": ["dicom"]},
            **{"runtime": ["openvino"], "cluster": ["ray"]},
        }
        declared = {
            canonicalize_name(requirement.name)
            for extra in ["", *extras.get(room(module_name(file)) or "", [])]
            for requirement in requirements("tf-covid", extra)
        }
        foreign = (
            {name.split(".")[0] for _, name in imports(file)}
            - set(sys.stdlib_module_names)
            - {"tf_covid"}
        )
        return {
            name
            for name in foreign
            if declared.isdisjoint(map(canonicalize_name, providers.get(name, (name,))))
        }

    assert not {module_name(file): names for file in FILES if (names := undeclared(file))}


def loaded_by(calls: list[str]) -> dict[str, set[str]]:
    """Foreign packages that each call of `tfcovid` loads, and `import tf_covid` before them.

    One process makes all calls, so a package is told of the first that loads it.
    """
    code = (
        "import contextlib, io, json, sys\n"
        "standard = {name.split('.')[0] for name in sys.modules} | sys.stdlib_module_names\n"
        "def foreign(): return {name.split('.')[0] for name in sys.modules} - standard\n"
        "import tf_covid\n"
        "loaded = {'import tf_covid': sorted(foreign())}\n"
        f"for call in {calls}:\n"
        "    before = foreign()\n"
        "    from tf_covid.cli import main\n"
        "    shown = io.StringIO()\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(shown):\n"
        "        main(call.split(), prog_name='tfcovid')\n"
        "    assert shown.getvalue().startswith('Usage: tfcovid'), call\n"
        "    loaded[call] = sorted(foreign() - before)\n"
        "print(json.dumps(loaded))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT
    )
    return {name: set(loaded) for name, loaded in json.loads(run.stdout).items()}


def commands() -> list[str]:
    from tf_covid import cli

    assert isinstance(cli.main, click.Group)
    return sorted(cli.main.commands)


def test_importing_the_package_and_asking_for_help_load_no_library_but_click() -> None:
    assert {"infer", "phantom", "doctor"} <= set(commands())
    calls = ["--help", *(f"{command} --help" for command in commands())]
    loaded = loaded_by(calls)
    assert loaded.pop("import tf_covid") == {"tf_covid"}
    assert list(loaded) == calls
    assert not {call: foreign for call, names in loaded.items() if (foreign := names - LIGHT)}


def test_every_public_name_is_there() -> None:
    assert set(tf_covid.__all__) <= set(dir(tf_covid))
    assert set(tf_covid._HOMES) <= set(tf_covid.__all__)
    for name in tf_covid.__all__:
        assert getattr(tf_covid, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'stratifyy'"):
        tf_covid.stratifyy  # noqa: B018


def requirements(distribution: str, extra: str = "") -> list[Requirement]:
    """What a distribution needs here, by default or with an extra."""
    needed = map(Requirement, importlib.metadata.requires(distribution) or [])
    return [
        each for each in needed if each.marker is None or each.marker.evaluate({"extra": extra})
    ]


def closure(distribution: str) -> set[str]:
    """Canonical names of all distributions that installing one brings along, itself included."""
    found: set[str] = set()
    ahead = [distribution]
    while ahead:
        name = canonicalize_name(ahead.pop())
        if name not in found:
            found.add(name)
            ahead += [requirement.name for requirement in requirements(name)]
    return found


def licence(distribution: str) -> str:
    """What a distribution says about its licence, in one line.

    The SPDX expression, else the classifiers, else the field's first line, else the line of the
    licence file that says it.

    The whole text of the field is no evidence: SciPy's quotes the GPL because libgfortran's
    exception refers to it.
    """
    metadata = importlib.metadata.metadata(distribution)
    if expression := metadata.get("License-Expression"):
        return expression
    classifiers = [
        line.rpartition(":: ")[2]
        for line in metadata.get_all("Classifier") or []
        if "License ::" in line
    ]
    if classifiers:
        return " OR ".join(classifiers)
    if text := (metadata.get("License") or "").strip():
        return text.splitlines()[0]
    files = importlib.metadata.files(distribution) or []
    texts = [file for file in files if re.match(r"(LICEN[CS]E|COPYING)", file.name, re.IGNORECASE)]
    lines = texts[0].read_text("utf-8").splitlines() if texts else []
    return next(
        (line.strip() for line in lines if re.search("licen[cs]e", line, re.IGNORECASE)), ""
    )


def is_gpl(licence_text: str) -> bool:
    """Whether every choice that a licence offers is the GPL or AGPL, with no linking exception."""
    choices = re.split(r"\bOR\b|;", licence_text.replace("(", " ").replace(")", " "))

    def bound(choice: str) -> bool:
        terms = re.split(r"\bAND\b", choice)
        return any(
            re.search(
                r"\bA?GPL|(?<!Lesser )(?<!Library )General Public License", term, re.IGNORECASE
            )
            and not re.search(
                r"LGPL|Lesser|Library General|\bWITH\b.*exception", term, re.IGNORECASE
            )
            for term in terms
        )

    return bool(licence_text) and all(bound(choice) for choice in choices)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GPL-3.0-or-later", True),
        ("GNU General Public License v3 (GPLv3)", True),
        ("GNU Affero General Public License v3", True),
        ("MIT AND GPL-2.0-only", True),
        ("MIT OR GPL-2.0-only", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("LGPL-2.1-or-later", False),
        ("BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("Apache-2.0 OR BSD-2-Clause", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
    ],
)
def test_gpl_is_told_from_its_relatives(text: str, expected: bool) -> None:
    assert is_gpl(text) is expected


def test_no_gpl_in_the_default_install() -> None:
    licences = {name: licence(name) for name in sorted(closure("tf-covid"))}
    assert len(licences) > 30, "the closure was not walked"
    assert not [name for name, text in licences.items() if not text], "no licence is stated"
    assert not {name: text for name, text in licences.items() if is_gpl(text)}


if __name__ == "__main__":
    print(*(f"{name:24} {licence(name)}" for name in sorted(closure("tf-covid"))), sep="\n")
