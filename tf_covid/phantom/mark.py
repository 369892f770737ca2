"""The mark of the phantom: which code and settings drew a chest, and which seeds are for what."""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

from tf_covid.phantom.settings import PhantomSettings

#: Seeds of the chests that the figures of shipped networks are measured on: these and all above are
#: neither trained nor validated on.
UNSEEN = 1_000_000

#: Seeds of the chests that a training validates its loss on: these and those up to `UNSEEN`. The
#: same for every run, so that the curves of two runs compare.
VALIDATION = 900_000

#: Modules of the phantom that draw nothing: what they hold changes no chest.
_NO_PAINTERS = {"cohort", "encode", "files", "mark"}


@functools.cache
def phantom_mark() -> str:
    """Short hash of what the phantom draws from, its settings and its code.

    Comments do not count.
    """
    results = hashlib.sha256(repr(PhantomSettings()).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NO_PAINTERS:
            results.update(ast.unparse(ast.parse(path.read_text("utf-8"))).encode())
    return results.hexdigest()[:12]
