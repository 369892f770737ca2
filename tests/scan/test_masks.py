"""Masks of one's own.

Which values are one, what must lie under it, and what every other is called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner

from tf_covid.cli import main
from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.scan import (
    Scan,
    SourceGrid,
    array_mask,
    check_lesions,
    check_lungs,
    read_mask,
    user_lungs,
    write_nifti,
)

SHAPE, SPACING_MM = (40, 80, 96), (8.0, 4.0, 4.0)
RIGHT = (slice(6, 34), slice(20, 60), slice(14, 40))
LEFT = (slice(6, 34), slice(20, 60), slice(54, 80))
HEART = (slice(20, 34), slice(30, 50), slice(42, 52))


def chest(lung_hu: int = -850, shape: tuple[int, int, int] = SHAPE) -> Scan:
    """Air around soft tissue with two lungs, an odd number of voxels from all sides."""
    hu = np.full(shape, -1000, np.int16)
    hu[:, 8:72, 4:92] = 40
    hu[RIGHT] = hu[LEFT] = lung_hu
    hu += np.random.default_rng(1).integers(-30, 31, hu.shape).astype(np.int16)
    lps = np.array([[0, 0, 4.0, 0], [0, 4.0, 0, 0], [-8.0, 0, 0, 0], [0, 0, 0, 1]])
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps
    return Scan("made", hu, lps, SourceGrid(shape, ras, (0, 1, 2), (False,) * 3), "0" * 64)


@pytest.fixture(scope="module")
def scan() -> Scan:
    return chest()


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[RIGHT] = mask[LEFT] = True
    return mask


def distance(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return (ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)).astype(
        np.float32
    )


def sides(mask: np.ndarray) -> np.ndarray:
    labels = mask.astype(np.uint8)
    labels[LEFT] = 2
    return labels


def organs(mask: np.ndarray) -> np.ndarray:
    """117 labels, as TotalSegmentator has them: 10 to 14 are the lobes."""
    labels = np.random.default_rng(0).integers(15, 118, mask.shape).astype(np.uint8)
    labels[:2] = 0
    labels[2, 0, :9] = range(1, 10)
    labels[RIGHT], labels[LEFT] = 12, 10
    labels[6:14, 20:60, 14:40], labels[14:20, 20:60, 14:40], labels[6:14, 20:60, 54:80] = 13, 14, 11
    return labels


def smooth(mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    return np.asarray(ndimage.uniform_filter(mask.astype(np.float32), 3))


def codes(call: Callable[[], object]) -> list[str]:
    with pytest.raises(ScanRefused) as caught:
        call()
    return [flag.code for flag in caught.value.quality_flags]


MASKS: dict[str, Callable[[np.ndarray], Any]] = {
    "bool": lambda mask: mask,
    "0 and 1": lambda mask: mask.astype(np.uint8),
    "0 and 255": lambda mask: mask.astype(np.uint8) * 255,
    "int16": lambda mask: mask.astype(np.int16) * 1000,
    "big-endian": lambda mask: mask.astype(">i2"),
    "int64": lambda mask: mask.astype(np.int64),
    "0.0 and 1.0": lambda mask: mask.astype(np.float32),
    "0.0 and 0.7": lambda mask: mask * 0.7,
    "half": lambda mask: mask.astype(np.float16),
    "-0.0": lambda mask: np.where(mask, 1.0, -0.0),
    "NaN outside": lambda mask: np.where(mask, 1.0, np.nan),
    "right 1, left 2": sides,
    "right and left as floats": lambda mask: sides(mask).astype(np.float64),
    "Fortran order": lambda mask: np.asfortranarray(mask),
}


@pytest.mark.parametrize("name", MASKS)
def test_what_is_a_mask_is_read_as_one(scan, lungs, tmp_path: Path, name: str) -> None:
    given = MASKS[name](lungs)
    found, flags = user_lungs(given, scan)
    np.testing.assert_array_equal(found, lungs)
    assert found.dtype == np.bool_
    assert flags == ()
    if given.dtype.kind != "b" and given.dtype != np.float16:
        write_nifti_volume(given, scan.affine, tmp_path / "m.nii.gz")
        for path in (tmp_path / "m.nii.gz", str(tmp_path / "m.nii.gz")):
            np.testing.assert_array_equal(user_lungs(path, scan)[0], lungs)


def test_lists_are_arrays(scan, lungs) -> None:
    np.testing.assert_array_equal(user_lungs(lungs.astype(int).tolist(), scan)[0], lungs)


NO_MASKS: dict[str, tuple[Callable[[np.ndarray], Any], str, str]] = {
    "117 organs": (organs, "mask_values", "117 values|118 values"),
    "softmax": (lambda mask: 0.98 * mask + 0.01, "mask_values", "0.01, 0.99"),
    "smoothed": (smooth, "mask_values", "threshold"),
    "distance": (distance, "mask_values", "is not a mask"),
    "noise": (
        lambda mask: np.random.default_rng(0).random(mask.shape),
        "mask_values",
        "more than 1000 values",
    ),
    "lobes": (lambda mask: sides(mask) * 3, "mask_values", "0, 3, 6.*--lungs-labels"),
    "0, 1 and 255": (
        lambda mask: np.where(sides(mask) == 2, 255, mask),
        "mask_values",
        "0, 1, 255",
    ),
    "1 and 2": (lambda mask: mask + np.uint8(1), "mask_values", "1, 2"),
    "-1 and 1": (lambda mask: np.where(mask, 1, -1), "mask_values", "-1, 1"),
    "0 and -1": (lambda mask: -mask.astype(int), "mask_values", "-1, 0"),
    "HU": (lambda mask: chest().hu, "mask_values", "values"),
    "1 everywhere": (np.ones_like, "mask_values", "everywhere"),
    "255 everywhere": (lambda mask: np.full(mask.shape, 255), "mask_values", "everywhere"),
    "NaN everywhere": (lambda mask: np.full(mask.shape, np.nan), "mask_values", "NaN"),
    "0, 1 and NaN": (
        lambda mask: np.where(chest().hu < -950, np.nan, mask),
        "mask_values",
        "0, 1, NaN",
    ),
    "infinity": (lambda mask: np.where(mask, np.inf, 0), "mask_values", "inf"),
    "minus infinity": (lambda mask: np.where(mask, 1, -np.inf), "mask_values", "inf"),
    "0 everywhere": (np.zeros_like, "mask_empty", "empty"),
    "inverted": (lambda mask: ~mask, "lung_volume", r"\d l;"),
    "the body": (lambda mask: chest().hu > -500, "lung_volume", r"\d l;"),
    "the heart": (lambda mask: at(HEART), "mask_not_lung", "not lung"),
    "one voxel": (lambda mask: at((slice(20, 21),) * 3), "lung_volume", "0 ml"),
    "air": (
        lambda mask: at((slice(0, 40), slice(0, 7), slice(0, 90))),
        "mask_outside",
        "around the body",
    ),
    "cut to the image": (lambda mask: mask[1:], "mask_grid", "39×80×96.*40×80×96"),
    "another order of axes": (lambda mask: mask.transpose(2, 1, 0), "mask_grid", "another order"),
    "one slice": (lambda mask: mask[20], "mask_grid", "80×96"),
    "a channel": (lambda mask: mask[..., None], "mask_grid", "40×80×96×1"),
}


def at(where: tuple[slice, ...]) -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[where] = True
    return mask


@pytest.mark.parametrize("name", NO_MASKS)
def test_what_is_none_is_refused_with_what_was_found(
    scan, lungs, tmp_path: Path, name: str
) -> None:
    make, code, text = NO_MASKS[name]
    given = np.asarray(make(lungs))
    with pytest.raises(ScanRefused, match=text) as caught:
        user_lungs(given, scan)
    assert [flag.code for flag in caught.value.quality_flags] == [code]
    if given.ndim == 3 and given.dtype.kind != "b" and given.shape == SHAPE:
        stored = given.astype(np.float64) if given.dtype.kind == "f" else given
        write_nifti_volume(stored, scan.affine, tmp_path / "m.nii")
        assert codes(lambda: user_lungs(tmp_path / "m.nii", scan)) == [code]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (3, "int"),
        ({"mask": 1}, "dict"),
        (b"mask", "bytes"),
        (chest(), "Scan"),
        ([[[1, 0]], [[1]]], "ragged"),
        (np.full(SHAPE, "1"), "str"),
        (np.full(SHAPE, None), "object"),
        (np.ones(SHAPE, complex), "complex"),
        (np.ma.masked_equal(np.ones(SHAPE), 0), "masked"),
        (np.zeros(SHAPE, "M8[s]"), "datetime64"),
    ],
)
def test_what_is_no_array_is_named(scan, given: Any, kind: str) -> None:
    with pytest.raises(ScanRefused, match=f"mask_type: .*{kind}"):
        user_lungs(given, scan)


def test_labels_say_what_is_lung(scan, lungs, tmp_path: Path) -> None:
    lobes = [10, 11, 12, 13, 14]
    write_nifti_volume(organs(lungs), scan.affine, tmp_path / "m.nii.gz")
    for given in (organs(lungs), organs(lungs).astype(np.float32), tmp_path / "m.nii.gz"):
        np.testing.assert_array_equal(user_lungs(given, scan, lobes)[0], lungs)
    np.testing.assert_array_equal(
        read_mask(tmp_path / "m.nii.gz", scan, labels=lobes[:1])[LEFT][8:], True
    )
    np.testing.assert_array_equal(user_lungs(lungs.astype(int) * 7, scan, np.array([7]))[0], lungs)
    assert user_lungs(sides(lungs), scan, [2])[0].sum() == lungs[LEFT].sum()


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ([119], "mask_labels"),
        ([0], "mask_labels"),
        ([-10], "mask_labels"),
        ([10.5], "mask_labels"),
        (["10"], "mask_labels"),
        ([True], "mask_labels"),
        ([None], "mask_labels"),
        ([float("inf")], "mask_labels"),
    ],
)
def test_labels_that_cannot_be(scan, lungs, labels: list[Any], code: str) -> None:
    assert codes(lambda: user_lungs(organs(lungs), scan, labels)) == [code]


def test_a_label_that_is_missing_is_pointed_out(scan, lungs) -> None:
    """A lobe may have been removed, or lie above the scan."""
    found, (flag,) = user_lungs(organs(lungs), scan, [10, 11, 12, 13, 14, 119])
    np.testing.assert_array_equal(found, lungs)
    assert (flag.code, flag.level, flag.value) == ("mask_labels", "warning", "119")


def test_labels_of_what_holds_none(scan, lungs) -> None:
    assert codes(lambda: user_lungs(smooth(lungs), scan, [1])) == ["mask_values"]
    assert codes(lambda: user_lungs(np.where(lungs, 1, np.nan), scan, [1])) == ["mask_values"]
    assert codes(lambda: user_lungs(np.zeros(SHAPE, int), scan, [1])) == ["mask_labels"]


def test_a_slope_of_the_file_counts(scan, lungs, tmp_path: Path) -> None:
    """A distance map that is stored in whole numbers is none of them."""
    image = nib.Nifti1Image(sides(lungs).transpose(2, 1, 0), np.eye(4))
    image.header.set_slope_inter(0.5, 1.0)
    write_nifti_volume(sides(lungs), scan.affine, tmp_path / "m.nii")
    raw = bytearray((tmp_path / "m.nii").read_bytes())
    raw[112:120] = np.array([0.5, 1.0], "<f4").tobytes()
    (tmp_path / "m.nii").write_bytes(raw)
    with pytest.raises(ScanRefused, match=r"mask_values: The mask holds 1, 1\.5, 2,"):
        read_mask(tmp_path / "m.nii", scan)


def test_our_own_lungs_are_a_mask(scan, lungs, tmp_path: Path) -> None:
    write_nifti(sides(lungs), scan, tmp_path / "lungs.nii.gz")
    np.testing.assert_array_equal(user_lungs(tmp_path / "lungs.nii.gz", scan)[0], lungs)


@pytest.mark.parametrize("hu", [-850, -600, -320])
def test_diseased_lungs_are_lungs(lungs, hu: int) -> None:
    assert not any(flag.level == "error" for flag in check_lungs(lungs, chest(hu)))


def test_white_lungs_with_some_air_are_pointed_out_not_refused(lungs) -> None:
    scan = chest(20)
    scan.hu[6:9, 24:60, 14:40] = -800
    (flag,) = check_lungs(lungs, scan)
    assert (flag.code, flag.level) == ("mask_doubtful", "warning")


def test_an_inverted_mask_of_a_scan_cut_to_the_chest(lungs) -> None:
    """Too small to be told by its volume.

    No air around the body, one centimetre of it around the lungs.
    """
    scan = chest()
    inner = (slice(6, 34), slice(16, 64), slice(12, 84))
    cut = Scan("cut", scan.hu[inner].copy(), scan.affine, scan.source, "")
    assert codes(lambda: user_lungs(~lungs[inner], cut)) == ["mask_inverted"]
    assert check_lungs(lungs[inner], cut) == ()


def test_lungs_at_the_border_of_the_image_are_not_outside() -> None:
    scan = chest()
    inner = (slice(6, 34), slice(22, 58), slice(16, 78))
    cut = Scan("cut", scan.hu[inner].copy(), scan.affine, scan.source, "")
    assert check_lungs(cut.hu < -500, cut) == ()


@pytest.mark.parametrize(
    ("change", "doubtful"),
    [
        (lambda mask: mask, False),
        (lambda mask: mask[::-1], True),
        (lambda mask: mask.transpose(0, 2, 1), True),
        (lambda mask: mask[:, ::-1], True),
    ],
    ids=["right", "feet first", "transposed", "front to back"],
)
def test_a_flipped_mask_is_pointed_out(
    change: Callable[[np.ndarray], np.ndarray], doubtful: bool
) -> None:
    from tf_covid.phantom import draw_chest

    made = draw_chest(1006, (40, 96, 96), severity=1)
    source = SourceGrid(made.hu.shape, made.affine, (0, 1, 2), (False,) * 3)
    flags = check_lungs(change(made.lungs > 0), Scan("made", made.hu, made.affine, source, ""))
    assert [flag.code for flag in flags] == ["mask_doubtful"] * doubtful


def test_a_mask_that_is_partly_outside_is_pointed_out(scan, lungs) -> None:
    moved = np.roll(lungs, -18, axis=2)
    (flag,) = check_lungs(moved, scan)
    assert (flag.code, flag.level) == ("mask_doubtful", "warning")


def test_lesion_masks(scan, lungs, tmp_path: Path) -> None:
    ill = at((slice(10, 20), slice(24, 40), slice(16, 30)))
    write_nifti_volume(ill.astype(np.uint8), scan.affine, tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.nii.gz", scan, may_be_empty=True), ill)
    assert not array_mask(np.zeros(SHAPE), scan, may_be_empty=True).any()
    check_lesions(ill, scan, lungs)
    check_lesions(ill & False, scan, lungs)
    assert codes(lambda: check_lesions(~ill, scan)) == ["lung_volume"]
    assert codes(lambda: check_lesions(scan.hu < -950, scan)) == ["mask_outside"]
    assert codes(lambda: check_lesions(at(HEART), scan, lungs)) == ["lesions_outside"]
    for labels in (sides(ill), np.where(ill, 1.0, np.where(lungs, 0.0, np.nan)), 0.5 * ill + 0.1):
        assert codes(lambda labels=labels: array_mask(labels, scan, may_be_empty=True)) == [
            "mask_values"
        ]


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1_0", "10,,11", "10;11", "a", "1.5", "\uff11\uff10", "10,0", "1e1"]
)
def test_labels_on_the_command_line_are_digits_between_commas(text: str, tmp_path: Path) -> None:
    mask = tmp_path / "m.nii"
    mask.touch()
    words = [
        "infer",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--lungs",
        str(mask),
        "--lungs-labels",
        text,
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "not a list of whole numbers" in result.output


def test_labels_need_a_mask(scan, tmp_path: Path) -> None:
    write_nifti_volume(scan.hu, scan.affine, tmp_path / "a.nii")
    words = [
        "infer",
        str(tmp_path / "a.nii"),
        "--out",
        str(tmp_path / "out"),
        "--lungs-labels",
        "10, 11",
    ]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "--lungs-labels are labels of the mask" in result.output
