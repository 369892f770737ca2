"""Headers as hospitals have them: results or a reason why there are none, never an exception.

And never another patient's or study's id: whatever else is wrong, these pass as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from tests.dicom_results.grids import answer, of_highdicom
from tf_covid.dicom_results.options import DicomOptions
from tf_covid.dicom_results.write import NoDicomResults
from tf_covid.scan import read

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")

Change = Callable[[Dataset], object]

_TYPE_2 = (
    "PatientName",
    "PatientID",
    "PatientSex",
    "PatientBirthDate",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "SliceThickness",
    "FrameOfReferenceUID",
    "StudyDescription",
    "SeriesNumber",
    "PositionReferenceIndicator",
)


def gone(*keywords: str) -> Change:
    def change(image: Dataset) -> None:
        for keyword in keywords:
            if keyword in image:
                delattr(image, keyword)

    return change


def put(**values: object) -> Change:
    """Set values as they are, whether DICOM allows them or not."""

    def change(image: Dataset) -> None:
        for keyword, value in values.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            # pydicom computes with decimal strings, and would not write what is none.
            vr = pydicom.datadict.dictionary_VR(tag)
            number = vr in ("DS", "IS") and isinstance(value, str)
            foreign = vr in ("AS", "DA") and not str(value).isascii()
            vr = "LO" if number or foreign else vr
            with pydicom.config.disable_value_validation():
                image[tag] = DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)

    return change


def encoded(charset: object, **texts: str) -> Change:
    def change(image: Dataset) -> None:
        image.SpecificCharacterSet = charset
        put(**texts)(image)

    return change


def tilted(image: Dataset) -> None:
    number = int(image.InstanceNumber)
    image.ImageOrientationPatient = [1, 1e-4 * (number % 3), 0, 0, 1, 0]


def nested(image: Dataset) -> None:
    item = Dataset()
    item.StudyInstanceUID = "1.2.3"
    item.PatientID = "SOMEBODY ELSE"
    image.OtherPatientIDsSequence = Sequence([item])
    image.ReferencedStudySequence = Sequence([item])


#: Headers that results are written from all the same, and what dciodvfy may say of those.
HEADERS: dict[str, Change] = {
    **{f"without {keyword}": gone(keyword) for keyword in _TYPE_2},
    "without all of them": gone(*_TYPE_2),
    "sex U": put(PatientSex="U"),
    "sex in words": put(PatientSex="female"),
    "sex f": put(PatientSex="f"),
    "birth date 00000000": put(PatientBirthDate="00000000"),
    "birth date with points": put(PatientBirthDate="1980.01.02"),
    "29 February of another year": put(PatientBirthDate="19470229"),
    "birth date in words": put(PatientBirthDate="unknown"),
    "study date with hyphens": put(StudyDate="2020-01-01"),
    "study time 25:99": put(StudyTime="25:99"),
    "study time 2561": put(StudyTime="2561"),
    "study time with many digits": put(StudyTime="101112.123456789"),
    "age in words": put(PatientAge="old"),
    "age without a unit": put(PatientAge="73"),
    "size with a comma": put(PatientSize="1,80"),
    "weight not a number": put(PatientWeight="nan"),
    "a weight of 1e300": put(PatientWeight="1e300"),
    "Japanese": encoded(["", "ISO 2022 IR 87"], PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Korean": encoded(["", "ISO 2022 IR 149"], PatientName="Hong^Gildong=洪^吉洞=홍^길동"),
    "Chinese": encoded("GB18030", PatientName="Wang^XiaoDong=王^小东", StudyDescription="胸部"),
    "Cyrillic": encoded("ISO_IR 144", PatientName="Люкceмбypг"),
    "German": encoded("ISO_IR 100", PatientName="Müller^Jörg", PatientID="Ä-17"),
    "no character set": encoded(None, PatientName="Mueller"),
    "an unknown character set": put(SpecificCharacterSet="ISO_IR 999"),
    "a description of 200 letters": put(StudyDescription="x" * 200),
    "line ends in texts": put(PatientName="Doe^\r\nJane", StudyDescription="a\tb\x1b"),
    "an orientation that changes by 1e-4": tilted,
    "items of other studies": nested,
    "another sequence of everything": put(PatientComments="x" * 10_000, ImageComments="y" * 10_000),
    "positions of many digits": lambda image: put(
        ImagePositionPatient=[f"{float(value):.10f}" for value in image.ImagePositionPatient]
    )(image),
    "frame of reference that is no UID": put(FrameOfReferenceUID="none"),
    "an issuer": put(IssuerOfPatientID="St. Mary"),
}

HEADERS |= {
    "a name with a backslash": put(PatientName=["A^B", "C^D"]),
    "two referring physicians": put(ReferringPhysicianName=["Doe^A", "Doe^B"]),
    "an age in other digits": encoded("ISO_IR 192", PatientAge="٠٧٣Y"),
    "a birth date in other digits": encoded("ISO_IR 192", PatientBirthDate="١٩٨٠٠١٠٢"),
    "slices of -5 mm": put(SliceThickness=-5),
    "slices of 1e30 mm": put(SliceThickness="1e30"),
    "slices of nan mm": put(SliceThickness="nan"),
}

#: Headers of which dciodvfy rightly finds fault in the result: they pass unchanged.
FAULTY: dict[str, Change] = {
    "a long accession number": put(AccessionNumber="2021-000000000000123456"),
    "an issuer with a backslash": put(IssuerOfPatientID=["St. Mary", "Ward 3"]),
    "a patient id of 70 letters": put(PatientID="1234567890" * 7),
    "a name of seven parts": put(PatientName="A^B^C^D^E^F^G"),
    "a name of 200 letters": put(PatientName="x" * 200),
    "a patient id with a backslash": put(PatientID=["17", "4"]),
}

#: Headers that no result can be written from, and why.
REASONS: dict[str, tuple[Change, str]] = {
    "no study": (gone("StudyInstanceUID"), "StudyInstanceUID (0020,000D) is missing"),
    "a study that is no UID": (
        put(StudyInstanceUID="1.2.03.4"),
        "StudyInstanceUID (0020,000D) is no UID",
    ),
    "a study of 70 letters": (
        put(StudyInstanceUID="1." * 35 + "1"),
        "StudyInstanceUID (0020,000D) is no UID",
    ),
    "a study in words": (
        put(StudyInstanceUID="study 17"),
        "StudyInstanceUID (0020,000D) is no UID",
    ),
    "no series": (gone("SeriesInstanceUID"), "SeriesInstanceUID (0020,000E) is missing"),
    "a series that is no UID": (
        put(SeriesInstanceUID="1..2"),
        "SeriesInstanceUID (0020,000E) is no UID",
    ),
    "no instances": (
        gone("SOPInstanceUID"),
        "SOPInstanceUID (0008,0018) of 14 of 14 images is missing",
    ),
    "instances that are no UIDs": (
        lambda image: put(SOPInstanceUID=f"1.2.0{image.InstanceNumber}")(image),
        "SOPInstanceUID (0008,0018) of 14 of 14 images is missing or no UID",
    ),
}


def changed(folder: Path, change: Change) -> None:
    for file in sorted(folder.iterdir()):
        image = pydicom.dcmread(file)
        change(image)
        image.save_as(file)


@pytest.mark.parametrize("header", [*HEADERS, *FAULTY])
def test_results_come_of_it(header: str, series: Path, write: Any, errors_of: Any) -> None:
    changed(series, (HEADERS | FAULTY)[header])
    source = pydicom.dcmread(sorted(series.iterdir())[0])
    folder = write(answer(read(series)), DicomOptions(map=True, pdf=True))
    written = sorted(folder.glob("*.dcm"))
    assert len(written) == 6
    for path in written:
        one = pydicom.dcmread(path)
        assert one.get("StudyInstanceUID") == source.StudyInstanceUID
        assert one.get("PatientID", "") == source.get("PatientID", "")
        if header in HEADERS:
            assert not errors_of(path), path.name
    assert "Right lung" in of_highdicom(folder / "lungs.dcm")


@pytest.mark.parametrize(
    ("stored", "patient_id"),
    [
        (b"\xc4-17 ", "Ä-17"),  # Latin-1, though the header says UTF-8
        ("Ä-17".encode(), "Ä-17"),
        (b"17\0\0", "17"),
        (b"17\r\n", "17"),
        (b"17\\4", "17\\4"),
        (b"\xff\xfe17", "ÿþ17"),
    ],
)
@pytest.mark.parametrize("vr", ["LO", "OB", "UN"])
def test_the_id_is_what_is_stored(
    series: Path, write: Any, stored: bytes, patient_id: str, vr: str
) -> None:
    """Another letter, and it is another patient's."""

    def change(image: Dataset) -> None:
        image.SpecificCharacterSet = "ISO_IR 192"
        image.PatientID = "ZQZQZQZQ"

    changed(series, change)
    value = stored.ljust(8, b" ")
    for file in series.iterdir():
        data = file.read_bytes()
        assert data.count(b"LO\x08\0ZQZQZQZQ") == 1
        head = vr.encode() + (b"\x08\0" if vr == "LO" else b"\0\0\x08\0\0\0")
        file.write_bytes(data.replace(b"LO\x08\0ZQZQZQZQ", head + value))
    for path in write(answer(read(series))).glob("*.dcm"):
        written = pydicom.dcmread(path)["PatientID"].value
        assert (written if isinstance(written, str) else "\\".join(written)) == patient_id


def test_items_and_numbers_are_no_id(series: Path, write: Any) -> None:
    def change(image: Dataset) -> None:
        item = Dataset()
        item.PatientComments = "Zqcomment"
        image["PatientID"] = DataElement(0x00100020, "SQ", Sequence([item]))
        image["StudyID"] = DataElement(0x00200010, "FD", 7.0)

    changed(series, change)
    for path in write(answer(read(series))).glob("*.dcm"):
        assert b"Zqcomment" not in path.read_bytes()
        assert not pydicom.dcmread(path).PatientID


@pytest.mark.parametrize("deidentified", [False, True])
@pytest.mark.parametrize("header", REASONS)
def test_there_is_a_reason_why_not(
    header: str, deidentified: bool, series: Path, write: Any
) -> None:
    change, reason = REASONS[header]
    changed(series, change)
    with pytest.raises(NoDicomResults) as caught:
        write(answer(read(series)), DicomOptions(deidentified=deidentified))
    assert reason in str(caught.value)
    # A text of a header may name the patient.
    assert "study 17" not in str(caught.value)


def test_two_slices_of_one_instance_uid(series: Path, write: Any) -> None:
    changed(series, put(SOPInstanceUID="1.2.3.4"))
    with pytest.raises(NoDicomResults, match="stand for several slices each"):
        write(answer(read(series)))


def test_enhanced_images_of_one_frame_each(series: Path, write: Any, tmp_path: Path) -> None:
    from tests.scan.conftest import _enhanced

    folder = tmp_path / "frames"
    folder.mkdir()
    for file in series.iterdir():
        image = _enhanced([file])
        image.save_as(folder / file.name)
    with pytest.raises(NoDicomResults, match="frames of 14 multi-frame images"):
        write(answer(read(folder)))


def test_too_little_memory_is_a_reason(
    series: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("tf_covid.dicom_results.write.segmentation", full)
    with pytest.raises(NoDicomResults, match="not enough memory"):
        write(answer(read(series)))


def test_frames_of_two_files(series: Path, write: Any, tmp_path: Path) -> None:
    from tests.scan.conftest import _enhanced

    files = sorted(series.iterdir())
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, part in enumerate((files[::2], files[1::2])):
        image = _enhanced(part)
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
        image.save_as(folder / f"{number}.dcm")
    with pytest.raises(NoDicomResults, match="frames of 2 multi-frame images"):
        write(answer(read(folder)))


def test_what_is_no_dicom(series: Path, write: Any) -> None:
    scan = read(series)
    with pytest.raises(NoDicomResults, match="no DICOM series"):
        write(answer(dataclasses.replace(scan, source_series=None, source_images=())))


@pytest.mark.parametrize("header", ["Japanese", "Korean", "Chinese", "Cyrillic", "German"])
def test_names_arrive_in_their_letters(header: str, series: Path, write: Any) -> None:
    changed(series, HEADERS[header])
    name = str(pydicom.dcmread(sorted(series.iterdir())[0]).PatientName)
    for path in write(answer(read(series))).glob("*.dcm"):
        one = pydicom.dcmread(path)
        assert one.SpecificCharacterSet == "ISO_IR 192"
        assert str(one.PatientName) == name
