"""Numbers as a reader of a page or figure sees them."""

from __future__ import annotations

import re

#: What stands where there is no value.
DASH = "–"

#: A spreadsheet runs a cell that begins like this as a formula.
_FORMULA_STARTS = ("=", "+", "-", "@")


def minus(text: str) -> str:
    """A number with the minus sign of print instead of a hyphen."""
    return text.replace("-", "−")


def decimals(value: float | None, digits: int = 1) -> str:
    """A number with so many decimals, or a dash; what is rounded to zero has no sign."""
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return minus(text.lstrip("-") if float(text) == 0.0 else text)


def signed(value: float | None, digits: int = 2) -> str:
    """A number with its sign, plus included, or a dash."""
    return DASH if value is None else minus(f"{value:+.{digits}f}")


def compact(value: float | None) -> str:
    """A number without decimals that say nothing, or a dash."""
    return DASH if value is None else f"{value:g}"


def coordinate(value: float) -> str:
    """A length or position for CSS and SVG, with a decimal."""
    return f"{value:.1f}"


def interval(low: str, high: str, unit: str = "") -> str:
    """The range between two numbers that are text already."""
    return f"{low} to {high}{unit}"


def percent(fraction: float | None) -> str:
    """A fraction, 0–1, in whole percent, or a dash."""
    return DASH if fraction is None else f"{fraction * 100:.0f} %"


def probability(fraction: float) -> str:
    """A probability in whole percent; never "0 %" or "100 %" for what is only close to it."""
    if 0.0 < fraction < 0.005:
        return "< 1 %"
    if 0.995 <= fraction < 1.0:
        return "> 99 %"
    return percent(fraction)


def p_value(p: float | None) -> str:
    """A p-value as a paper prints it, or that there is none."""
    if p is None:
        return "not tested"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.0995 else f"p = {p:.2f}"


def thousands(value: float) -> str:
    """A number without decimals, with a thin space between the thousands."""
    return f"{value:,.0f}".replace(",", "\u2009")


def millilitres(volume_ml: float) -> str:
    """A volume with a thin space between the thousands."""
    return thousands(volume_ml) + " ml"


def duration(seconds: float | None) -> str:
    """A time in seconds, minutes or hours and minutes, or a dash."""
    if seconds is None:
        return DASH
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def version(text: str) -> str:
    """A version as it is; of a sha256 the first twelve digits."""
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def moment(text: str) -> str:
    """A time of JSON, "2026-11-28T17:20:15Z", to the minute; any other text as it is."""
    day, _, time = text.partition("T")
    return f"{day}, {time[:5]} UTC" if time else text


def harmless_cell(text: str) -> str:
    """A text for a CSV: on one line, and behind a "'" what a spreadsheet would run as a formula."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    return f"'{line}" if line.lstrip().startswith(_FORMULA_STARTS) else line
