"""UIDs that follow from what they stand for: the same question gives the same UIDs.

They are those of ITU-T X.667, "2.25." and a UUID as a number (PS3.5 B.2), which needs no
registered root; the UUID is of version 5, the hash of a name.
"""

from __future__ import annotations

import uuid

#: Of all names that are hashed here. Never changed: with it all UIDs would change.
_NAMESPACE = uuid.UUID("3c4bbd3e-6f0c-4f6b-9a5d-0d3b8a3f2f1e")


def uid(*parts: str) -> str:
    """The UID of a list of texts; another list, another UID.

    Each text is hashed together with its length, so that "a", "b" and "ab" are not the same.
    """
    name = "".join(f"{len(part)}:{part}" for part in parts)
    return f"2.25.{uuid.uuid5(_NAMESPACE, name).int}"
