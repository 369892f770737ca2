"""MANY SCANS: the manifest, and answering many scans in one run."""

from tf_covid.cohort.manifest import COLUMNS, Row, read_manifest, write_manifest

__all__ = ["COLUMNS", "Row", "read_manifest", "write_manifest"]
