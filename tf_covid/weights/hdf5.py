"""HDF5 files that somebody else wrote: every link, shape and text is looked at before a number is read."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import h5py

from tf_covid.errors import UnsafeFile

#: Bytes of all numbers in a file: the LTC of 64×224×224 with 2048-wide dense layers takes 0.5 GB in float32.
MOST_WEIGHTS = 1_000_000_000

#: Groups and datasets; nesting; and how many times more than it holds a packed dataset above 1 MB may give: weights
#: do not pack.
MOST_ITEMS, MOST_DEPTH, MOST_RATIO = 10_000, 32, 10

#: Bytes of a text attribute.
MOST_TEXT = 4_000_000

#: Deflate, shuffle, Fletcher-32: HDF5 would look for any other filter among the libraries of the host.
_FILTERS = {1, 2, 3}


@contextlib.contextmanager
def checked(path: Path, name: str) -> Iterator[h5py.File]:
    """An open file that reaches nowhere outside itself and promises no more numbers than it holds.

    Args:
        path: The file.
        name: What it is called in a refusal.

    Raises:
        UnsafeFile: On external, soft or repeated links, numbers outside the file, anything but plain numbers, shapes
            that ask for more than the file holds or than the limit, and where reading fails, now or in the block.
    """
    try:
        with h5py.File(path, "r") as file:
            _Check(name, path.stat().st_size).group(file, 0)
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise UnsafeFile("damaged", f"{name}: is no readable HDF5 file ({error})") from error


def text(item: h5py.HLObject, key: str, name: str) -> str | None:
    """A text attribute; None where there is none.

    Raises:
        UnsafeFile: If it is anything but one text of a bounded size.
    """
    if key not in item.attrs:
        return None
    attribute = item.attrs.get_id(key)
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise UnsafeFile("not_numbers", f"{name}: its attribute {key!r} is not one text")
    if attribute.get_storage_size() > MOST_TEXT:
        raise UnsafeFile("shape_bomb", f"{name}: its attribute {key!r} is longer than {MOST_TEXT} bytes")
    value = item.attrs[key]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class _Check:
    """One walk through a file."""

    def __init__(self, name: str, size: int) -> None:
        self._name, self._size = name, size
        self._seen: set[int] = set()
        self._asked = self._held = 0

    def group(self, group: h5py.Group, depth: int) -> None:
        """Every link of a group, and what lies behind it."""
        if depth > MOST_DEPTH:
            raise UnsafeFile("hdf5_depth", f"{self._name}: groups nested deeper than {MOST_DEPTH}")
        for key in group:
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                raise UnsafeFile(
                    "hdf5_link", f"{self._name}: {key!r} is a soft or external link, which a weight file does not need"
                )
            item = group[key]
            place = h5py.h5o.get_info(item.id).addr
            if place in self._seen or len(self._seen) > MOST_ITEMS:
                # Groups that hold each other, or the same one twice, are walked for ever.
                raise UnsafeFile("hdf5_link", f"{self._name}: {key!r} is linked twice, or one of over {MOST_ITEMS}")
            self._seen.add(place)
            if isinstance(item, h5py.Group):
                self.group(item, depth + 1)
            else:
                self._dataset(key, item)

    def _dataset(self, key: str, item: h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
            raise UnsafeFile("hdf5_outside", f"{self._name}: {key!r} keeps its numbers outside the file")
        if item.shape is None or item.dtype.kind not in "fiub":
            # Keras stores no text in a network of stock layers; object arrays are an attack or another library.
            raise UnsafeFile("not_numbers", f"{self._name}: {key!r} holds {item.dtype}, not numbers")
        made = item.id.get_create_plist()
        if any(made.get_filter(number)[0] not in _FILTERS for number in range(made.get_nfilters())):
            raise UnsafeFile("not_numbers", f"{self._name}: {key!r} is packed in a way that Keras does not use")
        asked, held = math.prod(item.shape) * item.dtype.itemsize, item.id.get_storage_size()
        self._asked, self._held = self._asked + asked, self._held + held
        # What datasets claim to hold adds up to the file at most, or they share their bytes.
        if self._asked > MOST_WEIGHTS or self._held > self._size:
            raise UnsafeFile("shape_bomb", f"{self._name}: shapes ask for more than the file, or {MOST_WEIGHTS} bytes")
        if asked > held and (made.get_nfilters() == 0 or asked > max(1_000_000, MOST_RATIO * held)):
            shape = list(item.shape)
            raise UnsafeFile("shape_bomb", f"{self._name}: {key!r} {shape} asks for {asked} bytes, holds {held}")
