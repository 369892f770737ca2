"""HDF5 files that somebody else wrote.

Every link, shape and text is looked at before a number is read.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import h5py

from tf_covid.errors import UnsafeFile

#: Bytes of all numbers in a file: the LTC of 64×224×224 with 2048-wide dense layers takes 0.5 GB in
#: float32.
MAX_WEIGHTS = 1_000_000_000

#: Groups and datasets; letters of all their names; nesting.
MAX_ITEMS, MAX_NAMES, MAX_DEPTH = 10_000, 1_000_000, 32

#: How many times more than it holds a packed dataset above 1 MB may give, and all above 50 MB:
#: weights do not pack.
MAX_RATIO, FREE_ONE, FREE_ALL = 10, 1_000_000, 50_000_000

#: Bytes of one chunk of numbers, which is unpacked whole; h5py's own choice is below 1 MB.
MAX_CHUNK = 128_000_000

#: Bytes of a text attribute: a config, and the name of a layer.
MAX_TEXT, MAX_NAME = 4_000_000, 1000

#: Filters, each at most once and in this order: shuffle, deflate. `chunks.py` undoes both; HDF5
#: would look for one that it does not know among the libraries of the host, and crashes where
#: Fletcher-32 lies on three bytes.
FILTERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE)


@contextlib.contextmanager
def checked(path: Path, name: str) -> Iterator[h5py.File]:
    """An open file that reaches nowhere outside itself and promises no more numbers than it holds.

    Args:
        path: The file.
        name: Name of the file in an error message.

    Raises:
        UnsafeFile: On external, soft or repeated links, numbers outside the file, anything but
            plain numbers, shapes that ask for more than the file holds or than the limit, and where
            reading fails, now or in the block.
    """
    try:
        with h5py.File(path, "r") as file:
            check = _Check(name, path.stat().st_size)
            check.group(file, 0)
            check.apart()
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise UnsafeFile("damaged", f"{name}: is not a readable HDF5 file ({error})") from error


def text(item: h5py.HLObject, key: str, name: str, max_bytes: int = MAX_TEXT) -> str | None:
    """A text attribute; None where there is none.

    Args:
        item: File, group or dataset that bears the attribute.
        key: Name of the attribute.
        name: Name of the file in an error message.
        max_bytes: Largest size of the text.

    Raises:
        UnsafeFile: If it is anything but one text of a bounded size.
    """
    if key not in item.attrs:
        return None
    attribute = item.attrs.get_id(key)
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise UnsafeFile("not_numbers", f"{name}: its attribute {key!r} is not one text")
    value = item.attrs[key] if attribute.get_storage_size() <= max_bytes else None
    # A text of any length lies elsewhere in the file, and its place alone is counted as stored.
    if value is None or len(value) > max_bytes:
        raise UnsafeFile(
            "shape_bomb", f"{name}: its attribute {key!r} is longer than {max_bytes} bytes"
        )
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Check:
    """One walk through a file."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._seen: set[int] = set()
        self._runs: list[tuple[int, int]] = []
        self._asked = self._held = self._letters = 0

    def group(self, group: h5py.Group, depth: int) -> None:
        """Every link of a group, and what lies behind it."""
        if depth > MAX_DEPTH:
            raise UnsafeFile("hdf5_depth", f"{self._name}: groups nested deeper than {MAX_DEPTH}")
        for key in group:
            self._letters += len(key)
            if len(self._seen) > MAX_ITEMS or self._letters > MAX_NAMES:
                raise UnsafeFile(
                    "hdf5_items",
                    f"{self._name}: over {MAX_ITEMS} groups and datasets, or {MAX_NAMES} letters"
                    " of names",
                )
            if not isinstance(key, str) or not key.isprintable():  # bytes where they are no UTF-8
                raise UnsafeFile(
                    "damaged", f"{self._name}: a name inside is not a text ({key!a:.80})"
                )
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFile(
                    "hdf5_link",
                    f"{self._name}: {key!r} is a soft or external link, which a weight file does"
                    " not need",
                )
            item = group[key]
            position = h5py.h5o.get_info(item.id).addr
            if position in self._seen:
                # Groups that hold each other, or the same one twice, are walked for ever.
                raise UnsafeFile("hdf5_link", f"{self._name}: {key!r} is linked twice")
            self._seen.add(position)
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            else:
                self._dataset(key, item)

    def _dataset(self, key: str, item: h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
            raise UnsafeFile(
                "hdf5_outside", f"{self._name}: {key!r} keeps its numbers outside the file"
            )
        if item.shape is None or not _plain(item):
            # Keras stores no text in a network of stock layers; object arrays are an attack or
            # another library.
            raise UnsafeFile(
                "not_numbers", f"{self._name}: {key!r} holds {item.dtype}, not numbers"
            )
        made, size = item.id.get_create_plist(), item.dtype.itemsize
        filters = [made.get_filter(index)[0] for index in range(made.get_nfilters())]
        if filters != [one for one in FILTERS if one in filters]:
            raise UnsafeFile(
                "unknown_packing",
                f"{self._name}: {key!r} is packed with HDF5's filters {filters}; gzip and shuffle "
                "alone are read (save it without, as Keras does)",
            )
        count, held = math.prod(item.shape), item.id.get_storage_size()
        # What it takes here: all floating-point numbers become float32.
        asked = count * (max(size, 4) if item.dtype.kind == "f" else size)
        self._asked, self._held = self._asked + asked, self._held + held
        # What datasets claim to hold adds up to the file at most, or they share their bytes.
        max_asked = min(MAX_WEIGHTS, FREE_ALL + MAX_RATIO * self._held)
        if self._asked > max_asked or self._held > self._size:
            raise UnsafeFile(
                "shape_bomb",
                f"{self._name}: shapes ask for more than the file, or {MAX_WEIGHTS} bytes",
            )
        if count * size > held and (not filters or count * size > max(FREE_ONE, MAX_RATIO * held)):
            shape = list(item.shape)
            raise UnsafeFile(
                "shape_bomb",
                f"{self._name}: {key!r} {shape} asks for {count * size} bytes, holds {held}",
            )
        self._chunks(key, item)

    def _chunks(self, key: str, item: h5py.Dataset) -> None:
        """Refuse a chunk too large to be unpacked, and numbers that were never written."""
        if item.chunks is None:
            if (start := item.id.get_offset()) is not None:
                self._runs.append((start, start + item.id.get_storage_size()))
            return
        if (one := math.prod(item.chunks) * item.dtype.itemsize) > MAX_CHUNK:
            raise UnsafeFile(
                "shape_bomb",
                f"{self._name}: {key!r} has chunks of {one} bytes; {MAX_CHUNK} are read",
            )
        expected = math.prod(
            -(-side // step) for side, step in zip(item.shape, item.chunks, strict=True)
        )
        results = chunks_of(item)
        if sorted(one.chunk_offset for one in results) != sorted(
            {one.chunk_offset for one in results}
        ):
            raise UnsafeFile("damaged", f"{self._name}: {key!r} holds one of its chunks twice")
        if len(results) != expected:
            raise UnsafeFile(
                "damaged", f"{self._name}: {key!r} holds {len(results)} of its {expected} chunks"
            )
        self._runs += [(one.byte_offset, one.byte_offset + one.size) for one in results]

    def apart(self) -> None:
        """Refuse datasets that share their bytes, after the walk."""
        runs = sorted(run for run in self._runs if run[1] > run[0])
        if any(later[0] < before[1] for before, later in itertools.pairwise(runs)):
            raise UnsafeFile("damaged", f"{self._name}: two of its datasets lie on the same bytes")


def chunks_of(item: h5py.Dataset) -> list[h5py.h5d.StoreInfo]:
    """Where the chunks of a dataset lie: `chunk_offset`, `filter_mask`, `byte_offset`, `size`.

    Raises:
        RuntimeError: If they cannot be found.
    """
    results: list[h5py.h5d.StoreInfo] = []
    item.id.chunk_iter(results.append)
    return results


def _plain(item: h5py.Dataset) -> bool:
    """Whether a dataset's numbers are those of the machine.

    No text, structure, odd precision or name for a number.
    """
    kind, size = item.dtype.kind, item.dtype.itemsize
    known = size in (2, 4, 8) if kind == "f" else size in (1, 2, 4, 8) and kind in "iub"
    if (
        not known
        or item.dtype.subdtype is not None
        or h5py.check_enum_dtype(item.dtype) is not None
    ):
        return False
    return bool(h5py.h5t.py_create(item.dtype, logical=True).equal(item.id.get_type()))
