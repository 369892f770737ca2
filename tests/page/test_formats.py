"""Numbers as a reader sees them."""

from __future__ import annotations

import pytest

from tf_covid.page import formats


def test_what_is_not_known_is_a_dash() -> None:
    for function in (
        formats.decimals,
        formats.signed,
        formats.compact,
        formats.percent,
        formats.duration,
    ):
        assert function(None) == "–"
    assert formats.p_value(None) == "not tested"


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(9.06, 1, "9.1"), (-1.25, 2, "−1.25"), (-0.04, 1, "0.0"), (0.0, 3, "0.000"), (41.0, 0, "41")],
)
def test_decimals_have_a_true_minus_and_no_signed_zero(
    value: float, digits: int, text: str
) -> None:
    assert formats.decimals(value, digits) == text


def test_signs() -> None:
    assert formats.signed(0.5) == "+0.50"
    assert formats.signed(-0.5) == "−0.50"
    assert formats.coordinate(-0.25) == "-0.2", "CSS and SVG want a hyphen"
    assert formats.interval("−0.1", "0.2", " %") == "−0.1 to 0.2 %"


def test_compact_numbers() -> None:
    assert [formats.compact(value) for value in (5.0, 2.5, 1234.0)] == ["5", "2.5", "1234"]


def test_a_probability_is_never_rounded_to_certainty() -> None:
    texts = {0.0: "0 %", 0.001: "< 1 %", 0.005: "0 %", 0.5: "50 %", 0.996: "> 99 %", 1.0: "100 %"}
    assert {value: formats.probability(value) for value in texts} == texts
    assert formats.percent(0.996) == "100 %", "a fraction of cases is a count"


def test_p_values_as_a_paper_prints_them() -> None:
    texts = {
        1e-9: "p < 0.001",
        0.0123: "p = 0.012",
        0.0999: "p = 0.10",
        0.5: "p = 0.50",
        1.0: "p = 1.00",
    }
    assert {p: formats.p_value(p) for p in texts} == texts


def test_volumes_and_times() -> None:
    assert formats.millilitres(4812.4) == "4\u2009812 ml"
    assert formats.millilitres(812.4) == "812 ml"
    texts = {12.0: "12 s", 61.0: "1 min", 3599.0: "1 h 00 min", 5045.0: "1 h 24 min"}
    assert {value: formats.duration(value) for value in texts} == texts


def test_a_sha256_is_shortened_and_a_version_is_not() -> None:
    assert formats.version("9f2c" * 16) == "9f2c9f2c9f2c"
    assert formats.version("2.21.0rc1") == "2.21.0rc1"


def test_a_time_to_the_minute() -> None:
    assert formats.moment("2026-11-28T17:20:15Z") == "2026-11-28, 17:20 UTC"
    assert formats.moment("last week") == "last week"


@pytest.mark.parametrize(
    ("text", "cell"),
    [("case-1", "case-1"), ("=1+1", "'=1+1"), (" @a", "' @a"), ("a\r\nb\0", "a  b ")],
)
def test_a_cell_is_one_line_and_no_formula(text: str, cell: str) -> None:
    assert formats.harmless_cell(text) == cell
