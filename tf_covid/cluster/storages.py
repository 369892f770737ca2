"""Which storage a name stands for."""

from __future__ import annotations

from tf_covid.cluster.folder_storage import FolderStorage
from tf_covid.cluster.storage import Storage
from tf_covid.cluster.url_storage import UrlStorage


def storage_at(out: str) -> Storage:
    """The storage of this name, on whichever machine this is called.

    Args:
        out: A folder, or a URL, which has a "://".

    Raises:
        ClusterError: If nothing that is installed can write there.
    """
    return UrlStorage(out) if "://" in out else FolderStorage(out)
