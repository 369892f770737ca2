"""The scans that are mutated.

One small chest, written in every format, transfer syntax and container.
"""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.fileset import FileSet

from tf_covid.phantom.files import Facts, Pixels, write_dicom

_ROOT = "1.2.840.10008.1.2"
#: Name of a base → transfer syntax, and how HU are stored where not as the writer likes it best.
SYNTAXES: dict[str, tuple[str, Pixels | None]] = {
    "implicit": (_ROOT, None),
    "explicit": (f"{_ROOT}.1", None),
    "explicit-12": (f"{_ROOT}.1", Pixels(bits=12, signed=False)),
    "explicit-slope": (f"{_ROOT}.1", Pixels(bits=12, signed=False, slope=2.0, intercept=-2048.0)),
    "big-endian": (f"{_ROOT}.2", None),
    "deflated": (f"{_ROOT}.1.99", None),
    "rle": (f"{_ROOT}.5", None),
    "jpeg-baseline": (f"{_ROOT}.4.50", None),
    "jpeg-extended": (f"{_ROOT}.4.51", None),
    "jpeg-lossless-57": (f"{_ROOT}.4.57", None),
    "jpeg-lossless-70": (f"{_ROOT}.4.70", Pixels(bits=12, signed=False)),
    "jpeg-ls": (f"{_ROOT}.4.80", Pixels(bits=12, signed=False)),
    "jpeg-ls-near": (f"{_ROOT}.4.81", Pixels(bits=12, signed=False)),
    "j2k": (f"{_ROOT}.4.90", None),
    "j2k-lossy": (f"{_ROOT}.4.91", Pixels(bits=12, signed=False)),
    "htj2k": (f"{_ROOT}.4.201", Pixels(bits=12, signed=False)),
}
_LOSSY_HU = {
    "jpeg-baseline": 120,
    "jpeg-extended": 60,
    "jpeg-ls-near": 2,
    "j2k-lossy": 100,
    "explicit-slope": 1,
}
_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
ZIP_STORED, ZIP_DEFLATED, TAR, TAR_GZ = "stored.zip", "deflated.zip", "tar", "tar.gz"


@dataclass(frozen=True)
class Base:
    """A scan before it is changed.

    Args:
        name: For people.
        family: dicom, enhanced, nifti, nrrd or meta: who knows how to change its header.
        members: Name and bytes of every file, in order.
        pack: How the files are held together: "" for a folder, else the end of the archive's name.
        path: Name of the file to be read; empty for the whole folder.
        tolerance: Largest difference from `chest()` that the format's losses explain, in HU.
    """

    name: str
    family: str
    members: tuple[tuple[str, bytes], ...]
    pack: str = ""
    path: str = ""
    tolerance: int = 0

    def with_members(self, members: list[tuple[str, bytes]] | dict[str, bytes]) -> Base:
        """The same with other files."""
        pairs = members.items() if isinstance(members, dict) else members
        return replace(self, members=tuple(pairs))

    def packed(self) -> bytes:
        """The archive."""
        return pack(self.members, self.pack)


def chest(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """int16 HU (20, 48, 40) of a chest that no flip maps onto itself, and its LPS affine.

    5 × 7.5 × 7.5 mm.
    """
    rng = np.random.default_rng(seed)
    d, h, w = np.ogrid[:20, :48, :40]
    at = d / 19.0
    size = 1.0 + 0.05 * (seed % 5)
    hu = np.full((20, 48, 40), -1000.0)
    hu[((h - 25) / (17 * size)) ** 2 + ((w - 19.5) / (17 * size)) ** 2 + 0 * d < 1] = -90
    hu[((h - 25) / (15.5 * size)) ** 2 + ((w - 19.5) / (15.5 * size)) ** 2 + 0 * d < 1] = 45
    wide = (4.0 + 2.2 * np.sqrt(at)) * size
    hu[((h - 25) / (10 + 1.5 * at)) ** 2 + ((w - 11) / wide) ** 2 < 1] = -850
    hu[((h - 24) / (9 + 2 * at)) ** 2 + ((w - 28) / (wide - 0.7)) ** 2 < 1] = -830
    hu[((h - 21) / 6) ** 2 + ((w - 23) / 5) ** 2 + ((at - 0.8) / 0.35) ** 2 < 1] = 55
    hu[(h - 37) ** 2 + (w - 19.5) ** 2 + 0 * d < 5] = 400
    hu[((h - 16) / 2) ** 2 + ((w - 9) / 2) ** 2 + ((at - 0.3) / 0.15) ** 2 < 1] = 300
    hu += rng.normal(0, 12, hu.shape)
    affine = np.array([[0, 0, 7.5, -150.0], [0, 7.5, 0, -180.0], [-5.0, 0, 0, 300.0], [0, 0, 0, 1]])
    return np.rint(hu).clip(-1020, 1000).astype(np.int16), affine


def bases() -> list[Base]:
    """Every base, in an order that does not change."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [*_classic(Path(folder)), *_enhanced(Path(folder)), *_volumes()]
    by_name = {base.name: base for base in found}
    explicit, lossless, nifti = (
        by_name["explicit"],
        by_name["jpeg-lossless-70"],
        by_name["nifti.gz"],
    )
    found += [
        replace(one, name=f"{one.name} in {kind}", pack=kind, path=f"input.{kind}")
        for one, kinds in (
            (explicit, (ZIP_STORED, ZIP_DEFLATED, TAR, TAR_GZ)),
            (lossless, (ZIP_DEFLATED,)),
            (nifti, (ZIP_STORED,)),
        )
        for kind in kinds
    ]
    return found


def other_patient() -> Base:
    """Another chest of another patient, explicit VR little endian."""
    with tempfile.TemporaryDirectory() as folder:
        hu, affine = chest(3)
        facts = Facts(patient_id="MQ-000003", patient_name="Dummy^Quinta", accession_number="MQ3")
        path = write_dicom(hu, affine, Path(folder) / "other", facts=facts, seed=3)
        return Base("other", "dicom", _files(path))


def _classic(folder: Path) -> Iterator[Base]:
    hu, affine = chest()
    for name, (syntax, pixels) in SYNTAXES.items():
        path = write_dicom(hu, affine, folder / name, transfer_syntax=syntax, pixels=pixels)
        yield Base(name, "dicom", _files(path), tolerance=_LOSSY_HU.get(name, 0))
        if name == "explicit":
            index = FileSet()
            for file in sorted(path.iterdir()):
                index.add(file)
            index.write(folder / "indexed")
            yield Base("dicomdir", "dicom", _files(folder / "indexed"), path="DICOMDIR")


def _files(folder: Path) -> tuple[tuple[str, bytes], ...]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple((path.relative_to(folder).as_posix(), path.read_bytes()) for path in files)


def _item(**values: object) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def _enhanced(folder: Path) -> Iterator[Base]:
    slices = [pydicom.dcmread(path) for path in sorted((folder / "explicit").iterdir())]
    first, whole = slices[0], pydicom.dcmread(sorted((folder / "explicit").iterdir())[0])
    gone = (
        "ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness RescaleSlope"
        " RescaleIntercept"
    )
    for keyword in (*gone.split(), "RescaleType", "ConvolutionKernel"):
        delattr(whole, keyword)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    whole.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    whole.NumberOfFrames = len(slices)
    whole.SharedFunctionalGroupsSequence = [
        _item(
            PixelMeasuresSequence=[
                _item(PixelSpacing=first.PixelSpacing, SliceThickness=first.SliceThickness)
            ],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=first.ImageOrientationPatient)],
            CTReconstructionSequence=[_item(ConvolutionKernel="B60f")],
        )
    ]
    whole.PerFrameFunctionalGroupsSequence = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=one.ImagePositionPatient)],
            PixelValueTransformationSequence=[
                _item(RescaleSlope="1", RescaleIntercept="-1024", RescaleType="HU")
            ],
        )
        for one in slices
    ]
    whole.PixelData = np.stack([one.pixel_array for one in slices]).astype("<i2").tobytes()
    for name, codec in (("enhanced", None), ("enhanced-rle", pydicom.uid.RLELossless)):
        if codec:
            whole.compress(codec, generate_instance_uid=False)
        stream = io.BytesIO()
        whole.save_as(stream)
        yield Base(name, "enhanced", (("IM1", stream.getvalue()),), path="IM1")


def _nifti(
    kind: type, stored: np.ndarray, affine: np.ndarray, slope: float = 1.0, inter: float = 0.0
) -> bytes:
    header = kind(np.zeros((1, 1, 1), stored.dtype), np.eye(4), dtype=stored.dtype).header
    order = ">" if stored.dtype.byteorder == ">" else "<"
    if order == ">":
        header = header.as_byteswapped(">")
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape)
    header.set_sform(affine, "scanner")
    header.set_qform(affine, "scanner")
    header.set_xyzt_units("mm")
    header["scl_slope"], header["scl_inter"] = slope, inter
    offset = {348: 352, 540: 544}[len(header.binaryblock)]
    header["vox_offset"] = offset
    head = header.binaryblock
    return head + bytes(offset - len(head)) + stored.tobytes(order="F")


def _volumes() -> Iterator[Base]:
    hu, affine = chest()
    stored, ras = np.transpose(hu, (2, 1, 0)), _RAS @ affine[:, [2, 1, 0, 3]]
    plain = _nifti(nib.Nifti1Image, stored, ras)
    kinds = {
        "nifti": plain,
        "nifti.gz": gzip.compress(plain, 1, mtime=0),
        "nifti-float.gz": gzip.compress(
            _nifti(nib.Nifti1Image, stored.astype("<f4"), ras), 1, mtime=0
        ),
        "nifti-scaled": _nifti(
            nib.Nifti1Image, (stored.astype(int) + 1100).astype("<u2"), ras, 1.0, -1100.0
        ),
        "nifti-big-endian": _nifti(nib.Nifti1Image, stored.astype(">i2"), ras),
        "nifti-2": _nifti(nib.Nifti2Image, stored, ras),
    }
    for name, data in kinds.items():
        path = "scan.nii.gz" if name.endswith(".gz") else "scan.nii"
        yield Base(name, "nifti", ((path, data),), path=path)
    header = nib.Nifti1Header(plain[:348])
    header["magic"], header["vox_offset"] = b"ni1", 0
    yield Base(
        "nifti-pair",
        "nifti",
        (("scan.hdr", header.binaryblock), ("scan.img", plain[352:])),
        path="scan.hdr",
    )
    yield from _nrrd(stored, affine)
    yield from _meta(stored, affine)


def _nrrd(stored: np.ndarray, affine: np.ndarray) -> Iterator[Base]:
    axes = " ".join(
        f"({','.join(f'{value:g}' for value in affine[:3, axis])})" for axis in (2, 1, 0)
    )
    origin = ",".join(f"{value:g}" for value in affine[:3, 3])

    def head(encoding: str, endian: str, data_file: str = "") -> bytes:
        lines = [
            "NRRD0004",
            "type: short",
            "dimension: 3",
            "space: left-posterior-superior",
            f"sizes: {' '.join(map(str, stored.shape))}",
            f"space directions: {axes}",
            "kinds: domain domain domain",
            f"endian: {endian}",
            f"encoding: {encoding}",
            f"space origin: ({origin})",
        ]
        return (
            "\n".join([*lines, *([f"data file: {data_file}"] if data_file else [])]) + "\n\n"
        ).encode()

    little, big = stored.tobytes(order="F"), stored.astype(">i2").tobytes(order="F")
    packed = gzip.compress(little, 1, mtime=0)
    for name, data in {
        "nrrd": head("raw", "little") + little,
        "nrrd-big-endian": head("raw", "big") + big,
        "nrrd-gzip": head("gzip", "little") + packed,
        "nrrd-bzip2": head("bzip2", "little") + bz2.compress(little),
    }.items():
        yield Base(name, "nrrd", (("scan.nrrd", data),), path="scan.nrrd")
    pair = (
        ("scan.nhdr", head("raw", "little", "scan.raw").rstrip(b"\n") + b"\n"),
        ("scan.raw", little),
    )
    yield Base("nhdr", "nrrd", pair, path="scan.nhdr")


def _meta(stored: np.ndarray, affine: np.ndarray) -> Iterator[Base]:
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    matrix = " ".join(f"{value:g}" for axis in (2, 1, 0) for value in unit[:, axis])

    def head(packed: int, data_file: str) -> bytes:
        lines = [
            "ObjectType = Image",
            "NDims = 3",
            "BinaryData = True",
            "BinaryDataByteOrderMSB = False",
            f"CompressedData = {bool(packed)}",
            *([f"CompressedDataSize = {packed}"] if packed else []),
            f"TransformMatrix = {matrix}",
            f"Offset = {' '.join(f'{value:g}' for value in affine[:3, 3])}",
            "CenterOfRotation = 0 0 0",
            "AnatomicalOrientation = RAS",
            "ElementSpacing = 7.5 7.5 5",
            f"DimSize = {' '.join(map(str, stored.shape))}",
            "ElementType = MET_SHORT",
            f"ElementDataFile = {data_file}",
        ]
        return ("\n".join(lines) + "\n").encode()

    plain = stored.tobytes(order="F")
    packed = zlib.compress(plain, 1)
    yield Base("mha", "meta", (("scan.mha", head(0, "LOCAL") + plain),), path="scan.mha")
    yield Base(
        "mha-zlib", "meta", (("scan.mha", head(len(packed), "LOCAL") + packed),), path="scan.mha"
    )
    yield Base(
        "mhd", "meta", (("scan.mhd", head(0, "scan.raw")), ("scan.raw", plain)), path="scan.mhd"
    )
    members = (("scan.mhd", head(len(packed), "scan.zraw")), ("scan.zraw", packed))
    yield Base("mhd-zraw", "meta", members, path="scan.mhd")


def pack(members: tuple[tuple[str, bytes], ...], kind: str) -> bytes:
    """The members in one archive; two of one name stay two."""
    stream = io.BytesIO()
    if kind in (TAR, TAR_GZ):
        with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return gzip.compress(stream.getvalue(), 1, mtime=0) if kind == TAR_GZ else stream.getvalue()
    method = zipfile.ZIP_STORED if kind == ZIP_STORED else zipfile.ZIP_DEFLATED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile says so where two members have one name
        with zipfile.ZipFile(stream, "w", method) as archive:
            for name, data in members:
                archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()
