"""Marks that several rooms' tests share."""

from __future__ import annotations

import pytest

#: Every warning fails the test, but of a file or folder left open: what another test left behind is
#: collected whenever Python likes, in the middle of this one, too.
warnings_are_errors = pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
