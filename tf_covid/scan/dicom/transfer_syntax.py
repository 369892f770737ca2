"""The transfer syntaxes that are read, once: a row each (PS3.5 annex A, PS3.6 table A-1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: Codec of a compressed frame.
Kind = Literal["jpeg", "jpeg_lossless", "jpegls", "jpeg2k", "rle"]


@dataclass(frozen=True)
class TransferSyntax:
    """How a file says that its data set and pixels are encoded.

    Args:
        uid: TransferSyntaxUID (0002,0010).
        name: Short name, for people.
        kind: Codec of each frame; None where pixels are not compressed.
        lossless: Whether stored values come back as they were.
        most_bits: Most bits of a stored value that the codec holds.
    """

    uid: str
    name: str
    kind: Kind | None = None
    lossless: bool = True
    most_bits: int = 16


_ROOT = "1.2.840.10008.1.2"
IMPLICIT = _ROOT
EXPLICIT = f"{_ROOT}.1"
DEFLATED = f"{_ROOT}.1.99"
BIG_ENDIAN = f"{_ROOT}.2"
RLE = f"{_ROOT}.5"
JPEG_BASELINE = f"{_ROOT}.4.50"
JPEG_EXTENDED = f"{_ROOT}.4.51"
JPEG_LOSSLESS = f"{_ROOT}.4.57"
JPEG_LOSSLESS_SV1 = f"{_ROOT}.4.70"
JPEG_LS = f"{_ROOT}.4.80"
JPEG_LS_NEAR = f"{_ROOT}.4.81"
JPEG_2000_LOSSLESS = f"{_ROOT}.4.90"
JPEG_2000 = f"{_ROOT}.4.91"
HTJ2K_LOSSLESS = f"{_ROOT}.4.201"
HTJ2K_LOSSLESS_RPCL = f"{_ROOT}.4.202"
HTJ2K = f"{_ROOT}.4.203"

TRANSFER_SYNTAXES = (
    TransferSyntax(IMPLICIT, "implicit little endian"),
    TransferSyntax(EXPLICIT, "explicit little endian"),
    TransferSyntax(DEFLATED, "deflated"),
    TransferSyntax(BIG_ENDIAN, "explicit big endian"),
    TransferSyntax(RLE, "RLE", "rle"),
    TransferSyntax(JPEG_BASELINE, "JPEG baseline", "jpeg", lossless=False, most_bits=8),
    TransferSyntax(JPEG_EXTENDED, "JPEG extended", "jpeg", lossless=False, most_bits=12),
    TransferSyntax(JPEG_LOSSLESS, "JPEG lossless", "jpeg_lossless"),
    TransferSyntax(JPEG_LOSSLESS_SV1, "JPEG lossless SV1", "jpeg_lossless"),
    TransferSyntax(JPEG_LS, "JPEG-LS", "jpegls"),
    TransferSyntax(JPEG_LS_NEAR, "JPEG-LS near-lossless", "jpegls", lossless=False),
    TransferSyntax(JPEG_2000_LOSSLESS, "JPEG 2000 lossless", "jpeg2k"),
    TransferSyntax(JPEG_2000, "JPEG 2000", "jpeg2k", lossless=False),
    TransferSyntax(HTJ2K_LOSSLESS, "HTJ2K lossless", "jpeg2k"),
    TransferSyntax(HTJ2K_LOSSLESS_RPCL, "HTJ2K lossless RPCL", "jpeg2k"),
    TransferSyntax(HTJ2K, "HTJ2K", "jpeg2k", lossless=False),
)

#: UIDs that promise pixels without compression.
NATIVE = tuple(row.uid for row in TRANSFER_SYNTAXES if row.kind is None)

#: UID → the kind of stream that it promises.
KINDS: dict[str, Kind] = {row.uid: row.kind for row in TRANSFER_SYNTAXES if row.kind is not None}
