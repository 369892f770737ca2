"""Every quality-flag code of the package stands in docs/reading.md, and none that is gone."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
FILES = sorted((CHECKOUT / "tf_covid").rglob("*.py"))
PAGE = CHECKOUT / "docs" / "reading.md"
MAKERS = ("refusal", "QualityFlag")
LEVELS = ("info", "warning", "error")


def strings(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be: itself, or either branch of a choice."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from strings(node.body)
        yield from strings(node.orelse)


def levels(row: ast.Tuple) -> list[str]:
    """The levels that stand in a tuple."""
    return [text for one in row.elts for text in strings(one) if text in LEVELS]


def codes_of(source: str) -> set[str]:
    """First arguments of `refusal` and `QualityFlag`.

    In tables of flags what stands before a level, or is its key.
    """
    found: set[str] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )
            given = node.args[:1] or [word.value for word in node.keywords if word.arg == "code"]
            if name in MAKERS and given:
                found.update(strings(given[0]))
        elif isinstance(node, ast.Tuple):
            for before, one in itertools.pairwise(node.elts):
                if next(strings(one), "") in LEVELS:
                    found.update(strings(before))
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if key is not None and isinstance(value, ast.Tuple) and levels(value):
                    found.update(strings(key))
    return {code for code in found if re.fullmatch(r"[a-z0-9_]+", code)} - set(LEVELS)


def listed() -> list[str]:
    return re.findall(r"^\| `([a-z0-9_]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CHECKOUT).as_posix())
def test_every_code_is_explained(file: Path) -> None:
    assert not codes_of(file.read_text("utf-8")) - set(listed())


def test_no_code_is_explained_that_no_file_knows() -> None:
    text = "\n".join(file.read_text("utf-8") for file in FILES)
    # not_nifti and its like are made of the name of a format.
    gone = [code for code in listed() if code not in text and not code.startswith("not_")]
    assert not gone


def test_no_code_is_explained_twice() -> None:
    assert len(listed()) == len(set(listed()))


def test_codes_are_found_in_calls_choices_and_tables() -> None:
    source = """
raise refusal("one", "text")
flag = QualityFlag("two" if many else "three", "error", "text")
rows = [("four", "warning", "text", 1), ("level", "not a level")]
table = {"six": ("info", "text"), "field": ("text", 1)}
left = (("count", "seven", "info", "text"),)
checks.refusal(code="five", message="text")
"""
    assert codes_of(source) == {"one", "two", "three", "four", "five", "six", "seven"}
