"""NRRD and MetaImage (`.nrrd`, `.mha`) through SimpleITK, after their header text was read by us.

Both formats may point to other files for their data; ITK would follow, so a hostile header could read any file of
the host. Only files that hold their own data are read.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from tf_covid.scan.checks import refusal
from tf_covid.scan.grid import check_size
from tf_covid.scan.itk_header import HEADER_BYTES, VolumeHeader, mha_header, nrrd_header
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.source import FileSource, Source
from tf_covid.scan.volume import Stored

NAMES = (".nrrd", ".mha")
#: deflate packs at most 1032:1; a header that declares more than that lies.
_MOST_RATIO = 1100
_WARNINGS = threading.Lock()
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@contextmanager
def open_itk(source: Source, limits: Limits = DEFAULT) -> Iterator[Stored]:
    """The volume in an NRRD or MHA file that holds its own data.

    Raises:
        ScanRefused: `empty_file`, `not_nrrd`, `not_mha`, `detached_data`, `truncated_file`, `too_large`, `not_3d`,
            `not_scalar`, `single_slice`, `undecodable`.
    """
    if source.size == 0:
        raise refusal("empty_file", "The file is empty.")
    with source.open() as stream:
        head = stream.read(HEADER_BYTES)
    nrrd = source.name.lower().endswith(".nrrd")
    header = nrrd_header(head) if nrrd else mha_header(head)
    _check_sizes(header, source.size, limits)
    with tempfile.TemporaryDirectory(prefix="tfcovid-") as folder:
        data = _data_file(source, Path(folder))
        if header.text:
            # A link, not the file's own path: a path with a line break in it would write header lines of its own.
            data = data.with_name("header.mhd")
            data.write_text(header.text + "ElementDataFile = data\n", "ascii")
        image = _read(data, "NrrdImageIO" if nrrd else "MetaImageIO")
    yield _stored(image, limits)


def _check_sizes(header: VolumeHeader, size: int, limits: Limits) -> None:
    used = [axis for axis in header.sizes if axis != 1]
    if len(used) > 3:
        raise refusal("not_3d", f"The image has {len(used)} dimensions; one volume is read.", len(used))
    check_size(header.sizes, limits)
    # Checked here also because MetaIO writes to standard error where the file ends early.
    held = size - header.length
    needed = math.prod(header.sizes) * header.voxel_bytes
    if header.packed_bytes > held or needed > held * (_MOST_RATIO if header.packed else 1):
        raise refusal("truncated_file", "The header declares more voxels than the file can hold.")


def _data_file(source: Source, folder: Path) -> Path:
    """The source as a file called `data`: ITK reads files only, so a member of an archive is unpacked."""
    path = folder / "data"
    if isinstance(source, FileSource):
        path.symlink_to(source.path.resolve())
    else:
        with source.open() as stream, path.open("wb") as file:
            shutil.copyfileobj(stream, file)
    return path


def _read(path: Path, image_io: str) -> sitk.Image:
    reader = sitk.ImageFileReader()
    reader.SetImageIO(image_io)  # by name: a file of another format is not handed to its reader
    reader.SetFileName(str(path))
    with _WARNINGS:  # ITK's switch is global: it is set back, and no two readers hold it at a time
        shown = sitk.ProcessObject.GetGlobalWarningDisplay()
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            return reader.Execute()
        except RuntimeError:  # the text of ITK's error names the file
            message = "The voxels cannot be read: the data end early, are damaged, or are packed in an unknown way."
            raise refusal("truncated_file", message) from None
        finally:
            sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _stored(image: sitk.Image, limits: Limits) -> Stored:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise refusal("not_scalar", "The voxels are colours or vectors, not HU.")
    size = image.GetSize()
    while len(size) > 3 and size[-1] == 1:
        image = image[..., 0]
        size = image.GetSize()
    if len(size) == 2:
        raise refusal("single_slice", "The image has one slice only; a scan is a volume.", 1)
    if len(size) != 3:
        raise refusal("not_3d", f"The image has {len(size)} dimensions; one volume is read.", len(size))
    check_size(size, limits)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    if sitk.GetArrayViewFromImage(image).dtype.kind not in "iuf":
        raise refusal("not_scalar", "The voxels are complex or labels in a form that is not read.")
    return Stored((size[0], size[1], size[2]), _LPS_TO_RAS @ affine, _slabs(image))


def _slabs(image: sitk.Image) -> Iterator[np.ndarray]:
    # The view does not own the voxels: they live as long as this generator holds the image.
    for slab in sitk.GetArrayViewFromImage(image):  # (z, y, x), no copy
        yield slab.T
