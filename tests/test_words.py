"""Names that are gone stay gone: the field's are in their place."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.test_house import CHECKOUT, FILES, HOUSE, module_name

#: Identifiers that are not to come back, and what is said instead: functions, classes, parameters,
#: attributes and variables. With a room, where the word means something else in others.
IDENTIFIERS = {
    "Pupil|pupil": "TrainerModel, model",
    "Lesson|lesson|lesson_for|lessons": "Task",
    "Wish|wish": "FitRequest, ImportRequest, request",
    "goes_on": "resume",
    "clip_norm": "gradient_clip_norm",
    "Feed|ClipFeed": "TrainingInput",
    "quick|supervised": "cpu_optimised, add_deep_supervision",
    "keeper": "CheckpointCallback",
    "Patient": "HeaderTimeoutProtocol",
    "_?Doorman|doorman": "AuthInterceptor",
    "Fault|Full|Gone|Invalid": "ServingError, QueueFull, ClientDisconnected, InvalidArgument",
    "Parts": "ServerContext",
    "hurry": "deadline",
    "need": "optional_import",
    "Member|fair_head": "EnsembleMember",
    "Stored|Reading|Place|slots": "RawVolume, LoadedVolume, SlicePosition, slice groups",
    "_Book|Outcome|vouched": "WeightLedger, CaseOutcome, matches the card",
    "wording|canvas": "formatting, figure style",
}

#: What users and readers of docstrings read, and what is said instead.
PHRASES = {
    r"made up": "interpolated",
    r"held out": "validation, test",
    r"no number any more": "became NaN or infinite",
    r"\bif it is none\b": "if it is not a …",
}

#: Its code is hashed into what model cards say about the drawn chests: it keeps its names.
KEPT = HOUSE / "phantom"
OURS = [file for file in FILES if KEPT not in file.parents]


@functools.cache
def identifiers(file: Path) -> frozenset[str]:
    """Names that a file gives: of itself, classes, functions, parameters, variables, attributes."""
    named = {*module_name(file).split(".")}
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            named.add(node.name)
        elif isinstance(node, ast.arg):
            named.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            named.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            named.add(node.attr)
    return frozenset(named)


def places(pattern: str) -> list[str]:
    """Where a file, or a name that it gives, is one of `pattern`."""
    gone = re.compile(rf"_?(?:{pattern})")
    return [
        f"{module_name(file)}: {name}"
        for file in OURS
        for name in sorted(identifiers(file))
        if gone.fullmatch(name)
    ]


@pytest.mark.parametrize(("pattern", "instead"), IDENTIFIERS.items(), ids=IDENTIFIERS)
def test_names_that_are_gone(pattern: str, instead: str) -> None:
    assert not places(pattern), f"say {instead}"


@pytest.mark.parametrize(("pattern", "instead"), PHRASES.items(), ids=PHRASES)
def test_phrases_that_are_gone(pattern: str, instead: str) -> None:
    documents = [*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")]

    def lines(file: Path) -> list[str]:
        text = file.read_text("utf-8")
        return [
            f"{file.relative_to(CHECKOUT)}:{number}: {line.strip()}"
            for number, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)
        ]

    assert not [line for file in (*OURS, *documents) for line in lines(file)], f"say {instead}"
