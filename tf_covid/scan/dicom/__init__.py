"""DICOM: headers first, then the choice of a series, its order, and its pixels.

header.py           one file's header as plain values (encoding.py: how it is encoded; directory.py:
                    what a DICOMDIR lists; identity.py: what of it names the patient)
transfer_syntax.py  the table of transfer syntaxes
slices.py           which images are CT slices (terms.py: what their texts say)
candidates.py       slices → the stacks that they may form (stack.py: one stack; remarks.py: what
                    limits it; content.py: a look at its lungs)
series.py           which stack is read, by a table of rules (left_out.py: what is left out)
study.py            choose, order, decode, repair: HU in canonical order
pixeldata.py        the bytes of each frame → pixels.py: stored values, HU (streams.py, complete.py:
                    whether a code stream is whole; notes.py: what was noticed on the way)
"""

from tf_covid.scan.dicom.directory import missing_images
from tf_covid.scan.dicom.header import Damaged, Instance, read_header
from tf_covid.scan.dicom.study import read_study

__all__ = ["Damaged", "Instance", "missing_images", "read_header", "read_study"]
