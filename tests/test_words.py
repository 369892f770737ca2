"""Names that are gone stay gone: the field's are in their place."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.test_house import CHECKOUT, FILES, HOUSE, module_name

#: Identifiers that are not to come back, and what is said instead: functions, classes, parameters,
#: attributes and variables.
IDENTIFIERS = {
    "Pupil|pupil": "TrainerModel, trainer",
    "Lesson|lesson|lessons|lesson_for": "Task, objective",
    "Wish|wish": "FitRequest, ImportRequest, request",
    "teaching|held_out|told": "train, validation, on_epoch_end",
    "goes_on": "resume",
    "clip_norm": "gradient_clip_norm",
    "say": "on_message, progress",
    "Feed|ClipFeed|SliceFeed|feed": "TrainingInput, training_input",
    "Wanted|wanted": "CacheSpec, cache_spec, expected",
    "Road|road|way": "ClipPreprocessor, ServingModule, pipeline, route",
    "quick|supervised": "cpu_optimised, add_deep_supervision",
    "keeper": "CheckpointCallback",
    "Patient": "HeaderTimeoutProtocol",
    "Doorman|doorman": "AuthInterceptor",
    "Fault|Full|Gone|Invalid": "RequestError, QueueFull, ClientDisconnected, InvalidArgument",
    "Parts": "ServerContext",
    "Work|hurry": "PendingRequest, deadline",
    "Entry": "SignatureRunner, CacheRecord",
    "Question|question": "PredictRequest, parse_predict_request, identity",
    "need": "optional_import",
    "Numbers|outline_of": "plain lists of JSON",
    "Member|fair_head": "EnsembleMember, tie_sharing_head",
    "Stored|Reading|Place|slots": "RawVolume, LoadedVolume, SliceFrame, slice groups",
    "Secrets": "PatientIdentifiers",
    "sweep|workshop": "remove_leftovers, temporary_directory",
    "Book|Outcome|vouched": "WeightLedger, CaseOutcome, matches the card",
    "nobody|ill": "a zero mask, lesion_mask",
    "outlive|strays|inherited|home": "exit with parent, unexpected files, preprocessing of the init",
    "wording|canvas": "formatting, figure style",
    "found": "what it is: records, names, results",
    "most": "max_…, limit, largest",
}

#: The same, in all rooms but those where the word is the field's or a file's own: the version number
#: of a server and DICOM's InstanceNumber, an argument and a column that stand in files.
IDENTIFIERS_BUT = {
    ("number", r"server|scan\.dicom"): "index, count, class_index",
    ("share", r"models|study\.predictions"): "fraction",
    ("places?", r"^$"): "position, location",
    ("marks?", r"report\.headfeet"): "fingerprint, identity, sha256",
    ("words", r"scan\.text_voxels"): "text",
    ("card", r"training\.card"): "model_card",
    ("entries", r"weights\.convert"): "records",
    ("watch", r"^tf_covid\.watch|cli\.watching"): "on_message, progress",
}

#: What users and readers of docstrings read, and what is said instead.
PHRASES = {
    r"made up\b": "interpolated",
    r"\bheld out\b|cases teach|tell when to stop\b.*are tested": "train, validation, test",
    r"no number any more": "became NaN or infinite",
    r"(?<!there )\bis no (folder of|file of volumes|number\b|mask\b)": "is not a …",
    r"\bif it is none\b": "if it is not a …",
    r"^\s*\w+: (Of|Its|Their|Theirs|Those|How)( \w+){0,3}\.$": "a line that stands alone",
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


@pytest.mark.parametrize(("pattern", "but"), IDENTIFIERS_BUT)
def test_names_that_are_gone_but_from_some_rooms(pattern: str, but: str) -> None:
    found = [name for name in places(pattern) if not re.search(but, name)]
    assert not found, f"say {IDENTIFIERS_BUT[pattern, but]}"


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
