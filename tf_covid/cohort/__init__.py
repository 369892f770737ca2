"""MANY SCANS: the manifest, answering many scans in one run, and feeding them to a training.

manifest.py   the CSV; adapters.py (mosmed.py, stoic.py, covid_ct_md.py) writes it for public data
              sets
infer.py      one case after the other, each in its folder
folds.py      who is trained on and who is tested on, and the audit for leakage
cache.py      each scan read and segmented once, into a TFRecord; planes.py: what is in it;
              workers.py: who makes it
dataset.py    records → batches (tf.data); feed.py and augment.py: batches → clips, on the device
tfio.py       DICOM decoded inside a tf.data graph; an extra
"""

from tf_covid.cohort.manifest import COLUMNS, Row, read_manifest, write_manifest

__all__ = ["COLUMNS", "Row", "read_manifest", "write_manifest"]
