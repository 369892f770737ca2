"""The instances of one study → HU in canonical order: choose, order, decode in threads, repair."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import numpy as np

from tf_covid.errors import ScanRefused
from tf_covid.result import QualityFlag
from tf_covid.scan.checks import geometry_flags, refusal
from tf_covid.scan.dicom.content import lung_ml
from tf_covid.scan.dicom.header import Frame, Instance, read_attributes
from tf_covid.scan.dicom.notes import Notes
from tf_covid.scan.dicom.pixeldata import Truncated, Undecodable, raw_frames, undecodable_text
from tf_covid.scan.dicom.pixels import decode, stored_values, to_hu
from tf_covid.scan.dicom.series import Candidate, choose
from tf_covid.scan.dicom.stack import SliceFrame, Stack, usual_thickness
from tf_covid.scan.grid import allocate, check_size, orient
from tf_covid.scan.limits import DEFAULT, Limits
from tf_covid.scan.scan import SourceImage, SourceSeries
from tf_covid.scan.source import ScanFile, workers
from tf_covid.scan.volume import AIR_HU, LoadedVolume

#: Padding that lies above this is not air: outside the field of view it is made air.
_PADDING_AS_AIR_HU = -900
#: Share of the positions that may hold slices with different pixels.
_MOST_AMBIGUOUS = 0.1
#: Larger frames are not looked at when a series is chosen.
_MOST_PIXELS_LOOKED_AT = 2048**2


@dataclass(frozen=True)
class _Duplicates:
    """Positions that hold more than one slice: with the same pixels, and with different ones."""

    identical: int
    different: int


def read_study(
    instances: Sequence[Instance], sources: Mapping[str, ScanFile], limits: Limits = DEFAULT
) -> LoadedVolume:
    """Read the best stack of one study.

    Args:
        instances: The images of one patient and study.
        sources: By `Instance.name`.
        limits: Bounds.

    Raises:
        ScanRefused: With a coded quality flag for everything that forbids an honest answer.
    """
    best, because, quality_flags = choose(instances, limits.gap_mm, _looking(sources))
    stack = best.built()
    first = best.slice_frames[0].instance
    stored_shape = (first.columns, first.rows, len(stack.slice_groups))
    check_size(stored_shape, limits)
    source, affine = orient(stack.affine_ras, stored_shape)
    quality_flags += geometry_flags(np.linalg.norm(affine[:3, :3], axis=0))
    if any(flag.level == "error" for flag in quality_flags):
        raise ScanRefused(quality_flags)
    hu, view = allocate(source, np.int16)
    notes = Notes()
    duplicates = _fill(view, stack, sources, notes)
    missing = stack.missing
    _interpolate(view, missing)
    axis = source.axes[2]
    last = len(stack.slice_groups) - 1
    interpolated = tuple(sorted(last - index if source.flipped[2] else index for index in missing))
    results = (
        quality_flags
        + _duplicate_flags(duplicates, len(stack.slice_groups))
        + notes.quality_flags()
    )
    if any(flag.level == "error" for flag in results):
        raise ScanRefused(results)
    if axis != 0:
        message = (
            "The slices were not acquired in axial planes; they were reordered, not resampled."
        )
        results += (QualityFlag("not_axial", "info", message),)
    return LoadedVolume(
        hu,
        affine,
        source,
        results,
        interpolated,
        because,
        _identifiers(best),
        _instance_numbers(stack, reverse=source.flipped[2]) if axis == 0 else (),
        usual_thickness(best.slice_frames) or None,
        tuple(
            _source_image(group[0].instance, group[0].frame) if group else None
            for group in stack.slice_groups
        ),
        _source_series(stack, sources, usual_thickness(best.slice_frames) or None),
    )


def _source_image(instance: Instance, frame: Frame) -> SourceImage:
    return SourceImage(
        instance.sop_class,
        instance.sop_uid,
        frame.index + 1 if instance.declared_frames > 1 else None,
        instance.series_uid,
        frame.position,
    )


def _source_series(
    stack: Stack, sources: Mapping[str, ScanFile], slice_thickness_mm: float | None
) -> SourceSeries:
    kept = [group[0] for group in stack.slice_groups if group]
    first = kept[0]
    # An object made from a multi-frame image has to name every frame of it, read or not.
    whole = len({one.instance.name for one in kept}) == 1 < first.instance.declared_frames
    images = (
        [_source_image(first.instance, frame) for frame in first.instance.frames]
        if whole
        else [_source_image(one.instance, one.frame) for one in kept]
    )
    return SourceSeries(
        read_attributes(sources[first.instance.name]),
        tuple(images),
        first.frame.orientation,
        first.frame.spacing,
        slice_thickness_mm,
        first.instance.rows,
        first.instance.columns,
    )


def _instance_numbers(stack: Stack, *, reverse: bool) -> tuple[int | None, ...]:
    """InstanceNumber of each slice; none at all where they do not tell the slices apart.

    The frames of a multi-frame instance share one.
    """
    numbers = [group[0].instance.number if group else 0 for group in stack.slice_groups]
    stated = [number for number in numbers if number > 0]
    if not stated or len(set(stated)) < len(stated):
        return ()
    ordered = reversed(numbers) if reverse else numbers
    return tuple(number if number > 0 else None for number in ordered)


def _looking(sources: Mapping[str, ScanFile]) -> Callable[[Candidate], float | None]:
    """How much lung a candidate shows, in ml; None where its slices cannot be looked at."""

    def one_frame(slice_frame: SliceFrame) -> np.ndarray | None:
        one = slice_frame.instance
        if one.rows * one.columns > _MOST_PIXELS_LOOKED_AT:
            return None
        try:
            frames = raw_frames(one, sources[one.name])
            data = next(islice(frames, slice_frame.frame.index, None), None)
            return None if data is None else hu_of(slice_frame, data)
        except (Truncated, Undecodable, ScanRefused):
            return None

    return lambda candidate: lung_ml(candidate.slice_frames, one_frame)


def _fill(
    view: np.ndarray, stack: Stack, sources: Mapping[str, ScanFile], notes: Notes
) -> _Duplicates:
    """Decode every frame into `view` (columns, rows, slices), the first of each position last.

    Raises:
        ScanRefused: If a frame cannot be decoded, or if a slice was not filled exactly once.
    """
    slot_of = {
        _key(slice_frame): slice_index
        for slice_index, slice_group in enumerate(stack.slice_groups)
        for slice_frame in slice_group[:1]
    }
    required = {
        _key(slice_frame): slice_frame
        for slice_group in stack.slice_groups
        for slice_frame in slice_group[:1]
    }
    total = len(stack.slice_groups) - len(stack.missing)
    if len(required) != total or len({name for name, _ in required} - sources.keys()):
        raise _unfilled(total - len(required), total)
    filled = np.zeros(len(stack.slice_groups), dtype=np.uint8)

    def put(slice_frame: SliceFrame, data: bytes) -> None:
        slice_index = slot_of[_key(slice_frame)]
        view[:, :, slice_index] = hu_of(slice_frame, data, notes).T
        filled[slice_index] += 1

    try:
        for _ in _each(required.values(), sources, put, notes):
            pass
    except _Torn as torn:
        # How many others are torn nobody looks: the first one ends the work.
        number = torn.instance.number if torn.instance.number > 0 else None
        which = "" if number is None else f" (InstanceNumber {number})"
        message = (
            f"A file of the series{which} ends early or is damaged; the series has {total} slices."
        )
        raise refusal("truncated_file", message, number) from None
    except Undecodable as error:
        text = undecodable_text(error)
        message = (
            f"No decoder reads the pixel data (transfer syntax {text}): the stream is damaged, of"
            " another size than Rows (0028,0010) and Columns (0028,0011) say, or of a codec that"
            " is not supported."
        )
        raise refusal("undecodable", message, text) from None
    expected = np.array([bool(slice_group) for slice_group in stack.slice_groups], dtype=np.uint8)
    if not np.array_equal(filled, expected):
        raise _unfilled(int((filled != expected).sum()), total)
    doubled = {
        _key(slice_frame): (slice_index, slice_frame)
        for slice_index, slice_group in enumerate(stack.slice_groups)
        for slice_frame in slice_group[1:]
    }
    equal: dict[tuple[str, int], bool] = {}

    def compare(slice_frame: SliceFrame, data: bytes) -> None:
        equal[_key(slice_frame)] = bool(
            np.array_equal(hu_of(slice_frame, data).T, view[:, :, doubled[_key(slice_frame)][0]])
        )

    try:
        for _ in _each(
            [slice_frame for _, slice_frame in doubled.values()], sources, compare, notes
        ):
            pass
    except (_Torn, Undecodable, ScanRefused):
        pass
    same = {slice_index for key, (slice_index, _) in doubled.items() if equal.get(key)}
    different = {slice_index for key, (slice_index, _) in doubled.items() if not equal.get(key)}
    return _Duplicates(len(same - different), len(different))


def _key(slice_frame: SliceFrame) -> tuple[str, int]:
    return slice_frame.instance.name, slice_frame.frame.index


def _unfilled(count: int, total: int) -> ScanRefused:
    message = (
        f"{count} of {total} slices were not filled exactly once: several files of the input have"
        " one name."
    )
    return refusal("unfilled_slices", message, count)


def _each(
    slice_frames: Iterable[SliceFrame],
    sources: Mapping[str, ScanFile],
    work: Callable[[SliceFrame, bytes], None],
    notes: Notes,
) -> Iterator[None]:
    """Run `work` on every frame in a pool, with a bounded number of frames in flight.

    Raises:
        _Torn: If a file ends early; the first one ends the work.
        Undecodable: If a frame is; likewise.
        ScanRefused: Likewise.
    """
    files: dict[str, dict[int, SliceFrame]] = {}
    for slice_frame in slice_frames:
        files.setdefault(slice_frame.instance.name, {})[slice_frame.frame.index] = slice_frame

    def whole_file(required: dict[int, SliceFrame]) -> None:
        instance = next(iter(required.values())).instance
        with _torn(instance):
            for data in raw_frames(instance, sources[instance.name], notes):
                work(required[0], data)

    def one_frame(slice_frame: SliceFrame, data: bytes) -> None:
        with _torn(slice_frame.instance):
            work(slice_frame, data)

    pool = ThreadPoolExecutor(workers())
    waiting: deque[Future[None]] = deque()
    try:
        for name, required in files.items():
            instance = next(iter(required.values())).instance
            if len(instance.frames) == 1:
                waiting.append(pool.submit(whole_file, required))
            else:
                with _torn(instance):
                    for index, data in enumerate(raw_frames(instance, sources[name], notes)):
                        if index in required:
                            waiting.append(pool.submit(one_frame, required[index], data))
                        while len(waiting) > 4 * workers():
                            yield waiting.popleft().result()
            while len(waiting) > 4 * workers():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)  # the first broken frame ends the work


class _Torn(Exception):
    """A file ends early.

    Args:
        instance: What its header says.
    """

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance.name)
        self.instance = instance


@contextmanager
def _torn(instance: Instance) -> Iterator[None]:
    """Say of which instance a file ends early.

    Raises:
        _Torn: If it does.
    """
    try:
        yield
    except Truncated:
        raise _Torn(instance) from None


def hu_of(slice_frame: SliceFrame, data: bytes, notes: Notes | None = None) -> np.ndarray:
    """(rows, columns) int16 HU of one frame; `notes` takes what is noticed."""
    pixels, precision = decode(data, slice_frame.instance, notes)
    stored = stored_values(pixels, precision, slice_frame.instance)
    hu = to_hu(stored, slice_frame.frame)
    return _padding_to_air(hu, stored, slice_frame.instance, slice_frame.frame)


def _padding_to_air(
    hu: np.ndarray, stored: np.ndarray, instance: Instance, frame: Frame
) -> np.ndarray:
    """Padding that would read as tissue becomes air, outside the field of view only.

    Padding far below air stays as it is: the window layer clips it, and other formats of the same
    scan hold it too. PixelPaddingValue is set by mistake in many files, so only padding connected
    to the border counts.
    """
    if instance.padding is None:
        return hu
    low, high = instance.padding
    if low * frame.slope + frame.intercept < _PADDING_AS_AIR_HU:
        return hu
    padded = (stored >= low) & (stored <= high)
    corners = padded[:: max(1, padded.shape[0] - 1), :: max(1, padded.shape[1] - 1)]
    if not corners.all():
        return hu
    from scipy import ndimage  # only where it is needed: its import takes 0.2 s

    labels, _ = ndimage.label(padded)
    border = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    return np.where(np.isin(labels, border[border > 0]), np.int16(AIR_HU), hu)


def _interpolate(view: np.ndarray, missing: tuple[int, ...]) -> None:
    """Fill missing slices linearly from their neighbours.

    The first and the last slice are never missing.
    """
    gone = set(missing)
    for index in missing:
        before, after = index, index
        while before in gone:
            before -= 1
        while after in gone:
            after += 1
        weight = (index - before) / (after - before)
        mixed = (1 - weight) * view[:, :, before] + weight * view[:, :, after]
        view[:, :, index] = np.rint(mixed)


def _duplicate_flags(duplicates: _Duplicates, total: int) -> tuple[QualityFlag, ...]:
    quality_flags: list[QualityFlag] = []
    if same := duplicates.identical:
        message = (
            f"{same} position(s) hold a slice more than once with the same pixels; one of each was"
            " kept."
        )
        quality_flags.append(QualityFlag("duplicate_slices", "warning", message, same))
    if count := duplicates.different:
        many = count > _MOST_AMBIGUOUS * total
        rule = (
            "which of them belong together cannot be told"
            if many
            else "the one with the usual thickness, acquisition and instance number was kept"
        )
        message = f"{count} of {total} positions hold several slices with different pixels; {rule}."
        quality_flags.append(
            QualityFlag("ambiguous_slices", "error" if many else "warning", message, count)
        )
    return tuple(quality_flags)


def _identifiers(candidate: Candidate) -> dict[str, str]:
    """Who this is; leaves the program only by `--keep-identifiers`."""
    one = candidate.slice_frames[0].instance
    values = {
        "patient_id": one.patient_id,
        "patient_name": one.patient_name,
        "birth_date": one.birth_date,
        "accession_number": one.accession_number,
        "study_uid": one.study_uid,
        "uid": one.series_uid,
    }
    return {key: value for key, value in values.items() if value}
