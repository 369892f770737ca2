"""DICOM: headers first, then the choice of a series, its order, and its pixels."""

from tf_covid.scan.dicom.directory import missing_images
from tf_covid.scan.dicom.header import Damaged, Instance, read_header
from tf_covid.scan.dicom.study import read_study

__all__ = ["Damaged", "Instance", "missing_images", "read_header", "read_study"]
