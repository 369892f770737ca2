"""What the audit of a run looks at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tf_covid.cohort.cache import CacheRecord
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import TrainingError
from tf_covid.experiment.records import identities, records_of_run


def entry(case: str, patient: str) -> CacheRecord:
    return CacheRecord(
        case, Path(case), {"pixels": f"x{case}", "patient": patient}, (), (1, 1, 1), 1
    )


def test_a_placeholder_for_the_patient_does_not_count_and_is_said() -> None:
    rows = [
        ManifestRow(case=f"c{number}", patient=f"p{number}", path=Path("x")) for number in range(6)
    ]
    said: list[str] = []
    found = identities(rows, {row.case: entry(row.case, "anonymous") for row in rows}, said.append)
    assert found["c3"] == {"patient": "p3", "DICOM patient": "", "pixels": "xc3"}
    assert len(said) == 1
    assert "PatientID" in said[0]


def test_two_names_of_one_patient_count() -> None:
    rows = [
        ManifestRow(case=f"c{number}", patient=f"p{number}", path=Path("x")) for number in range(6)
    ]
    said: list[str] = []
    found = identities(
        rows,
        {row.case: entry(row.case, f"id{int(row.case[1:]) // 2}") for row in rows},
        said.append,
    )
    assert found["c2"]["DICOM patient"] == found["c3"]["DICOM patient"] == "id1"
    assert not said


def test_a_resumed_run_has_the_scans_that_it_began_with(tmp_path: Path) -> None:
    path, said = tmp_path / "records.json", list[str]()
    begun = {"a": entry("a", "1"), "b": entry("b", "2")}
    assert records_of_run(path, begun, said.append) == begun
    assert records_of_run(path, begun | {"c": entry("c", "3")}, said.append) == begun
    assert said == ["left out, since the run began without them: c"]
    with pytest.raises(TrainingError, match="began with b, which cannot be read now"):
        records_of_run(path, {"a": begun["a"]}, said.append)
    with pytest.raises(TrainingError, match="scan or masks changed of b"):
        records_of_run(path, begun | {"b": entry("other", "2")}, said.append)
    path.write_text("{")
    with pytest.raises(TrainingError, match="cannot be read"):
        records_of_run(path, begun, said.append)
