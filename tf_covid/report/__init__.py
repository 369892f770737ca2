"""RESULT → FILES: what a case leaves on disk, and what a radiologist sees of it.

views.py     which slices and planes are shown
pictures.py  one plane of the scan as a picture: lung window, lung contour, attention
montage.py   montage.png (on slide.py)
html.py      report.html (with report.html.j2)
text.py      the sentences that both share
files.py     the case folder, atomically
summary.py   summary.csv, a row a case

Importing this package is cheap: NumPy, Pillow, matplotlib and Jinja are imported by the functions
that draw.
"""

from tf_covid.report.files import write_case
from tf_covid.report.summary import summary_row, write_summary

__all__ = ["summary_row", "write_case", "write_summary"]
