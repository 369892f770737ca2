"""Results as DICOM objects: segmentations, a secondary capture, a structured report.

Only `write` is called from other rooms; nothing here is imported before DICOM is asked for, since
highdicom comes with the extra [dicom].
"""
