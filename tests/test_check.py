"""`tfcovid check`: the reader and the gate alone, as a data manager meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tf_covid.cli import main
from tf_covid.cohort.check import check_cases
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_dicom, write_nifti_volume
from tf_covid.scan import find_cases
from tf_covid.scan.check import check


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole series, one that misses a slice, a volume, and rubbish."""
    folder = tmp_path_factory.mktemp("ward")
    chest = draw_chest(5, (96, 64, 64), severity=3)
    write_dicom(chest.hu, chest.affine, folder / "whole", seed=1)
    gap = write_dicom(chest.hu, chest.affine, folder / "gap", seed=2)
    sorted(gap.iterdir())[20].unlink()
    write_nifti_volume(chest.hu, chest.affine, folder / "volume.nii.gz")
    (folder / "rubbish.nii.gz").write_text("hello")
    return folder


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(main, ["check", *map(str, arguments)])
    assert result.exit_code == code, result.output + str(result.exception)
    return result


def test_a_line_a_case(ward: Path) -> None:
    result = run(ward / "whole", ward / "gap", ward / "volume.nii.gz")
    lines = result.stdout.splitlines()
    assert [line.split(",")[0].split(" (")[0] for line in lines] == [
        "whole: pass",
        "gap: repaired",
        "volume: pass",
    ]
    assert "96 x 64 x 64 voxels of" in lines[0]
    assert "missing_slices (warning)" in lines[1]
    assert result.stderr.splitlines() == ["check 1/3 whole", "check 2/3 gap", "check 3/3 volume"]


@pytest.mark.parametrize("workers", [1, 3])
def test_json_lines_in_order_and_exit_1_for_a_refusal(ward: Path, workers: int) -> None:
    inputs = (ward / "rubbish.nii.gz", ward / "gap", ward / "whole", ward / "gone")
    result = run(*inputs, "--json", "--workers", workers, code=1)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [one["case"] for one in found] == ["rubbish", "gap", "whole", "gone"]
    assert [one["status"] for one in found] == ["refused", "repaired", "pass", "refused"]
    assert all(
        set(one) == {"case", "status", "series", "quality_flags", "seconds"} for one in found
    )
    assert found[0]["series"] is None
    assert found[2]["series"]["shape"] == [96, 64, 64]
    assert [flag["code"] for flag in found[1]["quality_flags"]] == ["missing_slices"]
    assert [flag["code"] for flag in found[3]["quality_flags"]] == ["not_found"]


def test_a_folder_with_everything(ward: Path) -> None:
    found = [json.loads(line) for line in run(ward, "--json", code=1).stdout.splitlines()]
    assert [one["status"] for one in found] == ["repaired", "pass", "refused", "pass"]


def test_from_python(ward: Path) -> None:
    assert [one.status for one in check(ward / "gap")] == ["repaired"]
    assert [one.case for one in check_cases(find_cases(ward), 2)] == [
        one.case for one in check(ward)
    ]


def test_no_tensorflow(ward: Path) -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom tf_covid.cli import main\n"
        "assert CliRunner().invoke(main, ['check', sys.argv[1]]).exit_code == 0\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras', 'matplotlib')))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(ward / "whole")], check=False).returncode
        == 0
    )


def test_a_manifest(ward: Path, tmp_path: Path) -> None:
    table = tmp_path / "cohort.csv"
    table.write_text(
        f"case,patient,path\none,p1,{ward / 'whole'}\ntwo,p2,{ward / 'volume.nii.gz'}\n"
    )
    assert [line.split(":")[0] for line in run(table).stdout.splitlines()] == ["one", "two"]
