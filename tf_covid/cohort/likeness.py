"""Ids that a person, a spreadsheet or an anonymiser may have written in two ways.

`P01` and `p-1`, `1` and `1.0`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from decimal import Decimal

#: Cyrillic and Greek small letters that look like a Latin one: keyboards mix them.
_LOOKALIKES = str.maketrans("авекмнорстухіѕјαβεηικμνορτυχ", "abekmhopctyxisjabehikmvoptyx")
#: A number as spreadsheets write one, with a point or a comma.
_NUMBER = re.compile(r"\d{1,30}(?:[.,]\d{1,30})?(?:e[+-]?\d{1,2})?", re.ASCII)
_RUNS = re.compile(r"\d+|[^\W\d_]+")


def near_key(text: str) -> str:
    """A text that near-equal ids have in common.

    Case, accents, composed and decomposed letters, wide letters, digits of any script, letters that
    look alike, what is no letter and no digit, zeros in front of a number and ".0" behind one make
    no difference. The order of letters and digits does, and where a number ends: 12-3 is not 1-23.

    Args:
        text: An id.
    """
    letters = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    letters = "".join(
        _plain(letter) for letter in letters if unicodedata.category(letter) not in ("Mn", "Cf")
    )
    letters = letters.translate(_LOOKALIKES).strip()
    if _NUMBER.fullmatch(letters):
        letters = f"{Decimal(letters.replace(',', '.')).normalize():f}"
    runs = [run.lstrip("0") or "0" if run.isdecimal() else run for run in _RUNS.findall(letters)]
    return " ".join(runs) or letters or text


def _plain(letter: str) -> str:
    digit = unicodedata.decimal(letter, None)
    return letter if digit is None else str(digit)


def near_groups(ids: Iterable[str]) -> dict[str, str]:
    """Id → the first, in order of the alphabet, of those that are near-equal to it.

    Itself, if there is no other.

    Args:
        ids: May hold an id more than once.
    """
    of_key: dict[str, list[str]] = defaultdict(list)
    for name in sorted(set(ids)):
        of_key[near_key(name)].append(name)
    return {name: names[0] for names in of_key.values() for name in names}
