"""The headers of NIfTI-1, NIfTI-2 and Analyze 7.5: sizes, voxel type, scaling, orientation.

The NIfTI-1 standard (nifti1.h) decides; where ITK and nibabel read a field differently, a quality
flag says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import nibabel as nib
import numpy as np
from nibabel.quaternions import quat2mat
from nibabel.spatialimages import HeaderDataError

from tf_covid.result import QualityFlag
from tf_covid.scan.checks import refusal
from tf_covid.scan.geometry import disagreement, in_millimetres
from tf_covid.scan.grid import one_volume

#: Most bytes that a header takes.
HEADER_BYTES = 540
_LENGTH = {348: nib.Nifti1Header, 540: nib.Nifti2Header}
_MAGICS = {348: {b"n+1": "single", b"ni1": "pair"}, 540: {b"n+2": "single", b"ni2": "pair"}}
#: First byte of the voxels in a file of its own header: behind it and the four bytes that announce
#: extensions.
_LEAST_OFFSET = {348: 352, 540: 544}
#: Where the voxels may begin at the latest; extensions in between are skipped, not parsed.
_MOST_OFFSET = 1 << 26
#: Units of length in `xyzt_units`: what they are in mm.
_UNITS = {1: ("m", 1000.0), 2: ("mm", 1.0), 3: ("µm", 0.001)}
#: How much longer than 1 a quaternion may be from rounding.
_LONG_QUATERNION = 1e-3
#: Of the square of a quaternion in float32, as nibabel allows.
_ROUNDING = 3 * float(np.finfo(np.float32).eps)
#: Of three directions: below, two of them are almost the same.
_LEAST_DETERMINANT = 0.1

Kind = Literal["single", "pair", "analyze"]


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of one header.

    Args:
        fields: nibabel's header, used as a table of fields only.
        kind: `single`: the voxels follow; `pair`: they lie in an `.img`; `analyze`: that too,
            without orientation.
        length: Bytes that the header itself takes.
    """

    fields: nib.Nifti1Header
    kind: Kind
    length: int

    def shape(self) -> tuple[int, int, int]:
        """Sizes of the three stored axes; further axes of one voxel are left out.

        Raises:
            ScanRefused: `bad_header`, `single_slice`, `not_3d`.
        """
        dim = [int(size) for size in self.fields["dim"]]
        if not 1 <= dim[0] <= 7:
            raise refusal(
                "bad_header", f"dim[0] is {dim[0]}; a NIfTI image has 1 to 7 axes.", dim[0]
            )
        shape = dim[1 : dim[0] + 1]
        if any(size < 1 for size in shape):
            sizes = "×".join(map(str, shape))
            raise refusal(
                "bad_header", f"The header declares an impossible size: dim says {sizes}."
            )
        return one_volume(shape)

    def dtype(self) -> np.dtype:
        """The type of a stored voxel, with its byte order.

        Raises:
            ScanRefused: `bad_header`, `not_scalar`.
        """
        code, bits = int(self.fields["datatype"]), int(self.fields["bitpix"])
        try:
            dtype = np.dtype(self.fields.get_data_dtype())
        except (HeaderDataError, KeyError):
            raise refusal(
                "bad_header", f"The header declares an unknown voxel type: datatype {code}.", code
            ) from None
        if dtype.kind not in "iuf" or not 1 <= dtype.itemsize <= 8:
            raise refusal(
                "not_scalar",
                "The voxels are colours, complex, bits or of more than 64 bits: not HU.",
            )
        if bits not in (0, 8 * dtype.itemsize):
            message = (
                f"The header contradicts itself: datatype {code} has {8 * dtype.itemsize} bits,"
                f" bitpix says {bits}."
            )
            raise refusal("bad_header", message, bits)
        voxel_type: np.dtype = np.dtype(dtype)
        return voxel_type

    def scaling(self) -> tuple[float, float, tuple[QualityFlag, ...]]:
        """scl_slope, scl_inter, and what is odd about them.

        A slope of 0 or NaN means that nothing is scaled.

        Raises:
            ScanRefused: `bad_header` if one of them is infinite, or the intercept of a slope is no
                number.
        """
        slope, inter = float(self.fields["scl_slope"]), float(self.fields["scl_inter"])
        if self.kind == "analyze":
            return 1.0, 0.0, self._analyze_scaling(slope)
        if (
            np.isinf(slope)
            or np.isinf(inter)
            or (slope != 0 and np.isfinite(slope) and np.isnan(inter))
        ):
            message = (
                f"scl_slope {slope:g} and scl_inter {inter:g} are no scaling; the stored numbers"
                " cannot be made HU."
            )
            raise refusal("bad_header", message)
        if np.isfinite(slope) and slope != 0:
            return slope, inter, ()
        if np.isnan(inter) or inter == 0:
            return 1.0, 0.0, ()
        message = (
            f"scl_slope is {slope:g}: nothing is scaled (NIfTI standard), though scl_inter is"
            f" {inter:g}."
        )
        return 1.0, 0.0, (QualityFlag("scaling_unclear", "warning", message, inter),)

    @staticmethod
    def _analyze_scaling(factor: float) -> tuple[QualityFlag, ...]:
        if not np.isfinite(factor) or factor in (0.0, 1.0):
            return ()
        message = (
            f"The Analyze header holds a scale factor of {factor:g}, which SPM applies and ITK does"
            " not; it was not."
        )
        return (QualityFlag("scaling_unclear", "warning", message, factor),)

    def offset(self) -> int:
        """First byte of the voxels, in the file that holds them.

        Raises:
            ScanRefused: `bad_header`.
        """
        offset = float(self.fields["vox_offset"])
        if not 0 <= offset <= _MOST_OFFSET or offset != int(offset):
            raise refusal(
                "bad_header", f"vox_offset is {offset:g}: no place where voxels begin.", offset
            )
        least = _LEAST_OFFSET[self.length] if self.kind == "single" else 0
        if 0 < offset < least:
            message = (
                f"vox_offset is {offset:g}: within the header, whose voxels begin at {least} at the"
                " earliest."
            )
            raise refusal("bad_header", message, offset)
        return int(offset) or least

    def affine(self) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
        """(4, 4), stored index → RAS mm, by the sform, else the qform, else the order of storage.

        And what is odd.

        Raises:
            ScanRefused: `bad_affine`.
        """
        scale, flags = self._units()
        sform = qform = None
        if self.kind != "analyze":
            sform = self._sform() if int(self.fields["sform_code"]) > 0 else None
            usable = sform is not None and _regular(sform)
            if int(self.fields["qform_code"]) > 0:
                qform = self._qform(needed=not usable)
            if sform is not None and not usable:
                if qform is None:
                    raise refusal(
                        "bad_affine",
                        "The sform in the header is not usable (zero, not finite, or flat).",
                    )
                message = (
                    "The sform in the header is not usable (zero, not finite, or flat); the qform"
                    " was taken."
                )
                flags += (QualityFlag("affine_disagree", "warning", message),)
                sform = None
        if sform is None and qform is None:
            message = (
                "The header states no orientation; left, right, head and feet are assumed from the"
                " storage order."
            )
            return scale @ self._base(), (
                *flags,
                QualityFlag("orientation_unknown", "warning", message),
            )
        affine = cast(np.ndarray, sform if sform is not None else qform)
        if sform is not None:
            flags += self._against(sform, qform)
        elif (qfac := float(self.fields["pixdim"][0])) not in (-1.0, 0.0, 1.0):
            message = (
                f"qfac (pixdim[0]) is {qfac:g}, not 1 or -1: the side that the slices run to is a"
                " guess."
            )
            flags += (
                QualityFlag(
                    "affine_disagree", "warning", message, qfac if np.isfinite(qfac) else None
                ),
            )
        return scale @ affine, flags

    def _sform(self) -> np.ndarray:
        rows = [self.fields[f"srow_{axis}"] for axis in "xyz"]
        return np.array([*rows, [0.0, 0.0, 0.0, 1.0]], dtype=np.float64)

    def _qform(self, *, needed: bool) -> np.ndarray | None:
        """The affine of quaternion and pixdim; None where it is not usable and not `needed`."""
        vector = np.array([self.fields[f"quatern_{axis}"] for axis in "bcd"], dtype=np.float64)
        size = np.array(self.fields["pixdim"][1:4], dtype=np.float64)
        square = float(vector @ vector)
        if not (np.isfinite(size).all() and (size > 0).all() and square <= 1 + _LONG_QUATERNION):
            if needed:
                message = (
                    "The qform in the header is not usable: its quaternion is too long, or pixdim"
                    " not above zero."
                )
                raise refusal("bad_affine", message)
            return None
        if square > 1 - _ROUNDING:  # half a turn: its fourth number is zero, but for rounding
            vector, square = vector / np.sqrt(square), 1.0
        affine = np.eye(4)
        affine[:3, :3] = quat2mat([np.sqrt(max(0.0, 1 - square)), *vector]) * size
        # The standard says that a qfac of 0 is 1; its reference reader takes the sign of any other
        # number.
        affine[:3, 2] *= -1.0 if float(self.fields["pixdim"][0]) < 0 else 1.0
        affine[:3, 3] = [self.fields[f"qoffset_{axis}"] for axis in "xyz"]
        return affine

    def _base(self) -> np.ndarray:
        """What nibabel and Analyze assume.

        The first axis runs to the left, the second to the front, up the third.
        """
        size = np.abs(np.array(self.fields["pixdim"][1:4], dtype=np.float64)) * [-1.0, 1.0, 1.0]
        affine = np.diag([*size, 1.0])
        affine[:3, 3] = -size * (np.array(self.fields["dim"][1:4], dtype=np.float64) - 1) / 2
        return affine

    def _against(self, sform: np.ndarray, qform: np.ndarray | None) -> tuple[QualityFlag, ...]:
        """Where sform, qform and pixdim say different things.

        Nibabel takes the sform, ITK the size from pixdim.
        """
        size = np.array(self.fields["pixdim"][1:4], dtype=np.float64)
        if not (np.isfinite(size).all() and (size > 0).all()):
            text = "pixdim states no size of the voxels"
        elif qform is not None:
            text = disagreement(sform, qform)
        else:
            text = disagreement(sform, np.diag([*size, 1.0]), size_only=True)
        if qform is None and int(self.fields["qform_code"]) > 0 and not text:
            text = "the qform is not usable"
        if not text:
            return () if qform is None else _apart(sform, qform)
        message = (
            f"The sform in the header was taken, but {text}; other programs may show the scan"
            " differently."
        )
        return (QualityFlag("affine_disagree", "warning", message),)

    def _units(self) -> tuple[np.ndarray, tuple[QualityFlag, ...]]:
        """The matrix that makes the header's units mm."""
        if self.kind == "analyze":
            return np.eye(4), ()
        code = int(self.fields["xyzt_units"]) & 7
        if code not in _UNITS:
            message = (
                "The header does not say in which unit its voxels are measured (xyzt_units"
                f" {code}); taken for mm."
            )
            return np.eye(4), (
                QualityFlag("units_unknown", "warning" if code else "info", message, code),
            )
        return in_millimetres(*_UNITS[code])


def _apart(sform: np.ndarray, qform: np.ndarray) -> tuple[QualityFlag, ...]:
    distance = float(np.linalg.norm(sform[:3, 3] - qform[:3, 3]))
    if distance <= np.linalg.norm(sform[:3, :3], axis=0).min():
        return ()
    message = (
        f"The qform places the scan {distance:.4g} mm (or units of the header) away from the sform,"
        " which was taken."
    )
    return (
        QualityFlag(
            "affine_disagree",
            "info",
            message,
            round(distance, 3) if np.isfinite(distance) else None,
        ),
    )


def _regular(affine: np.ndarray) -> bool:
    if not np.isfinite(affine).all():
        return False
    size = np.linalg.norm(affine[:3, :3], axis=0)
    return bool((size > 0).all() and abs(np.linalg.det(affine[:3, :3] / size)) > _LEAST_DETERMINANT)


def parse(block: bytes) -> NiftiHeader | None:
    """The header that a file begins with; None if it is of neither NIfTI nor Analyze.

    Args:
        block: The first `HEADER_BYTES` bytes of the file, fewer if it is shorter.
    """
    for length, kind in _LENGTH.items():
        if len(block) < length:
            continue
        at = 344 if length == 348 else 4
        magic = _MAGICS[length].get(block[at : at + 3])
        order = _byte_order(block, length, named=magic is not None)
        if order is None or (magic is None and length == 540):
            continue
        fields = kind(block[:length], endianness=order, check=False)
        return NiftiHeader(fields, magic or "analyze", length)  # type: ignore[arg-type]
    return None


def _byte_order(block: bytes, length: int, *, named: bool) -> Literal["<", ">"] | None:
    """Byte order by `sizeof_hdr`; where that is neither, by `dim[0]`, as nibabel does."""
    for order, word in (("<", "little"), (">", "big")):
        if int.from_bytes(block[:4], word) == length:  # type: ignore[arg-type]
            return order  # type: ignore[return-value]
    if not named:
        return None
    at, size = (40, 2) if length == 348 else (16, 8)
    return "<" if 1 <= int.from_bytes(block[at : at + size], "little") <= 7 else ">"
