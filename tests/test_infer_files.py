"""What `infer` leaves in its folder and says of it, without any network.

Tables of several runs, older answers.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from tf_covid.cli import main
from tf_covid.cohort.cases import cases_of
from tf_covid.errors import ModelError
from tf_covid.infer import Options, Run, run_cases
from tf_covid.outcomes import CaseOutcome, Summary, finished
from tf_covid.phantom import draw_chest
from tf_covid.phantom.files import write_nifti_volume
from tf_covid.result import QualityFlag
from tf_covid.scan import Case
from tf_covid.weights import catalog

pytestmark = pytest.mark.usefixtures("loaded_once")

VALUES: dict[str, Any] = {
    "case": "a",
    "status": "pass",
    "quality_flags": [],
    "severity": {
        "class": 2,
        "label": "moderate",
        "probabilities": [0.1, 0.2, 0.4, 0.2, 0.1],
        "ct_score": 9.1,
    },
    "covid": None,
    "lungs": {"involvement_percent": 12.0, "volume_ml": 4000.0},
    "timings_s": {"total": 1.0},
    "versions": {"request": "x"},
}


@pytest.fixture(scope="module")
def chest() -> Any:
    return draw_chest(5, (32, 64, 64), severity=3)


def put(out: Path, case: str, **changes: Any) -> dict[str, Any]:
    values = {**VALUES, "case": case, **changes}
    (out / case).mkdir(parents=True, exist_ok=True)
    (out / case / "result.json").write_text(json.dumps(values))
    return values


def rows(out: Path) -> list[str]:
    with (out / "summary.csv").open(encoding="utf-8") as file:
        return [row["case"] for row in csv.DictReader(file)]


def test_two_runs_into_one_folder_lose_no_row(tmp_path: Path) -> None:
    one, two = Summary(tmp_path, every_s=0), Summary(tmp_path, every_s=0)
    for number, summary in enumerate((one, two, one, two, two, one)):
        case = f"c{number}"
        summary.add(CaseOutcome(case, put(tmp_path, case), tmp_path / case))
        assert sorted(rows(tmp_path)) == [f"c{before}" for before in range(number + 1)]


def test_many_processes_into_one_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from tf_covid.outcomes import CaseOutcome, Summary, finished\n"
        "out = Path(sys.argv[1]); summary = Summary(out, every_s=0)\n"
        "for number in range(20):\n"
        "    folder = out / f'{sys.argv[2]}{number}'; folder.mkdir()\n"
        "    text = (out / 'seed.txt').read_text().replace('CASE', folder.name)\n"
        "    (folder / 'result.json').write_text(text)\n"
        "    summary.add(CaseOutcome(folder.name, finished(folder), folder))\n"
    )
    (tmp_path / "seed.txt").write_text(json.dumps({**VALUES, "case": "CASE"}))
    runs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "pqr"]
    assert [run.wait() for run in runs] == [0, 0, 0]
    assert sorted(rows(tmp_path)) == sorted(
        f"{name}{number}" for name in "pqr" for number in range(20)
    )
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == {
        "seed.txt",
        "summary.csv",
    }


def test_what_is_not_on_disk_stays_in_the_table(tmp_path: Path) -> None:
    summary = Summary(tmp_path, every_s=0)
    summary.add(
        CaseOutcome("lost", {**VALUES, "case": "lost"}, tmp_path / "lost", problem="not_written")
    )
    summary.add(CaseOutcome("b", put(tmp_path, "b"), tmp_path / "b"))
    put(tmp_path, "b", status="repaired")
    summary.write()
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        assert [(row["case"], row["status"]) for row in csv.DictReader(file)] == [
            ("lost", "pass"),
            ("b", "repaired"),
        ]


def test_a_fault_of_ours_in_one_case_costs_the_others_nothing(tmp_path: Path) -> None:
    def answer(case: Any) -> CaseOutcome:
        if case.name == "b":
            raise IndexError("list index\nout of range")
        return CaseOutcome(case.name, put(tmp_path, case.name), tmp_path / case.name)

    run: Any = SimpleNamespace(out=tmp_path, answer=answer)
    cases: Any = [SimpleNamespace(name=name) for name in "abc"]
    told = run_cases(run, cases)
    outcomes = [next(told) for _ in cases]
    with pytest.raises(IndexError):  # of which the command line says where it was
        next(told)
    assert [outcome.case for outcome in outcomes] == ["a", "b", "c"]
    assert [bool(outcome.problem) for outcome in outcomes] == [False, True, False]
    assert outcomes[1].problem == "internal_error: IndexError: list index out of range"
    with (tmp_path / "summary.csv").open(encoding="utf-8") as file:
        written = {row["case"]: row["status"] for row in csv.DictReader(file)}
    assert written == {"a": "pass", "b": "refused", "c": "pass"}
    assert not (tmp_path / "b").exists()


def test_models_that_cannot_answer_end_the_run(tmp_path: Path) -> None:
    def answer(case: Any) -> CaseOutcome:
        raise ModelError("damaged")

    run: Any = SimpleNamespace(out=tmp_path, answer=answer)
    cases: Any = [SimpleNamespace(name=name) for name in "abc"]
    with pytest.raises(ModelError, match="damaged"):
        next(run_cases(run, cases))


def older(out: Path, case: str) -> bytes:
    """An answer of the time when quality flags were called findings."""
    put(out, case)
    path = out / case / "result.json"
    path.write_text(path.read_text().replace('"quality_flags"', '"findings"'))
    return path.read_bytes()


def test_an_older_answer_is_known_and_never_overwritten_in_silence(
    chest: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = older(out, "scan")
    values = finished(out / "scan")
    assert values is not None
    assert values["quality_flags"] == []
    assert "request" not in values["versions"]
    assert [*Summary(out).rows] == ["scan"]
    write_nifti_volume(chest.hu, chest.affine, tmp_path / "scan.nii.gz")
    (case,) = cases_of([tmp_path / "scan.nii.gz"])
    remote: Any = SimpleNamespace(files_sha256=["m"])
    outcome = Run(out, Options(), remote=remote).answer(case)
    assert outcome.problem is not None
    assert outcome.problem.startswith("name_taken: ")
    assert (out / "scan" / "result.json").read_bytes() == before


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_line_of_a_case_names_its_warnings(count: int) -> None:
    flags = [
        {"code": f"flag_{number}", "level": "warning", "message": "."} for number in range(count)
    ]
    flags.append({"code": "series_candidates", "level": "info", "message": "."})
    line = CaseOutcome("a", {**VALUES, "quality_flags": flags}, Path("out/a")).line()
    words = {0: "", 1: "; 1 warning: flag_0", 3: "; 3 warnings: flag_0, flag_1, flag_2"}[count]
    assert f"12.0 % of the lungs involved{words} (1.0 s)" in line
    assert "series_candidates" not in line


def test_the_status_of_an_answer_with_warnings() -> None:
    from tf_covid.report import text
    from tf_covid.result import Result

    def status(kind: Any, *levels: Any) -> str:
        return text.status(
            Result("a", kind, tuple(QualityFlag("x", level, ".") for level in levels), {})
        )

    assert status("pass") == status("pass", "info") == "scan passed the checks"
    assert status("pass", "warning") == "scan passed, with 1 warning"
    assert status("repaired", "warning", "info", "warning") == "scan was repaired, with 2 warnings"
    assert status("refused", "warning", "error") == "scan was refused"


def test_missing_inputs_are_named_whole_and_before_tensorflow(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom tf_covid.cli import main\n"
        "try:\n    main(['infer', *sys.argv[1:]])\n"
        "finally:\n    print('tensorflow' in sys.modules)\n"
    )
    gone = tmp_path / "ward 7" / "gone.nii.gz"
    command = [sys.executable, "-c", code, str(gone), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stdout == "False\n"
    assert str(gone) in done.stderr
    assert "not_found" in done.stderr
    assert str(tmp_path) not in (tmp_path / "out" / "gone" / "result.json").read_text()


def test_an_input_that_the_reader_dies_of_does_not_end_the_run(
    chest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly_case.py").write_text(
        "import os, signal\nfrom tf_covid.scan import Case\n"
        "class Deadly(Case):\n    def read(self):\n        os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import deadly_case  # type: ignore[import-not-found]

    write_nifti_volume(chest.hu, chest.affine, tmp_path / "good.nii.gz")
    from tf_covid.cohort import cases as cohort_cases

    def cases(inputs: Any, find: Any) -> list[Case]:
        (good,) = find(tmp_path / "good.nii.gz")
        return [deadly_case.Deadly("bad", good.path), good]

    monkeypatch.setattr(cohort_cases, "cases_of", cases)
    result = CliRunner().invoke(main, ["check", "anything"])
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "bad: refused" in lines[0]
    assert "reader_failed" in lines[0]
    assert "SIGSEGV" in lines[0]
    assert lines[1].startswith("good: pass")


def test_another_pair_of_lung_models_is_another_question(tmp_path: Path) -> None:
    """Named, the lobe model that ships gates; unnamed it may not, though the files are the same."""
    every = [
        Options(lobes_model=lobes, allow_other_lungs=allowed)
        for lobes in (None, "none", "lobes-unet3d")
        for allowed in (False, True)
    ]
    every.append(Options(lungs_model=str(catalog.find("lobes-unet3d"))))
    requests = {Run(tmp_path, options)._request("a", "f" * 64) for options in every}
    assert len(requests) == len(every)
