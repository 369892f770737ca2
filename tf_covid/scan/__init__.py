"""BYTES → SCAN: DICOM, zip, NIfTI, NRRD and MHA in; int16 HU in one canonical order out, with what was found wrong.

`find_cases` looks (headers only), `Case.read` reads, `read` does both for a path with one case. A `ScanRefused`
carries coded quality flags: there is no other way to fail on an input. `read_mask` and `write_nifti` keep to the grid
of a scan. `limits.Limits` bounds what is believed of a header.
"""

from tf_covid.scan.cases import Case, find_cases, read
from tf_covid.scan.checks import lung_flags
from tf_covid.scan.limits import Limits
from tf_covid.scan.mask import read_mask
from tf_covid.scan.nifti import write_nifti
from tf_covid.scan.scan import Scan, SourceGrid

__all__ = [
    "Case",
    "Limits",
    "Scan",
    "SourceGrid",
    "find_cases",
    "lung_flags",
    "read",
    "read_mask",
    "write_nifti",
]
