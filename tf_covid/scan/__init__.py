"""BYTES → SCAN: DICOM, zip, NIfTI, NRRD and MHA in; int16 HU in one canonical order out.

`find_cases` looks (headers only), `Case.read` reads, `read` does both for a path with one case. A
`ScanRefused` carries coded quality flags: there is no other way to fail on an input. `read_mask`
and `write_nifti` keep to the grid of a scan; `user_lungs` is the one door of a user's mask.
`limits.Limits` bounds what is believed of a header.
"""

from tf_covid.scan.cases import Case, find_cases, read
from tf_covid.scan.checks import lung_flags, volume_flags
from tf_covid.scan.limits import Limits
from tf_covid.scan.mask import array_mask, mask_files, read_labels, read_mask, user_lungs
from tf_covid.scan.mask_check import check_lesions, check_lungs
from tf_covid.scan.nifti import write_nifti
from tf_covid.scan.scan import Scan, SourceGrid, SourceImage, SourceSeries

__all__ = [
    "Case",
    "Limits",
    "Scan",
    "SourceGrid",
    "SourceImage",
    "SourceSeries",
    "array_mask",
    "check_lesions",
    "check_lungs",
    "find_cases",
    "lung_flags",
    "mask_files",
    "read",
    "read_labels",
    "read_mask",
    "user_lungs",
    "volume_flags",
    "write_nifti",
]
