"""Pickles that torch wrote: looked at opcode by opcode, never run here."""

from __future__ import annotations

import io
import pickletools
import zipfile
from pathlib import Path
from typing import BinaryIO

from tf_covid.errors import UnsafeFile
from tf_covid.weights import quarantine

#: Bytes of the part of a pickle that names its tensors, their numbers lie beside it: 60 KB for an
#: I3D.
MAX_PICKLE = 1_000_000

#: All that a pickled state_dict calls: what makes tensors, by module and name; storages end in
#: "Storage".
_TENSOR_MAKERS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch.nn.parameter", "Parameter"),
    ("torch", "Size"),
    ("torch", "device"),
}


def check_pickle(path: Path) -> None:
    """Refuse a `.pt` or `.pth` whose pickle calls anything but what makes tensors.

    Nothing in it is run.

    Raises:
        UnsafeFile: If it does, or is none.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as torch decides
            file.seek(0)
            head = b"" if zipped else file.read(MAX_PICKLE)
    except OSError as error:
        raise UnsafeFile("damaged", f"{path}: cannot be read ({error.strerror})") from error
    if zipped != zipfile.is_zipfile(path):
        raise UnsafeFile(
            "unsafe_pickle", f"{path}: is a zip for one reader and a pickle for another"
        )
    if not zipped:
        # Before torch 1.6: magic number, protocol, system, the object and the storages' keys; then
        # raw numbers.
        content = io.BytesIO(head)
        for _ in range(5):
            _check_calls(path, content)
        return
    with quarantine.opened(path) as archive:
        members = archive.infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise UnsafeFile("zip_bomb", f"{path}: is packed, which torch.save never does")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise UnsafeFile("zip_bomb", f"{path}: its files add up to more than it")
        pickles = [member for member in members if member.filename.lower().endswith(".pkl")]
        if len(pickles) != 1:
            raise UnsafeFile(
                "damaged", f"{path}: holds {len(pickles)} pickles; a file of torch.save holds one"
            )
        if pickles[0].file_size > MAX_PICKLE:
            raise UnsafeFile(
                "unsafe_pickle", f"{path}: its pickle is longer than {MAX_PICKLE} bytes"
            )
        content = io.BytesIO()
        quarantine.unpack(archive, pickles[0].filename, content, MAX_PICKLE)
        content.seek(0)
        _check_calls(path, content)


def _check_calls(path: Path, pickled: BinaryIO) -> None:
    try:
        for operation, argument, _ in pickletools.genops(pickled):
            name = operation.name
            if name in ("GLOBAL", "INST"):
                module, called = str(argument).split(" ", 1)
            elif name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                # A name that is put together while it runs; torch.save writes none.
                module, called = name, "?"
            else:
                continue
            storage = module in ("torch", "torch.storage") and called.endswith("Storage")
            if not storage and (module, called) not in _TENSOR_MAKERS:
                raise UnsafeFile(
                    "unsafe_pickle",
                    f"{path}: its pickle calls {module}.{called}, which makes no tensor; save the"
                    " state_dict alone",
                )
    except (ValueError, EOFError, IndexError, OverflowError, MemoryError) as error:
        raise UnsafeFile("damaged", f"{path}: its pickle is damaged ({error})") from error
