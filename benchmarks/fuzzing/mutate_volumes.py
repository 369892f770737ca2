"""Headers of NIfTI, NRRD and MetaImage, changed field by field and line by line."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable

import nibabel as nib
import numpy as np

from fuzzing.mutation import PLAUSIBLE, Changed, Mutation, with_files
from fuzzing.seeds import Base

#: Field → label, new value (of the old one), what betrays it.
_Edits = dict[str, tuple[Callable[[np.ndarray], object], str]]


def _at(index: int, change: Callable[[float], float]) -> Callable[[np.ndarray], object]:
    def changed(old: np.ndarray) -> object:
        new = np.array(old, dtype=np.float64)
        new[index] = change(float(new[index]))
        return new

    return changed


def _value(new: object) -> Callable[[np.ndarray], object]:
    return lambda old: new


def _dims() -> _Edits:
    changes: dict[str, Callable[[float], float]] = {
        "+1": lambda n: n + 1,
        "-1": lambda n: n - 1,
        "× 2": lambda n: n * 2,
        "÷ 2": lambda n: n // 2,
        "0": lambda n: 0,
        "-5": lambda n: -5,
        "32767": lambda n: 32767,
    }
    edits = {
        f"dim[{axis}] {label}": (_at(axis, change), "length")
        for axis in (1, 2, 3)
        for label, change in changes.items()
    }
    for rank in (0, 1, 2, 4, 7, 8):
        edits[f"dim[0] = {rank}"] = (_at(0, lambda n, rank=rank: rank), "header")  # type: ignore[misc]
    edits["dim[4] = 2, in four"] = (lambda old: np.array([4, *old[1:4], 2, 1, 1, 1]), "length")
    edits["dim turned"] = (lambda old: np.array([3, old[2], old[1], *old[3:]]), "")
    return edits


def _numbers() -> dict[str, _Edits]:
    sizes: dict[str, Callable[[float], float]] = {
        "× 2": lambda n: n * 2,
        "0": lambda n: 0,
        "negative": lambda n: -n,
        "NaN": lambda n: np.nan,
        "1000": lambda n: 1000,
    }
    rows = {
        # 3 mm aside is less than a voxel: registrations leave that.
        f"{label} [{i}]": (_at(i, change), "" if (i, label) == (3, "+ 3") else "geometry")
        for i in range(4)
        for label, change in {
            "+ 3": lambda n: n + 3,
            "× 1.5": lambda n: n * 1.5,
            "negative": lambda n: -n,
            "NaN": lambda n: np.nan,
            "0": lambda n: 0,
        }.items()
    }
    return {
        "dim": _dims(),
        "pixdim": {
            f"{label} [{i}]": (_at(i, c), "geometry")
            for i in (0, 1, 2, 3)
            for label, c in sizes.items()
        },
        "vox_offset": {
            str(v): (_value(v), "length")
            for v in (0, 100, 348, 354, 368, 544, 4000, 1e9, np.nan, -352)
        },
        "datatype": (
            {str(v): (_value(v), "length") for v in (2, 8, 16, 64, 256, 768, 128, 1792, 0, 9999)}
            | {str(v): (_value(v), "header") for v in (4, 512)}
        ),
        "bitpix": {str(v): (_value(v), "header") for v in (8, 32, 0, 64)},
        "xyzt_units": {str(v): (_value(v), "geometry") for v in (0, 1, 2, 3, 10, 255)},
        "sform_code": {str(v): (_value(v), "") for v in (0, 2, 4, 99, -1)},
        "qform_code": {str(v): (_value(v), "") for v in (0, 2, 4, 99, -1)},
        "srow_x": rows,
        "srow_y": rows,
        "srow_z": rows,
        **{
            f: {
                label: (c, "geometry")
                for label, c in {
                    "0.7": _value(0.7),
                    "1.0000004": _value(1.0000004),
                    "NaN": _value(np.nan),
                    "negative": lambda old: -old,
                }.items()
            }
            for f in ("quatern_b", "quatern_c", "quatern_d")
        },
        "qoffset_x": {
            "+ 40": (lambda old: old + 40, "geometry"),
            "NaN": (_value(np.nan), "geometry"),
        },
        "scl_slope": {
            str(v): (_value(v), w)
            for v, w in (
                (0, ""),
                (1.05, ""),
                (np.nan, ""),
                (2, "header"),
                (-1, "header"),
                (1e-3, "header"),
                (1e30, "header"),
                (np.inf, ""),
            )
        },
        "scl_inter": {
            str(v): (_value(v), w)
            for v, w in (
                (0, ""),
                (24, ""),
                (-1024, ""),
                (1024, "header"),
                (np.nan, ""),
                (np.inf, ""),
                (1e9, "header"),
            )
        },
        "magic": {str(v): (_value(v), "header") for v in (b"ni1", b"n+1", b"n+2", b"", b"xyz")},
        "sizeof_hdr": {str(v): (_value(v), "header") for v in (0, 347, 540, 1543569408)},
        "intent_code": {str(v): (_value(v), "") for v in (1002, 5)},
    }


_FIELDS = _numbers()
#: These change nothing by themselves: beside another change they are no witness of it.
_IDLE = ("bitpix", "sizeof_hdr", "magic")


def _nifti(field: str) -> Mutation:
    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        name, data = base.members[0]
        packed = name.endswith(".gz")
        plain = gzip.decompress(data) if packed else data
        kind = (
            nib.Nifti2Header
            if plain[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c")
            else nib.Nifti1Header
        )
        size = 540 if kind is nib.Nifti2Header else 348
        header = kind(plain[:size], check=False)
        fields = [field] if rng.random() < 0.8 else [field, str(rng.choice(list(_FIELDS)))]
        details, betrayed = [], ""
        for one in fields:
            label = str(rng.choice(list(_FIELDS[one])))
            change, witness = _FIELDS[one][label]
            old = np.array(header[one])
            try:
                with np.errstate(all="ignore"):
                    header[one] = change(header[one])
            except (ValueError, OverflowError):
                return None  # an integer field holds no NaN
            details.append(f"{one} {label}")
            if np.array_equal(np.array(header[one]), old):
                continue  # it was so before
            if len(fields) == 1 or one not in _IDLE:
                betrayed = betrayed or witness
        if {"sform_code", "qform_code"} & set(fields):
            betrayed = ""  # one of the two second opinions is declared void
        plain = header.binaryblock + plain[size:]
        changed = gzip.compress(plain, 1, mtime=0) if packed else plain
        harmless = fields == ["intent_code"]
        return Changed(
            with_files(base, {0: changed}), ", ".join(details), betrayed, PLAUSIBLE, harmless
        )

    return Mutation(
        "header",
        f"NIfTI {field}",
        ("nifti",),
        apply,
        3 if field in ("dim", "vox_offset", "srow_x") else 1,
    )


#: NRRD field → values, and what betrays them.
_NRRD: dict[str, tuple[tuple[str, ...], str]] = {
    "sizes": (
        (
            "40 48 21",
            "40 48 19",
            "40 24 20",
            "20 48 20",
            "41 48 20",
            "48 40 20",
            "40 48",
            "40 48 20 1",
            "40 48 20 2",
            "0 48 20",
            "-40 48 20",
            "40 48 9999999",
            "40,48,20",
            "4e1 48 20",
            "",
        ),
        "length",
    ),
    "type": (
        (
            "ushort",
            "float",
            "int",
            "uchar",
            "double",
            "int8",
            "signed short",
            "block",
            "int64",
            "nonsense",
            "",
        ),
        "length",
    ),
    "endian": (("big", "little", "middle", ""), "header"),
    "encoding": (("raw", "gzip", "gz", "bzip2", "ascii", "hex", "txt", "zrl", "xz", ""), "marker"),
    "dimension": (("2", "4", "0", "99", "three", ""), "header"),
    "space": (
        (
            "RAS",
            "right-anterior-superior",
            "LAS",
            "scanner-xyz",
            "3D-right-handed",
            "LPST",
            "nonsense",
            "",
        ),
        "",
    ),
    "space directions": (
        (
            "(0,0,7.5) (0,7.5,0) (7.5,0,0)",
            "(7.5,0,0) (0,7.5,0) (0,0,5)",
            "(0,7.5,0) (7.5,0,0) (0,0,5)",
            "none (0,7.5,0) (0,0,5)",
            "(1,0,0) (1,0,0) (0,0,1)",
            "(nan,0,0) (0,1,0) (0,0,1)",
            "(7.5,0) (0,7.5)",
            "(0,0,0) (0,7.5,0) (0,0,5)",
            "(7500,0,0) (0,7500,0) (0,0,5000)",
            "(7.5,3,0) (0,7.5,0) (0,0,5)",
            "(-7.5,0,0) (0,7.5,0) (0,0,5)",
            "",
        ),
        "geometry",
    ),
    "space origin": (("(nan,0,0)", "(1e9,0,0)", "(0,0)", "0 0 0", "(10,20,30)", ""), ""),
    "kinds": (
        (
            "vector domain domain",
            "RGB-color domain domain",
            "list domain domain",
            "domain domain",
            "",
        ),
        "header",
    ),
    "spacings": (("1 1 1", "7.5 7.5 5", "nan nan nan"), "geometry"),
    "byte skip": (("0", "2", "-1", "80", "100000"), "length"),
    "line skip": (("0", "1", "99"), "length"),
    "measurement frame": (("(1,0,0) (0,1,0) (0,0,1)", "(0,1,0) (1,0,0) (0,0,1)"), ""),
    "space units": (('"mm" "mm" "mm"', '"m" "m" "m"', '"um" "um" "um"'), "geometry"),
    "old min": (("0", "-1024"), ""),
    "content": (("a\tb", "x" * 1000, "x" * 70000, "\xe4\xf6"), ""),
    "data file": (("other.raw", "/etc/passwd", "LIST"), "header"),
}
#: MetaImage key → values, and what betrays them.
_META: dict[str, tuple[tuple[str, ...], str]] = {
    "DimSize": (
        (
            "40 48 21",
            "40 48 19",
            "40 24 20",
            "20 48 20",
            "48 40 20",
            "40 48",
            "40 48 20 1",
            "0 48 20",
            "-1 48 20",
            "40 48 9999999",
            "",
        ),
        "length",
    ),
    "ElementType": (
        (
            "MET_USHORT",
            "MET_FLOAT",
            "MET_UCHAR",
            "MET_INT",
            "MET_DOUBLE",
            "MET_NONE",
            "MET_LONG",
            "",
        ),
        "length",
    ),
    "NDims": (("2", "4", "0", "three", ""), "header"),
    "BinaryDataByteOrderMSB": (("True", "", "maybe"), "header"),
    "CompressedData": (("True", "False", "maybe", ""), "marker"),
    "CompressedDataSize": (("0", "10", "99999999", "-3", ""), "length"),
    "TransformMatrix": (
        (
            "0 1 0 1 0 0 0 0 1",
            "1 0 0 0 1 0 0 0 1",
            "2 0 0 0 1 0 0 0 1",
            "1 0 0 1 0 0 0 0 1",
            "nan 0 0 0 1 0 0 0 1",
            "1 0 0 0 1 0 0 0",
            "-1 0 0 0 1 0 0 0 1",
            "1 0.3 0 0 1 0 0 0 1",
            "0 0 0 0 0 0 0 0 0",
            "",
        ),
        "geometry",
    ),
    "Offset": (("nan 0 0", "1e9 0 0", "0 0", "10 20 30", ""), ""),
    "ElementSpacing": (
        (
            "15 15 10",
            "0 7.5 5",
            "-7.5 7.5 5",
            "nan 7.5 5",
            "7500 7500 5000",
            "0.001 0.001 0.001",
            "7.5 7.5",
            "3 3 2",
            "",
        ),
        "geometry",
    ),
    "ElementSize": (("7.5 7.5 5", "1 1 1"), "geometry"),
    "AnatomicalOrientation": (("LPS", "RAS", "RAI", "???", "XYZ", ""), ""),
    "BinaryData": (("False", "", "maybe"), "header"),
    "HeaderSize": (("0", "-1", "2", "100", "99999999"), "length"),
    "ElementNumberOfChannels": (("1", "2", "3", "0"), "length"),
    "ObjectType": (("Scene", "Tube", ""), "header"),
    "Comment": (("x" * 1000, "x" * 70000, "\xe4"), ""),
    "Modality": (("MET_MOD_CT", "MET_MOD_MR"), ""),
    "ElementDataFile": (("LOCAL", "LIST", "other.raw", "/etc/passwd", "../scan.raw", ""), "header"),
    "Position": (("0 0 0", "1 2 3"), "duplicate"),
}
_HARMLESS_KEYS = ("old min", "content", "Comment")
#: Values that say what a witness of the key does not hold for.
_PLAUSIBLE_VALUES = {
    "48 40 20",
    "15 15 10",
    "3 3 2",
    "-1 0 0 0 1 0 0 0 1",
    "1 0 0 0 1 0 0 0 1",
    "0 1 0 1 0 0 0 0 1",
    "(-7.5,0,0) (0,7.5,0) (0,0,5)",
    "(7.5,0,0) (0,7.5,0) (0,0,5)",
    "(0,0,7.5) (0,7.5,0) (7.5,0,0)",
    "(0,7.5,0) (7.5,0,0) (0,0,5)",
}
#: Without these, a reader assumes what nobody said.
_ASSUMED = {
    "space",
    "space directions",
    "space origin",
    "TransformMatrix",
    "Offset",
    "ElementSpacing",
}


def _line(key: str, value: str, nrrd: bool) -> bytes:
    return f"{key}{': ' if nrrd else ' = '}{value}\n".encode("latin-1")


def _text(family: str, key: str) -> Mutation:
    nrrd = family == "nrrd"
    values, witness = (_NRRD if nrrd else _META)[key]
    sign = b":" if nrrd else b" ="

    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        data = base.members[0][1]
        end = (
            data.find(b"\n\n") + 1
            if nrrd
            else data.index(b"\n", data.index(b"ElementDataFile")) + 1
        )
        end = end or len(data)
        lines = data[:end].splitlines(keepends=True)
        held = [n for n, line in enumerate(lines) if line.startswith(key.encode() + sign)]
        way = str(
            rng.choice(["replaced", "replaced", "replaced", "doubled", "missing", "other case"])
        )
        value = str(rng.choice(values))
        betrayed = "" if value in _PLAUSIBLE_VALUES else witness
        if not held:
            lines.insert(len(lines) - 1, _line(key, value, nrrd))
            way = "added"
        elif way == "missing":
            del lines[held[0]]
            betrayed = "header" if key in _ASSUMED else witness
        elif way == "other case":
            lines[held[0]] = lines[held[0]].replace(key.encode(), key.upper().encode(), 1)
            betrayed = "header"
        elif way == "doubled":
            lines.insert(held[0] + int(rng.integers(2)), _line(key, value, nrrd))
            betrayed = "duplicate"
        else:
            lines[held[0]] = _line(key, value, nrrd)
        changed = b"".join(lines) + data[end:]
        label = value if len(value) < 80 else f"{len(value)} letters"
        harmless = key in _HARMLESS_KEYS and way == "added" and len(value) < 2000
        return Changed(
            with_files(base, {0: changed}), f"{key} {way}: {label}", betrayed, PLAUSIBLE, harmless
        )

    return Mutation(
        "header",
        f"{'NRRD' if nrrd else 'MetaImage'} {key}",
        (family,),
        apply,
        2 if witness == "length" else 1,
    )


def _line_ends(family: str) -> Mutation:
    def apply(rng: np.random.Generator, base: Base) -> Changed | None:
        data = base.members[0][1]
        end = (
            data.find(b"\n\n") + 2
            if family == "nrrd"
            else data.index(b"\n", data.index(b"ElementDataFile")) + 1
        )
        end = end if end > 1 else len(data)
        head = data[:end]
        ways = {
            "CR LF": (head.replace(b"\n", b"\r\n"), True),
            "blanks": (re.sub(rb"(?<=[0-9a-z])\n", b"  \n", head), False),
            "tabs": (head.replace(b" ", b"\t"), False),
            "NUL": (head.replace(b"\n", b"\0\n", 3), False),
            "byte order mark": (b"\xef\xbb\xbf" + head, False),
        }
        way = str(rng.choice(list(ways)))
        changed, harmless = ways[way]
        return Changed(
            with_files(base, {0: changed + data[end:]}),
            f"lines end in {way}",
            "header",
            harmless=harmless,
        )

    return Mutation(
        "header", f"{'NRRD' if family == 'nrrd' else 'MetaImage'} lines", (family,), apply
    )


MUTATIONS = (
    *map(_nifti, _FIELDS),
    *(_text("nrrd", key) for key in _NRRD),
    *(_text("meta", key) for key in _META),
    _line_ends("nrrd"),
    _line_ends("meta"),
)
