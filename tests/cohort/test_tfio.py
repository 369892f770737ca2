"""tensorflow-io in the graph against our reader, bit for bit; and what it must not be given."""

from __future__ import annotations

import importlib.util
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest

import tf_covid
from tf_covid.errors import ScanRefused, TfCovidError
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import ORIENTATIONS, Pixels, write_dicom

HERE = importlib.util.find_spec("tensorflow_io") is not None
needs_tfio = pytest.mark.skipif(
    not HERE,
    reason="needs tensorflow-io: pip install -e '.[test,tfio]', in an environment of its own",
)

_JPEG = "1.2.840.10008.1.2.4."
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "big endian": "1.2.840.10008.1.2.2",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg lossless": _JPEG + "57",
    "jpeg lossless, first order": _JPEG + "70",
    "jpeg-ls": _JPEG + "80",
    "jpeg 2000": _JPEG + "90",
}
PIXELS = {
    "signed": Pixels(),
    "signed 12 bits": Pixels(bits=12, intercept=0),
    "unsigned": Pixels(bits=12, signed=False),
    "unsigned 16 bits": Pixels(signed=False),
    "rescaled": Pixels(slope=2.0, intercept=-1000),
    "rescaled by a fraction": Pixels(signed=False, slope=0.37, intercept=-1024.5),
    "with padding below air": Pixels(padding=-2000, intercept=0),
}


@pytest.fixture(scope="module")
def chest():
    """A chest of 10 slices, 4 mm apart on paper; its arrays are not to be changed."""
    chest = draw_chest(5, (10, 64, 48), severity=2)
    chest.affine[:3, 0] *= (
        4.0 / chest.spacing_mm[0]
    )  # a gap that our reader repairs is 10 mm wide at most
    return chest


@pytest.fixture
def write(chest, tmp_path):
    """Writer of the chest as a series, from the arguments of `write_dicom`."""
    return lambda name="series", **options: write_dicom(
        chest.hu, chest.affine, tmp_path / name, **options
    )


def edit(folder: Path, change) -> None:
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        change(dataset)
        dataset.save_as(file)


def code_of(folder) -> str:
    from tf_covid.cohort.tfio import dicom_dataset

    with pytest.raises(ScanRefused) as caught:
        dicom_dataset([folder])
    return caught.value.quality_flags[0].code


@needs_tfio
@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_bits_are_those_of_our_reader(write, syntax, pixels):
    from tf_covid.cohort.tfio import read_series_tfio

    folder = write(transfer_syntax=SYNTAXES[syntax], pixels=PIXELS[pixels], shuffle_names=True)
    hu = read_series_tfio(folder)
    ours = tf_covid.read(folder).hu
    assert hu.dtype == ours.dtype == np.int16
    np.testing.assert_array_equal(hu, ours)


@needs_tfio
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_order_is_canonical_whatever_the_file_has(write, chest, orientation):
    from tf_covid.cohort.tfio import read_series_tfio

    folder = write(orientation=orientation, shuffle_names=True)
    np.testing.assert_array_equal(read_series_tfio(folder), chest.hu)


@needs_tfio
def test_what_a_header_says_about_display_does_not_matter(write, chest):
    """A window, an inverted display and an overlay group change DCMTK's pixels of the file
    itself."""
    import tensorflow as tf
    import tensorflow_io as tfio

    from tf_covid.cohort.tfio import read_series_tfio

    def change(dataset: pydicom.Dataset) -> None:
        dataset.WindowCenter, dataset.WindowWidth = "-600", "1500"
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.PresentationLUTShape = "INVERSE"
        dataset.add_new((0x6000, 0x3000), "OW", bytes(64 * 48 // 8))

    folder = write(pixels=Pixels(bits=12, signed=False))
    edit(folder, change)
    np.testing.assert_array_equal(read_series_tfio(folder), chest.hu)
    shown = tfio.image.decode_dicom_image(
        min(folder.iterdir()).read_bytes(), dtype=tf.uint32
    ).numpy()
    assert (
        np.corrcoef(shown.ravel(), chest.hu[-1].ravel())[0, 1] < 0
    )  # the detour is needed: air is bright


@needs_tfio
def test_rescale_of_each_slice_is_its_own(write):
    from tf_covid.cohort.tfio import read_series_tfio

    folder = write()
    steps = iter(range(100))
    edit(folder, lambda dataset: setattr(dataset, "RescaleIntercept", str(-1024 - next(steps))))
    np.testing.assert_array_equal(read_series_tfio(folder), tf_covid.read(folder).hu)


@needs_tfio
def test_a_dataset_has_a_volume_for_each_series_in_order(write, chest):
    from tf_covid.cohort.tfio import dicom_dataset

    first = write("first", transfer_syntax=SYNTAXES["jpeg lossless"], seed=1)
    second = write_dicom(
        chest.hu[:9, :40],
        chest.affine,
        first.parent / "second",
        pixels=Pixels(bits=12, signed=False),
        seed=2,
    )
    files = sorted(first.iterdir())
    random.Random(0).shuffle(files)
    data = dicom_dataset([first, second, files, str(second)], parallel_slices=3)
    assert len(data) == 4
    assert data.element_spec.dtype == np.int16
    volumes = list(data.as_numpy_iterator())
    for volume, expected in zip(
        volumes, (chest.hu, chest.hu[:9, :40], chest.hu, chest.hu[:9, :40]), strict=True
    ):
        np.testing.assert_array_equal(volume, expected)
    assert list(dicom_dataset([]).as_numpy_iterator()) == []


@needs_tfio
def test_no_python_runs_in_the_graph(write):
    import tensorflow as tf

    from tf_covid.cohort.tfio import dicom_dataset

    variant = tf.data.experimental.to_variant(dicom_dataset([write()]))
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=variant).numpy()
    assert b"DecodeDICOMImage" in graph
    assert b"PyFunc" not in graph


@needs_tfio
@pytest.mark.parametrize("syntax", ["explicit", "rle", "jpeg lossless", "jpeg 2000"])
@pytest.mark.parametrize("lost", [20, 1000])
def test_a_file_that_ends_early_is_refused_and_not_filled_up(write, syntax, lost):
    folder = write(transfer_syntax=SYNTAXES[syntax])
    file = sorted(folder.iterdir())[4]
    file.write_bytes(file.read_bytes()[:-lost])
    assert code_of(folder) == "truncated_file"


@needs_tfio
def test_a_file_that_changes_under_the_graph_is_an_error(write):
    import tensorflow as tf

    from tf_covid.cohort.tfio import dicom_dataset

    folder = write()
    data = dicom_dataset([folder])
    file = sorted(folder.iterdir())[4]
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(iter(data))


@needs_tfio
def test_what_only_our_reader_reads_is_refused(write, tmp_path):
    gap = write("gap")
    sorted(gap.iterdir())[4].unlink()
    doubled = write("doubled")
    file = sorted(doubled.iterdir())[4]
    dataset = pydicom.dcmread(file)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(doubled / "more.dcm")
    tissue = write("tissue", pixels=Pixels(padding=1024))
    lossy, htj2k = (
        write("lossy", transfer_syntax=_JPEG + "51"),
        write("htj2k", transfer_syntax=_JPEG + "201"),
    )
    deflated = write("deflated", transfer_syntax="1.2.840.10008.1.2.1.99")
    for folder in (gap, doubled, tissue, lossy, htj2k, deflated):
        assert tf_covid.read(folder).shape == (10, 64, 48), folder
        assert code_of(folder) == "tfio_unsupported", folder
    archive = Path(shutil.make_archive(str(tmp_path / "zip"), "zip", write("whole")))
    assert code_of(archive) == "tfio_unsupported"
    assert code_of(tmp_path / "none") == "not_found"
    write("two/one", seed=1)
    write("two/other", seed=2)
    assert code_of(tmp_path / "two") == "several_cases"


@needs_tfio
def test_a_first_slice_that_differs_is_refused(write, monkeypatch):
    from tf_covid.cohort import tfio

    folder = write()
    monkeypatch.setattr(tfio, "hu_of", lambda place, data: np.zeros((64, 48), np.int16))
    with pytest.raises(
        ScanRefused, match=r"tfio_differs: tensorflow-io reads slice 1 otherwise .* pixels differ"
    ):
        tfio.dicom_dataset([folder])


@needs_tfio
def test_bits_above_the_stored_ones_do_not_matter(write, chest):
    """Old files hold overlays there."""
    from tf_covid.cohort.tfio import read_series_tfio

    def change(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = (
            (np.frombuffer(dataset.PixelData, "<u2") | 0x3000).astype("<u2").tobytes()
        )

    folder = write(pixels=Pixels(bits=12, signed=False))
    edit(folder, change)
    np.testing.assert_array_equal(read_series_tfio(folder), chest.hu)


@needs_tfio
def test_values_that_are_no_hu_are_refused_as_by_our_reader(write):
    from tf_covid.cohort.tfio import read_series_tfio

    folder = write(pixels=Pixels(bits=12, signed=False))
    edit(folder, lambda dataset: setattr(dataset, "RescaleIntercept", "0"))
    with pytest.raises(ScanRefused, match="not_hu"):
        read_series_tfio(folder)


@needs_tfio
@pytest.mark.slow
def test_real_scans_are_read_alike(real_ct):
    from tf_covid.cohort.tfio import read_series_tfio

    read = 0
    for folder in sorted(
        path for path in real_ct.rglob("*") if path.is_dir() and any(path.glob("*.dcm"))
    ):
        try:
            expected = tf_covid.read(folder).hu
            hu = read_series_tfio(folder)
        except ScanRefused:
            continue
        np.testing.assert_array_equal(hu, expected)
        read += 1
    assert read


def test_without_the_extra_the_error_names_it(write, monkeypatch):
    from tf_covid.cohort import tfio

    monkeypatch.setattr(tfio.tf, "__version__", "2.16.2")
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)
    with pytest.raises(TfCovidError, match=r"not installed: pip install -e '.\[tfio\]'"):
        tfio.dicom_dataset([write()])
    monkeypatch.setattr(tfio.tf, "__version__", "2.21.0")
    with pytest.raises(
        tfio.ExtraMissing, match=r"beside TensorFlow 2\.16\.x only, and this is 2\.21\.0"
    ):
        tfio.read_series_tfio(write("other"))
    assert issubclass(tfio.ExtraMissing, TfCovidError)


@needs_tfio
def test_nothing_else_of_the_house_loads_tensorflow_io():
    code = (
        "import sys, tf_covid.cohort, tf_covid.cohort.adapters; sys.exit('tensorflow_io' in"
        " sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
