"""What the report says in words, above all what to do after a refusal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tf_covid.report import text
from tf_covid.result import QualityFlag, Result

PAGE = Path(__file__).parents[2] / "docs" / "reading.md"

#: Codes of a refusal without a way out of their own, and why: the report gives the general one.
GENERAL = {
    # The message names path and reason.
    *("not_found", "unreadable", "not_a_volume"),
    # A matter of this machine as much as of the file: the message says which.
    *("reader_failed", "too_large"),
    # The message names what to separate.
    *("split_series", "series_uid_per_image", "torn_series", "ambiguous_slices"),
    # While a cohort is prepared or read in the graph: there is no report.
    *("no_lobes", "no_lungs", "lesions_outside", "tfio_unsupported", "tfio_differs"),
    # Not the fault of the scan: of the caller, the disk, the server or the model file.
    *("scan_type", "not_written", "internal_error", "server_refused", "worker_lost", "not_finite"),
}


def levels_by_code() -> dict[str, set[str]]:
    """Levels of each code in docs/reading.md: I, W, E; tests/scan/test_codes.py checks the list."""
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| ([IWE, ]+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    return {code: set(levels.split(", ")) for code, levels in rows}


def refusals() -> list[str]:
    return [code for code, levels in levels_by_code().items() if "E" in levels]


@pytest.mark.parametrize("code", refusals())
def test_every_refusal_has_its_way_out_or_the_general_one_by_decision(code: str) -> None:
    assert (code in text.WAYS_OUT) != (code in GENERAL)


def test_no_way_out_is_of_a_code_that_never_refuses() -> None:
    """A warning says itself what it limits; the report of an answer has no “What to do”."""
    assert len(refusals()) > 50, "the page was not read"
    assert set(text.WAYS_OUT) <= set(refusals())
    assert set(refusals()) >= GENERAL


def test_every_warning_has_a_few_words() -> None:
    """The montage has no room for the sentence, and nobody reads a code."""
    warnings = {code for code, levels in levels_by_code().items() if "W" in levels}
    assert len(warnings) > 40, "the page was not read"
    assert set(text.WARNINGS) == warnings
    for words in text.WARNINGS.values():
        assert len(words) <= 32
        assert "_" not in words
    assert len(set(text.WARNINGS.values())) == len(text.WARNINGS)


@pytest.mark.parametrize(
    ("codes", "steps"),
    [
        (["not_hu"], ["original values"]),
        (["mask_grid", "mask_empty"], ["lung mask on the grid"]),
        (["missing_slices", "gantry_tilt"], ["again", "gantry tilt"]),
        (["not_found"], ["axial slices of one chest CT"]),
    ],
)
def test_each_step_is_said_once(codes: list[str], steps: list[str]) -> None:
    errors = (QualityFlag(code, "error", ".") for code in codes)
    flags = (QualityFlag("no_access", "warning", "."), *errors)
    found = text.what_to_do(Result("a", "refused", flags, {}))
    assert len(found) == len(steps) + 1
    assert all(step in sentence for step, sentence in zip(steps, found, strict=False))
    assert "run this case again" in found[-1]
