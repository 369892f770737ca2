"""What headers tell about who the patient is, and whether a text repeats any of it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from tf_covid.scan.dicom.header import Instance

#: Shorter parts of a name or id are in too many words to mean anything there.
_LEAST_LETTERS = 3


@dataclass(frozen=True)
class PatientIdentifiers:
    """Names, ids, birth dates, accession numbers and UIDs, as lower-case letters and digits only.

    Args:
        parts: Looked for anywhere in a text.
        tokens: Those of one or two letters; looked for as a whole token only.
    """

    parts: frozenset[str]
    tokens: frozenset[str]

    @classmethod
    def of(cls, instances: Iterable[Instance]) -> PatientIdentifiers:
        """What these headers hold.

        Every word of a name, and neighbouring words joined in both orders.
        """
        names: set[str] = set()
        texts: set[str] = set()
        for one in instances:
            names.add(one.patient_name)
            texts |= {
                one.patient_id,
                one.birth_date,
                one.accession_number,
                one.study_uid,
                one.series_uid,
                one.sop_uid,
            }
        results = {_plain(text) for text in texts}
        for name in names:
            name_parts = [
                word for part in re.split(r"[\^=\s,;._-]+", name) if (word := _plain(part))
            ]
            results.update(name_parts)
            for first, second in pairwise(name_parts):
                results |= {first + second, second + first}
        parts = {part for part in results if len(part) >= _LEAST_LETTERS}
        return cls(frozenset(parts), frozenset(results - parts - {""}))

    def occur_in(self, text: str) -> bool:
        """Whether a text holds any of it."""
        plain = _plain(text)
        tokens = re.split(r"[\W_]+", unicodedata.normalize("NFKC", text))
        return any(part in plain for part in self.parts) or any(
            _plain(token) in self.tokens for token in tokens
        )


def _plain(text: str) -> str:
    """Lower-case letters and digits only: `Doe^Jane`, `doe_jane` and `DOE JANE` are the same."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in folded if letter.isalnum())
