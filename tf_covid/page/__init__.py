"""What the report of a case and the pages of a study share: colours, formats, style, HTML.

palette.py        every colour, by name: themes of the pages, severity classes, runs
formats.py        numbers as a reader sees them
figure_style.py   matplotlib with figure.mplstyle (and slide.mplstyle on top, for a dark slide)
data_uri.py       pictures that are part of a page
templates.py      the Jinja environment, with base.html.j2 that every page extends

Importing this package is cheap: matplotlib and Jinja are imported by the functions that need them.
"""
