"""What several threads noticed while they read pixel data, as quality flags at the end."""

from __future__ import annotations

from dataclasses import dataclass, field

from tf_covid.result import Level, QualityFlag

#: Code → level, and what to say of so many files.
_TEXTS: dict[str, tuple[Level, str]] = {
    "transfer_syntax_wrong": (
        "warning",
        (
            "{count} file(s) are encoded otherwise than TransferSyntaxUID (0002,0010) says; they"
            " were read as their bytes are. Export the series again if you can."
        ),
    ),
    "no_end_marker": (
        "warning",
        (
            "{count} file(s) hold compressed images without an end marker (EOI); every sample was"
            " there."
        ),
    ),
    "no_delimiter": (
        "info",
        (
            "{count} file(s) end their pixel data without a sequence delimiter (FFFE,E0DD); the"
            " images were whole."
        ),
    ),
    "odd_bytes": (
        "warning",
        (
            "{count} file(s) hold bytes behind the pixels that are no padding: Rows (0028,0010) or"
            " Columns (0028,0011) may be wrong, or bytes were put in before them, and the voxels"
            " may be shifted. Look at the images."
        ),
    ),
    "extra_bytes": (
        "info",
        "{count} file(s) hold a few bytes more than PixelData (7FE0,0010) needs; they were left.",
    ),
}


@dataclass(frozen=True)
class Notes:
    """Names of the files of which something was noticed, by code.

    Sets are filled by several threads.
    """

    noted: dict[str, set[str]] = field(default_factory=lambda: {code: set() for code in _TEXTS})

    def add(self, code: str, name: str) -> None:
        """Remember that `code` was noticed of the file called `name`."""
        self.noted[code].add(name)

    def quality_flags(self) -> tuple[QualityFlag, ...]:
        """One flag for each code that was noticed, with the number of files."""
        return tuple(
            QualityFlag(
                code, level, text.format(count=len(self.noted[code])), len(self.noted[code])
            )
            for code, (level, text) in _TEXTS.items()
            if self.noted[code]
        )
