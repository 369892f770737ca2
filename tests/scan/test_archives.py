"""Zips and tars: every member is one file, every check sum is asked for, and nothing is passed
over."""

from __future__ import annotations

import gzip
import io
import shutil
import struct
import tarfile
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from tf_covid.errors import ScanRefused
from tf_covid.phantom.files import Facts, write_dicom, write_nifti_volume
from tf_covid.scan import Limits, find_cases, read
from tf_covid.scan.archive import unique_names

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


def zipped(
    path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def tarred(path: Path, members: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path, prefix: str = "") -> list[tuple[str, bytes]]:
    return [(prefix + file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


PACKERS: Mapping[str, Callable[[Path, list[tuple[str, bytes]]], Path]] = {
    ".zip": zipped,
    ".tar": tarred,
    ".tar.gz": lambda path, members: tarred(path, members, "w:gz"),
    ".tgz": lambda path, members: tarred(path, members, "w:gz"),
}


@pytest.mark.parametrize("ending", PACKERS)
def test_every_kind_of_archive_gives_the_same_scan(
    marker, series: Path, tmp_path: Path, ending: str
) -> None:
    path = PACKERS[ending](tmp_path / f"sent{ending}", contents(series, "x/"))
    (case,) = find_cases(path)
    scan = case.read()
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert (scan.case, scan.quality_flags, scan.fingerprint) == (
        "sent",
        (),
        read(series).fingerprint,
    )
    assert case.fingerprint() == scan.fingerprint
    plain = path.rename(tmp_path / "no-ending")
    np.testing.assert_array_equal(read(plain).hu, marker.hu)


@pytest.mark.parametrize("ending", PACKERS)
def test_a_volume_in_an_archive(marker, tmp_path: Path, ending: str) -> None:
    write_nifti_volume(marker.hu, marker.affine, tmp_path / "a.nii.gz")
    path = PACKERS[ending](
        tmp_path / f"b{ending}", [("a.nii.gz", (tmp_path / "a.nii.gz").read_bytes())]
    )
    np.testing.assert_array_equal(read(path).hu, marker.hu)


@pytest.mark.parametrize("ending", PACKERS)
def test_members_of_one_name_are_several_files(marker, tmp_path: Path, ending: str) -> None:
    """Two patients whose files have the same names, packed by a program that drops the folders."""
    scans = {}
    members = []
    for number in (1, 2):
        hu = marker.hu + np.int16(number)
        folder = write_dicom(
            hu,
            marker.affine,
            tmp_path / str(number),
            seed=number,
            facts=Facts(patient_id=f"P{number}"),
        )
        scans[f"P{number}"] = hu
        members += contents(folder)
    path = PACKERS[ending](tmp_path / f"a{ending}", members)
    cases = find_cases(path)
    assert len(cases) == 2
    assert len({case.fingerprint() for case in cases}) == 2
    for case in cases:
        scan = case.read()
        np.testing.assert_array_equal(scan.hu, scans[scan.identifiers["patient_id"]])
        assert {flag.code: flag.value for flag in scan.quality_flags} == {"same_names": 14}


@pytest.mark.parametrize("ending", PACKERS)
def test_slices_of_one_name_are_all_read(marker, series: Path, tmp_path: Path, ending: str) -> None:
    path = PACKERS[ending](tmp_path / f"a{ending}", [("IMG", data) for _, data in contents(series)])
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert [flag.value for flag in scan.quality_flags] == [13]


@pytest.mark.parametrize(
    "names",
    [
        ("a.dcm", "A.DCM"),
        tuple(unicodedata.normalize(form, "Zoë") for form in ("NFC", "NFD")),
        ("x/1", "x/#2/1"),
    ],
    ids=["case", "unicode", "number"],
)
@pytest.mark.parametrize("ending", [".zip", ".tar"])
def test_names_that_are_nearly_equal_are_distinct(
    marker, series: Path, tmp_path: Path, ending: str, names: tuple[str, str]
) -> None:
    members = contents(series)
    members[0], members[1] = (names[0], members[0][1]), (names[1], members[1][1])
    np.testing.assert_array_equal(
        read(PACKERS[ending](tmp_path / f"a{ending}", members)).hu, marker.hu
    )


def test_unique_names() -> None:
    names = ["a/x.nii.gz", "a/x.nii.gz", "a/#2/x.nii.gz", "a/x.nii.gz", "y"]
    assert unique_names(names) == [
        "a/x.nii.gz",
        "a/#3/x.nii.gz",
        "a/#2/x.nii.gz",
        "a/#4/x.nii.gz",
        "y",
    ]
    assert all(name.endswith(".nii.gz") for name in unique_names(["x.nii.gz"] * 5))


def test_names_that_end_at_a_nul_are_several_files(marker, series: Path, tmp_path: Path) -> None:
    path = zipped(
        tmp_path / "a.zip",
        [(f"I{index:03}", data) for index, (_, data) in enumerate(contents(series))],
    )
    raw = path.read_bytes()
    for index in range(14):
        raw = raw.replace(f"I{index:03}".encode(), b"I\0" + f"{index:02}".encode())
    path.write_bytes(raw)
    np.testing.assert_array_equal(read(path).hu, marker.hu)


def damaged(path: Path, change: Callable[[bytearray], object]) -> set[str]:
    """Codes of the flags above "info" that a changed archive gives."""
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(data)
    (case,) = find_cases(path)
    try:
        flags = case.read().quality_flags
    except ScanRefused as refused:
        flags = refused.quality_flags
    return {flag.code for flag in flags if flag.level != "info"}


def drop_an_entry(data: bytearray, *, counted: bool) -> None:
    """Take the last member out of the directory, and out of the number in the end record, too."""
    entry, end = data.rindex(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    count, length = struct.unpack("<HL", data[end + 10 : end + 16])
    struct.pack_into(
        "<HHL", data, end + 8, count - counted, count - counted, length - (end - entry)
    )
    del data[entry:end]


def test_a_directory_that_lists_fewer_members(series: Path, tmp_path: Path) -> None:
    for counted, code in ((False, "archive_damaged"), (True, "archive_leftovers")):
        path = zipped(tmp_path / "a.zip", contents(series))
        assert damaged(
            path, lambda data, counted=counted: drop_an_entry(data, counted=counted)
        ) == {code}


def test_two_zips_in_one_file(series: Path, tmp_path: Path) -> None:
    first = zipped(tmp_path / "a.zip", contents(series)[:4]).read_bytes()
    path = zipped(tmp_path / "b.zip", contents(series)[4:])
    assert damaged(path, lambda data: data.__setitem__(slice(0, 0), first)) == {"archive_leftovers"}


def test_a_self_extracting_zip_reads(marker, series: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", contents(series))
    path.write_bytes(b"MZ" + bytes(5000) + path.read_bytes())
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.quality_flags == ()


def test_a_zip64_reads(marker, series: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents(series):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    raw = path.read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    count, length, offset = struct.unpack("<HLL", raw[end + 10 : end + 20])
    record = struct.pack(
        "<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, length, offset
    )
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(raw[:end] + record + locator + last)
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.quality_flags == ()


def overlap(data: bytearray) -> None:
    """Let two entries of the directory point to one member, as a bomb does."""
    entries = [at for at in range(len(data)) if data[at : at + 4] == b"PK\x01\x02"]
    data[entries[1] + 42 : entries[1] + 46] = data[entries[0] + 42 : entries[0] + 46]


@pytest.mark.parametrize(
    "change",
    [
        overlap,
        lambda data: data.__delitem__(slice(60, 90)),
        lambda data: data.__delitem__(slice(-60, None)),
        lambda data: data.__setitem__(slice(101, None), b""),
        lambda data: data.__setitem__(slice(None), data[-101:]),
        lambda data: struct.pack_into("<H", data, data.rindex(b"PK\x05\x06") + 4, 3),
        lambda data: struct.pack_into("<L", data, data.rindex(b"PK\x05\x06") + 16, 2**31),
    ],
    ids=[
        "overlap",
        "cut-in-front",
        "cut-end",
        "first-101-bytes",
        "last-101-bytes",
        "split",
        "offset",
    ],
)
def test_a_damaged_zip_is_refused(
    series: Path, tmp_path: Path, change: Callable[[bytearray], object]
) -> None:
    assert damaged(zipped(tmp_path / "a.zip", contents(series)), change) == {"archive_damaged"}


@pytest.mark.parametrize("size", range(0, 124, 3))
def test_a_short_zip_is_no_traceback(tmp_path: Path, size: int) -> None:
    record = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 50, 0)
    whole = (
        record
        + struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 100, 0, 0)
    )
    for data in (whole[-size:], b"PK\x03\x04" + whole[-size:]):
        (tmp_path / "a.zip").write_bytes(data)
        (case,) = find_cases(tmp_path / "a.zip")
        assert case.refused


def test_a_large_slice_with_a_wrong_check_sum_is_refused(marker, tmp_path: Path) -> None:
    hu = np.repeat(np.repeat(marker.hu, 6, axis=1), 6, axis=2)
    path = zipped(
        tmp_path / "a.zip",
        contents(write_dicom(hu, marker.affine, tmp_path / "s")),
        zipfile.ZIP_STORED,
    )

    def flip(data: bytearray) -> None:
        data[data.index(b"PK\x01\x02") - 3000] ^= 1

    assert damaged(path, flip) == {"truncated_file"}


def test_a_foreign_member_with_a_wrong_check_sum_is_named(series: Path, tmp_path: Path) -> None:
    """It may have been a slice, and nothing of it says so any more."""
    path = zipped(
        tmp_path / "a.zip", [*contents(series), ("z", bytes(300_000))], zipfile.ZIP_STORED
    )

    def flip(data: bytearray) -> None:
        data[data.index(b"PK\x01\x02") - 3000] ^= 1

    assert damaged(path, flip) == {"unreadable_files"}


@pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.8])
def test_a_cut_tar(series: Path, tmp_path: Path, ending: str, share: float) -> None:
    path = PACKERS[ending](tmp_path / f"a{ending}", contents(series))
    assert damaged(
        path, lambda data: data.__delitem__(slice(int(share * len(data)) + 100, None))
    ) == {"archive_damaged"}


def end_of_tar(data: bytearray) -> int:
    return len(data.rstrip(b"\0")) // 512 * 512 + 512


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("archive_no_end", lambda data: data.__delitem__(slice(end_of_tar(data), None))),
        ("archive_damaged", lambda data: data.__setitem__(1536 * 4 + 100, 7)),
        ("trailing_bytes", lambda data: data.extend(b"x" * 100)),
        ("archive_leftovers", lambda data: data.extend(data[: end_of_tar(data)])),
    ],
    ids=["no-end", "head", "trailing", "two-tars"],
)
def test_a_damaged_tar(
    series: Path, tmp_path: Path, code: str, change: Callable[[bytearray], object]
) -> None:
    path = tarred(tmp_path / "a.tar", contents(series))
    if code == "archive_damaged":
        size = contents(series)[0][1].__len__()
        second = 512 + -(-size // 512) * 512
        assert code in damaged(
            path, lambda data: data.__setitem__(second + 100, data[second + 100] ^ 1)
        )
        return
    assert damaged(path, change) == {code}


@pytest.mark.parametrize(
    ("code", "change"),
    [
        ("archive_damaged", lambda data: data.__setitem__(-6, data[-6] ^ 1)),
        (
            "archive_damaged",
            lambda data: data.__setitem__(len(data) // 2, data[len(data) // 2] ^ 16),
        ),
        ("trailing_bytes", lambda data: data.extend(b"hello")),
    ],
    ids=["crc", "data", "trailing"],
)
def test_a_damaged_gzip_of_a_tar(
    series: Path, tmp_path: Path, code: str, change: Callable[[bytearray], object]
) -> None:
    path = PACKERS[".tar.gz"](tmp_path / "a.tar.gz", contents(series))
    assert damaged(path, change) == {code}


def test_a_gzip_of_several_members_padded_like_a_tape(marker, series: Path, tmp_path: Path) -> None:
    plain = tarred(tmp_path / "a.tar", contents(series)).read_bytes()
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(plain[:5000]) + gzip.compress(plain[5000:]) + bytes(1000))
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert scan.quality_flags == ()


def test_what_is_no_file_in_a_tar(marker, series: Path, tmp_path: Path, quality_flags) -> None:
    path = tarred(tmp_path / "a.tar", contents(series, "d/"))
    first = contents(series, "d/")[0][0]
    with tarfile.open(path, "a") as archive:
        for kind, name, target in (
            (tarfile.DIRTYPE, "d", ""),
            (tarfile.LNKTYPE, "again", first),  # what it links to is there
            (tarfile.SYMTYPE, "d/beside", Path(first).name),
            (tarfile.SYMTYPE, "passwd", "/etc/passwd"),
            (tarfile.FIFOTYPE, "pipe", ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    scan = read(path)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert {code: flag.value for code, flag in quality_flags(scan).items()} == {"archive_links": 2}


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:/x", "..\\x"])
@pytest.mark.parametrize("ending", PACKERS)
def test_a_way_out_of_an_archive(
    refused, series: Path, tmp_path: Path, ending: str, name: str
) -> None:
    path = PACKERS[ending](tmp_path / f"a{ending}", [*contents(series), (name, b"")])
    assert [*refused(path)] == ["archive_unsafe"]


@pytest.mark.parametrize("ending", PACKERS)
def test_bounds_of_archives(series: Path, tmp_path: Path, ending: str) -> None:
    path = PACKERS[ending](tmp_path / f"a{ending}", contents(series))
    total = sum(len(data) for _, data in contents(series))
    for limits in (Limits(archive_members=13), Limits(archive_bytes=total - 1)):
        (case,) = find_cases(path, limits)
        with pytest.raises(ScanRefused, match="archive_too_large"):
            case.read()
    assert find_cases(path, Limits(archive_members=14, archive_bytes=total))[0].read().shape == (
        14,
        40,
        32,
    )


def test_a_bomb_in_gzip_is_bounded(refused, tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.dcm")
    info.size = 20_000_000
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(info.tobuf() + bytes(20_000_000 + 1024)))
    (case,) = find_cases(path, Limits(archive_bytes=1_000_000, archive_members=10))
    assert [flag.code for flag in case.quality_flags] == ["archive_too_large"]


def test_a_tar_head_of_many_megabytes_is_not_loaded(refused, tmp_path: Path) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 50_000_000
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    assert [*refused(path)] == ["archive_unsafe"]


def test_no_member_is_written_to_disk(
    series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = PACKERS[".tgz"](tmp_path / "a.tgz", contents(series))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert read(path).shape == (14, 40, 32)
    assert list(scratch.iterdir()) == []


def test_a_zip_that_changes_between_looking_and_reading(series: Path, tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", contents(series))
    (case,) = find_cases(path)
    zipped(path, contents(series)[:-1])
    with pytest.raises(ScanRefused, match="input_changed"):
        case.read()
    assert case.fingerprint() == ""


def test_a_folder_of_archives(marker, series: Path, tmp_path: Path) -> None:
    root = tmp_path / "cohort"
    (root / "b").mkdir(parents=True)
    other = write_dicom(
        marker.hu, marker.affine, tmp_path / "p2", seed=9, facts=Facts(patient_id="Q")
    )
    zipped(root / "one.zip", contents(series))
    tarred(root / "b" / "two.tar", contents(other))
    zipped(root / "notes.zip", [("readme.txt", b"hello")])
    (root / "broken.zip").write_bytes((root / "one.zip").read_bytes()[:-30])
    (root / "readme.txt").write_text("hello")
    cases = {case.name: case for case in find_cases(root)}
    assert set(cases) == {"one", "two", "broken"}
    for name in ("one", "two"):
        scan = cases[name].read()
        np.testing.assert_array_equal(scan.hu, marker.hu)
        assert {flag.code: flag.value for flag in scan.quality_flags} == {"foreign_files": 2}
    assert cases["broken"].refused


def test_archives_beside_a_series(marker, series: Path, tmp_path: Path, quality_flags) -> None:
    """The download and what was unpacked from it are one study; a damaged zip is named."""
    zipped(series / "download.zip", [file for file in contents(series) if file[0].endswith(".dcm")])
    (series / "broken.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    scan = read(series)
    np.testing.assert_array_equal(scan.hu, marker.hu)
    levels = {code: flag.level for code, flag in quality_flags(scan).items()}
    assert levels == {"archive_copies": "info", "unreadable_archives": "warning"}


def test_an_archive_in_an_archive_is_named(
    marker, series: Path, tmp_path: Path, quality_flags, refused
) -> None:
    inner = zipped(tmp_path / "inner.zip", contents(series)).read_bytes()
    outer = zipped(tmp_path / "outer.zip", [("p1.zip", inner), ("p2.7z", b"7z")])
    assert "2 archive(s)" in refused(outer)["no_scan"].message
    mixed = zipped(tmp_path / "mixed.zip", [*contents(series), ("p2.zip", inner)])
    assert quality_flags(read(mixed))["packed_files"].level == "warning"


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\x01", "a RAR archive"),
        (b"BZh91AY", "a bzip2 file"),
        (b"\xfd7zXZ\x00", "an xz file"),
        (gzip.compress(b"hello"), "a gzip file"),
        (b"\xff\xd8\xff\xe0", "a JPEG picture"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"%PDF-1.7", "a PDF document"),
    ],
    ids=lambda value: value if isinstance(value, str) else "head",
)
def test_a_file_of_another_kind_is_named(refused, tmp_path: Path, head: bytes, word: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(head + bytes(100))
    message = refused(path)["no_scan"].message
    assert word in message
    assert "NIfTI" in message
    assert ("Unpack it" in message) == ("picture" not in word and "PDF" not in word)


@pytest.mark.parametrize("ending", [".img", ".raw", ".RAW"])
def test_a_data_file_without_its_header(refused, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"\1\2" * 1000)
    assert "without a header" in refused(tmp_path / f"a{ending}")["no_scan"].message


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tgz"])
def test_a_name_that_promises_an_archive(refused, tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").write_bytes(b"hello")
    assert [*refused(tmp_path / f"a{ending}")] == ["archive_damaged"]


def test_a_macos_zip(marker, series: Path, tmp_path: Path) -> None:
    members = [(f"s/{name}", data) for name, data in contents(series)]
    members += [
        (f"__MACOSX/s/._{name}", b"\0\5\x16\7" + bytes(100)) for name, _ in contents(series)
    ]
    scan = read(zipped(tmp_path / "a.zip", [*members, ("s/.DS_Store", b"\0\0\0\1Bud1")]))
    np.testing.assert_array_equal(scan.hu, marker.hu)
    assert [(flag.code, flag.level) for flag in scan.quality_flags] == [("foreign_files", "info")]


def test_a_tar_of_another_writer(tmp_path: Path, series: Path) -> None:
    shutil.make_archive(str(tmp_path / "a"), "gztar", series.parent, series.name)
    assert read(tmp_path / "a.tar.gz").shape == (14, 40, 32)
