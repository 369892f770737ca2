"""MANY SCANS: the manifest, their folds, and how they reach a network in training.

manifest.py        the CSV; table.py reads it; likeness.py: ids that are nearly equal
adapters.py        the CSV of a public data set (mosmed.py, stoic.py, covid_ct_md.py)
cases.py           inputs and rows → cases; check.py: each read and judged by the gate
folds.py           train, validation and test cases, and the audit for leakage
cache.py           each scan read and segmented once, into a TFRecord
planes.py          what is in a record; workers.py: the processes that make it
dataset.py         records → batches (tf.data)
training_input.py  batches → a network's input, on the device; augment.py, mask_augment.py: what
                   changes in training
tfio.py            DICOM decoded inside a tf.data graph; an extra
"""

from tf_covid.cohort.manifest import COLUMNS, ManifestRow, read_manifest, write_manifest

__all__ = ["COLUMNS", "ManifestRow", "read_manifest", "write_manifest"]
