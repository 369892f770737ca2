"""DICOM decoded inside a `tf.data` graph, by tensorflow-io.

An extra: `pip install -e '.[tfio]'`, TensorFlow 2.16.

`tfio.image.decode_dicom_image` gives what DCMTK would put on a screen: scaled to an unsigned range
that follows from the header, rounded where the rescale slope is a fraction, windowed or inverted
where the header asks for it. HU cannot always be recovered from that. So it never sees the header:
each file's pixel data, as they are, are put behind a header of ours that says only how the bits
lie. Without rescale, window, padding and palette, DCMTK's answer is the stored value less the least
one that the bits can hold; slope and intercept of the file's own header make it HU, in the graph.

What the graph cannot check is checked before it is built: headers, order, gaps and the whole length
of every file by the code that reads scans everywhere else, and the first slice of each way of
storing that a series uses against that code's pixels. DCMTK fills up what it cannot decode and says
nothing; a stream damaged in the middle of a later file is found by neither.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage

from tf_covid.errors import ScanRefused, TfCovidError
from tf_covid.scan import checks
from tf_covid.scan.cases import find_cases
from tf_covid.scan.checks import refusal
from tf_covid.scan.dicom.header import Instance, read_header
from tf_covid.scan.dicom.pixels import raw_frames
from tf_covid.scan.dicom.series import choose
from tf_covid.scan.dicom.stack import SliceFrame
from tf_covid.scan.dicom.study import hu_of
from tf_covid.scan.dicom.transfer_syntax import (
    BIG_ENDIAN,
    EXPLICIT,
    IMPLICIT,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LOSSLESS_SV1,
    JPEG_LS,
    RLE,
)
from tf_covid.scan.grid import check_size, orient
from tf_covid.scan.limits import DEFAULT
from tf_covid.scan.source import DiskFile, workers
from tf_covid.tensor import Tensor

#: Lossless transfer syntaxes that DCMTK and we decode alike. Of lossy ones, two decoders may round
#: later slices apart.
SYNTAXES = frozenset(
    {
        *(IMPLICIT, EXPLICIT, BIG_ENDIAN, RLE, JPEG_LOSSLESS, JPEG_LOSSLESS_SV1),
        *(JPEG_LS, JPEG_2000_LOSSLESS),
    }
)
_NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN)
#: tensorflow-io 0.37.1, the last one, loads beside this TensorFlow only.
_TENSORFLOW = "2.16."
#: Padding from here on reads as tissue, and our reader makes it air; the graph does not.
_PADDING_AS_AIR_HU = -900
_INT16 = np.iinfo(np.int16)
_UNDEFINED = 0xFFFFFFFF

SeriesPath = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


class ExtraMissing(TfCovidError):
    """A package that is not installed by default is needed.

    The message names the extra that brings it.
    """


@dataclass(frozen=True)
class DicomSeriesFiles:
    """What the graph needs to know of one series.

    Lists are in the order in which slices are stacked.

    Args:
        files: Paths.
        heads: What stands before the pixel data instead of the file's own header.
        sizes, offsets: Length of each file, and where its pixel data begin, in bytes.
        lows: Least stored value that the bits of each slice can hold; DCMTK counts from there.
        slopes, intercepts: Stored value → HU.
        matrix: Rows and columns.
        axes, flipped: Of the stored array (columns, rows, slices), as in `SourceGrid`.
    """

    files: tuple[str, ...]
    heads: tuple[bytes, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]
    lows: tuple[float, ...]
    slopes: tuple[float, ...]
    intercepts: tuple[float, ...]
    matrix: tuple[int, int]
    axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]


def dicom_dataset(
    series: Iterable[SeriesPath], *, parallel_slices: int | None = None
) -> tf.data.Dataset:
    """Volumes of DICOM series, decoded in the graph.

    Headers are read, and the first slice is compared, before this returns: a refusal names its
    series then and not in the middle of an epoch. Pixel data are read each time that the dataset
    is.

    Args:
        series: A folder with one series each, or the files of one.
        parallel_slices: Slices decoded at a time; one for each core, at most 8, where None.

    Returns:
        Of int16 tensors (D, H, W): HU in canonical order, bit-equal to `tf_covid.read(folder).hu`;
        one a series, in the order given. Iterating raises `tf.errors.InvalidArgumentError` for a
        slice that DCMTK cannot read, or that has another length or shape than when its header was
        read.

    Raises:
        ExtraMissing: Without tensorflow-io, or with a TensorFlow that it does not load beside.
        ScanRefused: As `tf_covid.read`, with its codes; `tfio_unsupported` for what only
            `tf_covid.read` reads (gaps, doubled slices, lossy or deflated files, several frames a
            file, padding that reads as tissue); `tfio_differs` if the first slice is not what our
            reader makes of it.
    """
    _decoder()
    return _dataset([_prepare(one) for one in series], parallel_slices or workers())


def read_series_tfio(path: SeriesPath) -> np.ndarray:
    """One series through the graph.

    Int16 HU (D, H, W), checked like a scan that `tf_covid.read` reads.

    Args:
        path: A folder with one series, or its files.

    Raises:
        ExtraMissing, ScanRefused: See `dicom_dataset`; also `undecodable` for a slice that DCMTK
            cannot read, and what `tf_covid.read` says of values that are no HU of a body.
    """
    try:
        hu: np.ndarray = next(iter(dicom_dataset([path]))).numpy()
    except tf.errors.InvalidArgumentError:  # its text names the file
        message = (
            "tensorflow-io cannot decode a slice of the series, or a file changed while it was"
            " read."
        )
        raise refusal("undecodable", message) from None
    quality_flags = checks.gate(hu)
    if any(flag.level == "error" for flag in quality_flags):
        raise ScanRefused(quality_flags)
    return hu


def _decoder() -> Tensor:
    """`tfio.image.decode_dicom_image`, where it works."""
    hint = (
        "pip install -e '.[tfio]' in the checkout, into a virtual environment of its own, or read"
        " with tf_covid.read"
    )
    if not tf.__version__.startswith(_TENSORFLOW):
        raise ExtraMissing(
            f"tensorflow-io loads beside TensorFlow {_TENSORFLOW}x only, and this is"
            f" {tf.__version__}: {hint}"
        )
    try:
        return importlib.import_module("tensorflow_io").image.decode_dicom_image
    except ImportError as error:
        raise ExtraMissing(f"tensorflow-io is not installed: {hint}") from error


def _prepare(path: SeriesPath) -> DicomSeriesFiles:
    """Read and order the headers of a series; refuse what the graph reads otherwise than we."""
    instances, paths = _instances(path)
    best, _, _ = choose(instances, DEFAULT.gap_mm)
    stack = best.built()
    for count, what in (
        (len(stack.missing), "slice(s) are missing"),
        (
            sum(len(slice_group) > 1 for slice_group in stack.slice_groups),
            "position(s) hold more than one slice",
        ),
        (
            sum(len(slice_frame.instance.frames) > 1 for slice_frame in best.slice_frames),
            "slice(s) share a file with others",
        ),
        (
            sum(
                slice_frame.instance.transfer_syntax not in SYNTAXES
                for slice_frame in best.slice_frames
            ),
            "file(s) are lossy or deflated",
        ),
        (
            sum(
                slice_frame.instance.bits_allocated not in (8, 16)
                for slice_frame in best.slice_frames
            ),
            "file(s) have 32 bits a pixel",
        ),
        (
            sum(_padding_is_tissue(slice_frame) for slice_frame in best.slice_frames),
            "file(s) have padding that reads as tissue",
        ),
    ):
        if count:
            message = (
                f"{count} {what}; tensorflow-io is not given such series: read them with"
                " tf_covid.read."
            )
            raise refusal("tfio_unsupported", message, count)
    slice_frames = [slice_group[0] for slice_group in stack.slice_groups]
    first = slice_frames[0].instance
    check_size((first.columns, first.rows, len(slice_frames)), DEFAULT)
    sources = {
        slice_frame.instance.name: DiskFile.of(paths[slice_frame.instance.name])
        for slice_frame in slice_frames
    }
    short = sum(
        not _is_whole(slice_frame.instance, sources[slice_frame.instance.name])
        for slice_frame in slice_frames
    )
    if short:
        message = f"{short} file(s) of the series end early, of {len(slice_frames)}."
        raise refusal("truncated_file", message, short)
    grid, _ = orient(stack.affine_ras, (first.columns, first.rows, len(slice_frames)))
    series = DicomSeriesFiles(
        files=tuple(str(paths[slice_frame.instance.name]) for slice_frame in slice_frames),
        heads=tuple(_head(slice_frame.instance) for slice_frame in slice_frames),
        sizes=tuple(sources[slice_frame.instance.name].size for slice_frame in slice_frames),
        offsets=tuple(slice_frame.instance.pixel_offset for slice_frame in slice_frames),
        lows=tuple(
            -(2.0 ** (p.instance.bits_stored - 1)) if p.instance.signed else 0.0
            for p in slice_frames
        ),
        slopes=tuple(slice_frame.frame.slope for slice_frame in slice_frames),
        intercepts=tuple(slice_frame.frame.intercept for slice_frame in slice_frames),
        matrix=(first.rows, first.columns),
        axes=grid.axes,
        flipped=grid.flipped,
    )
    _check_first(series, slice_frames, sources)
    return series


def _instances(path: SeriesPath) -> tuple[tuple[Instance, ...], dict[str, Path]]:
    """The DICOM headers of one patient and study, and where each file lies."""
    if isinstance(path, (str, os.PathLike)):
        cases = find_cases(path)
        errors = [flag for case in cases for flag in case.quality_flags if flag.level == "error"]
        if errors:
            raise ScanRefused(errors)
        if len(cases) > 1:
            raise refusal(
                "several_cases",
                f"The input holds {len(cases)} cases; give the folder of one.",
                len(cases),
            )
        (case,) = cases
        if not case.instances or (case.members and not case.path.is_dir()):
            message = (
                "tensorflow-io reads DICOM files in a folder; read volume files and archives with"
                " tf_covid.read."
            )
            raise refusal("tfio_unsupported", message)
        folder = case.path if case.path.is_dir() else case.path.parent
        return case.instances, {one.name: folder / one.name for one in case.instances}
    results: dict[str, Path] = {}
    instances = []
    for index, file in enumerate(map(Path, path)):
        source = DiskFile(
            file, f"{index}/{file.name}", file.stat().st_size
        )  # names of two folders may be the same
        instance = read_header(source)
        if instance is None:
            raise refusal(
                "no_scan", f"File {index + 1} of the series is no DICOM image.", index + 1
            )
        instances.append(instance)
        results[instance.name] = file
    if not instances:
        raise refusal("no_scan", "The list of files is empty.", 0)
    return tuple(instances), results


def _padding_is_tissue(slice_frame: SliceFrame) -> bool:
    if slice_frame.instance.padding is None:
        return False
    return (
        slice_frame.instance.padding[0] * slice_frame.frame.slope + slice_frame.frame.intercept
        >= _PADDING_AS_AIR_HU
    )


def _is_whole(instance: Instance, source: DiskFile) -> bool:
    """Whether the pixel data lie in the file to their end: DCMTK would fill up what is missing."""
    order = ">" if instance.transfer_syntax == BIG_ENDIAN else "<"
    with source.open() as stream:
        stream.seek(instance.pixel_offset)
        head = stream.read(8 if instance.transfer_syntax == IMPLICIT else 12)
        if len(head) < 8 or struct.unpack(order + "HH", head[:4]) != (0x7FE0, 0x0010):
            return False
        if instance.transfer_syntax in _NATIVE:
            needed = (
                instance.rows * instance.columns * instance.samples * instance.bits_allocated // 8
            )
            return source.size - stream.tell() >= needed
        while len(item := stream.read(8)) == 8:
            tag, length = struct.unpack("<4sI", item)
            if tag == b"\xfe\xff\xdd\xe0":
                return True
            if tag != b"\xfe\xff\x00\xe0" or length == _UNDEFINED:
                return False
            stream.seek(length, os.SEEK_CUR)
    return False


def _head(instance: Instance) -> bytes:
    """A DICOM header up to the pixel data, in the file's own transfer syntax.

    How the bits lie, and nothing else.
    """
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "2.25.1"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = instance.rows, instance.columns
    dataset.BitsAllocated, dataset.BitsStored = instance.bits_allocated, instance.bits_stored
    dataset.HighBit, dataset.PixelRepresentation = instance.high_bit, int(instance.signed)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = instance.transfer_syntax
    dataset.file_meta.MediaStorageSOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _check_first(
    series: DicomSeriesFiles, slice_frames: Sequence[SliceFrame], sources: dict[str, DiskFile]
) -> None:
    """Compare the first slice of each way of storing with our reader's."""
    seen = set()
    table = _Table([series])
    for index, slice_frame in enumerate(slice_frames):
        one = slice_frame.instance
        form = (one.transfer_syntax, one.bits_allocated, one.bits_stored, one.high_bit, one.signed)
        if form in seen:
            continue
        seen.add(form)
        ours = hu_of(slice_frame, next(raw_frames(one, sources[one.name])))
        try:
            theirs = table.slice_hu(tf.constant(index, tf.int64)).numpy()
        except (tf.errors.InvalidArgumentError, tf.errors.UnimplementedError, NotImplementedError):
            message = (
                "tensorflow-io cannot decode the first slice of the series; read it with"
                " tf_covid.read."
            )
            raise refusal("undecodable", message, one.transfer_syntax) from None
        apart = np.abs(ours.astype(np.int32) - theirs)
        if apart.any():
            message = (
                f"tensorflow-io reads slice {index + 1} otherwise than our reader:"
                f" {np.count_nonzero(apart)} of {apart.size} pixels differ, by up to {apart.max()}"
                " HU; read the series with tf_covid.read."
            )
            raise refusal("tfio_differs", message, int(apart.max()))


class _Table:
    """The slices of many series as tensors, and the graph that decodes one of them.

    Args:
        all_series: Series in order; slices are numbered through.
    """

    def __init__(self, all_series: Sequence[DicomSeriesFiles]) -> None:
        def flat(name: str, dtype: tf.DType) -> tf.Tensor:
            return tf.constant(
                [value for series in all_series for value in getattr(series, name)], dtype
            )

        self.files, self.heads = flat("files", tf.string), flat("heads", tf.string)
        self.sizes, self.offsets = flat("sizes", tf.int64), flat("offsets", tf.int64)
        self.lows, self.slopes = flat("lows", tf.float64), flat("slopes", tf.float64)
        self.intercepts = flat("intercepts", tf.float64)
        matrices = [series.matrix for series in all_series for _ in series.files]
        self.matrices = tf.constant(matrices, tf.int32, (len(matrices), 2))
        self.decode = _decoder()

    def slice_hu(self, index: tf.Tensor) -> tf.Tensor:
        """(rows, columns) int16 HU of a slice; `number` is a scalar int64."""
        data = tf.io.read_file(self.files[index])
        size = tf.strings.length(data)
        offset = tf.cast(self.offsets[index], tf.int32)
        changed = tf.debugging.assert_equal(
            tf.cast(size, tf.int64), self.sizes[index], "the file changed"
        )
        with tf.control_dependencies([changed]):
            data = tf.strings.join(
                [self.heads[index], tf.strings.substr(data, offset, size - offset)]
            )
        shown = self.decode(
            data, color_dim=True, on_error="strict", scale="preserve", dtype=tf.uint32
        )
        matrix = self.matrices[index]
        shape = tf.concat([[1], matrix, [1]], 0)
        with tf.control_dependencies(
            [tf.debugging.assert_equal(tf.shape(shown), shape, "another shape")]
        ):
            # Doubles hold all products of whole numbers that can occur, and round the others as our
            # reader does.
            stored = tf.cast(tf.reshape(shown, matrix), tf.float64) + self.lows[index]
        hu = tf.math.rint(stored * self.slopes[index] + self.intercepts[index])
        return tf.cast(tf.clip_by_value(hu, _INT16.min, _INT16.max), tf.int16)


def _dataset(all_series: Sequence[DicomSeriesFiles], parallel_slices: int) -> tf.data.Dataset:
    """The dataset of these series; slices of one are decoded in parallel."""
    if not all_series:
        return tf.data.Dataset.from_tensor_slices(np.empty((0, 1, 1, 1), np.int16))
    table = _Table(all_series)
    counts = [len(series.files) for series in all_series]
    starts = tf.constant(np.cumsum([0, *counts]), tf.int64)
    # From the stored (columns, rows, slices) back to (D, H, W): the inverse of
    # `SourceGrid.from_canonical`.
    orders = tf.constant(np.array([np.argsort(series.axes) for series in all_series]), tf.int32)
    flips = tf.constant([series.flipped for series in all_series], tf.bool)

    def canonical(stack: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        stored = tf.transpose(stack, [2, 1, 0])
        return tf.transpose(tf.raw_ops.Reverse(tensor=stored, dims=flips[index]), orders[index])

    def volume(index: tf.Tensor) -> tf.data.Dataset:
        slices = tf.data.Dataset.range(starts[index], starts[index + 1])
        slices = slices.map(table.slice_hu, num_parallel_calls=parallel_slices, deterministic=True)
        return slices.batch(starts[index + 1] - starts[index]).map(
            lambda stack: canonical(stack, index)
        )

    volumes = tf.data.Dataset.range(len(all_series)).flat_map(volume)
    return volumes.apply(tf.data.experimental.assert_cardinality(len(all_series)))
