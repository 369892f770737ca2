"""study.json and study.html."""

from __future__ import annotations

import html.parser
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.marks import warnings_are_errors
from tf_covid.errors import OutputError
from tf_covid.result import DISCLAIMER
from tf_covid.severity import LOBES
from tf_covid.study import select, write_study
from tf_covid.study.study import KEYS, plain_dict

pytestmark = warnings_are_errors

#: Of the contract.
PROMISED = {
    "task",
    "model",
    "init",
    "folds",
    "cases",
    "confusion_matrix",
    "per_class",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "quadratic_kappa",
    "within_one",
    "auc",
    "mann_whitney",
    "calibration",
    "subgroups",
    "dice",
    "dice_per_case",
    "dice_per_lobe",
    "mae",
    "config",
    "versions",
    "seconds",
}


class Page(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")
        ]

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(text: str) -> Page:
    """A page that needs nothing but itself."""
    page = Page(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    shown = [text for text in page.addresses if not re.fullmatch(r"figures/\w+\.(svg|csv)", text)]
    assert all(address.startswith("data:image/png;base64,") for address in shown)
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import", text)
    assert DISCLAIMER in page.text
    return page


@pytest.mark.parametrize("task", ["severity", "covid", "slices", "lungs", "lobes"])
def test_a_study_has_every_key_and_is_json(
    task: str, make: Any, finished: Callable[..., Path]
) -> None:
    predictions = make.tables[task]()
    folder = finished(predictions)
    assert sorted(file.name for file in folder.iterdir()) == [
        "figures",
        "predictions.csv",
        "study.html",
        "study.json",
    ]
    study = json.loads((folder / "study.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert list(study) == list(KEYS)
    assert set(study) >= PROMISED
    assert study == make.study(predictions), "the dictionary is what the file holds"
    assert (study["task"], study["folds"], study["cases"]) == (
        task,
        4 if task != "covid" else 1,
        len(set(predictions.cases)),
    )
    page = checked((folder / "study.html").read_text("utf-8"))
    assert make.note in page.text
    assert "img" in page.tags


def test_what_a_task_does_not_have_is_null(make: Any) -> None:
    given = {
        task: {key for key, value in make.study(table()).items() if value is not None}
        for task, table in make.tables.items()
    }
    only = {task: keys & PROMISED for task, keys in given.items()}
    shared = {"task", "model", "init", "folds", "cases", "config", "versions", "seconds"}
    classes = {
        "confusion_matrix",
        "per_class",
        "accuracy",
        "balanced_accuracy",
        "macro_f1",
        "quadratic_kappa",
        "auc",
    }
    classes |= {"mann_whitney", "calibration", "subgroups"}
    assert only["severity"] == shared | classes | {"within_one", "mae"}
    assert only["covid"] == shared | classes
    assert only["slices"] == shared | {"auc", "mae"}
    assert only["lungs"] == shared | {"dice", "dice_per_case", "subgroups"}
    assert only["lobes"] == only["lungs"] | {"dice_per_lobe", "mae"}


def test_each_lobe_has_its_dice_over_the_cases_that_show_it(
    make: Any, finished: Callable[..., Path]
) -> None:
    predictions = make.lobes()
    folder = finished(predictions)
    study = json.loads((folder / "study.json").read_text("utf-8"))
    for index, (name, metric) in enumerate(study["dice_per_lobe"].items()):
        assert name == LOBES[index]
        assert metric["value"] == pytest.approx(np.nanmean(predictions.lobes[:, index]))
    assert study["dice"]["value"] == pytest.approx(predictions.dice.mean())
    assert study["mae"]["value"] == pytest.approx(np.nanmean(np.abs(predictions.effusion_error_ml)))
    page = checked((folder / "study.html").read_text("utf-8"))
    for said in (*LOBES, "Pleural effusion, mean absolute error", "In ml.", "The worst lobes"):
        assert said in page.text


@pytest.mark.usefixtures("undrawn")
def test_names_from_files_are_text_and_nothing_else(
    make: Any, finished: Callable[..., Path]
) -> None:
    evil = '<script>alert(1)</script><img src=x onerror=alert(1)>"&{{ 7*7 }}'
    n = 60
    predictions = make.severity(
        cases=tuple(f"{evil}{row}" for row in range(n)),
        site=(evil,) * n,
        sex=(evil,) * n,
        probabilities=np.eye(5)[(np.arange(n) + 3) % 5],
    )
    folder = finished(
        predictions, model=evil, init=evil, note=evil, config={evil: evil}, versions={evil: evil}
    )
    text = (folder / "study.html").read_text("utf-8")
    page = checked(text)
    assert evil in page.text
    assert "<script" not in text
    assert "onerror=alert(1)>" not in text


@pytest.mark.usefixtures("undrawn")
def test_a_reader_sees_the_result_and_the_cases_that_went_wrong(
    make: Any, finished: Callable[..., Path]
) -> None:
    truth = [*range(5)] * 4
    predicted = [*truth[:-2], 0, 4]
    folder = finished(make.answers(truth, predicted, ct_score=np.array([0, 3, 9, 15, 22])[truth]))
    text = checked((folder / "study.html").read_text("utf-8")).text
    assert (
        "Of 20 cases, 19 got the right class, and 0 the one beside it. 1 was two or more classes"
        " off." in text
    )
    assert "95.0 %" in text
    assert "case-18" in text
    assert "case-17" not in text
    assert "1 min" in text


def test_a_fold_without_a_class_is_a_study_too(make: Any, finished: Callable[..., Path]) -> None:
    """By site: the second has no critical case, the third healthy ones only. All make one table."""
    truth = np.array([0, 1, 2, 3, 4, 4, 0, 1, 2, 3, 0, 0])
    full = make.answers(
        truth,
        np.roll(truth, 1),
        folds=np.repeat([0, 1, 2], [6, 4, 2]),
        site=("A",) * 6 + ("B",) * 6,
    )
    study = json.loads((finished(full) / "study.json").read_text("utf-8"))
    assert study["folds"] == 3
    assert study["balanced_accuracy"]["value"] is not None
    assert study["auc"] is not None
    checked((finished(full) / "study.html").read_text("utf-8"))
    # One of these folds alone has no macro average: an average over fewer classes would not
    # compare.
    alone = select(full, full.folds == 1)
    study = json.loads((finished(alone, "alone") / "study.json").read_text("utf-8"))
    assert study["accuracy"] is not None
    assert study["balanced_accuracy"] is study["macro_f1"] is study["auc"] is None
    assert [row["recall"] is None for row in study["per_class"]] == [False] * 4 + [True]


def test_one_case_is_a_study_too(make: Any, finished: Callable[..., Path]) -> None:
    folder = finished(make.answers([3], [1]))
    study = json.loads((folder / "study.json").read_text("utf-8"))
    assert study["accuracy"]["value"] == 0.0
    assert study["auc"] is None
    checked((folder / "study.html").read_text("utf-8"))


def test_learning_curves_are_shown(make: Any, tmp_path: Path) -> None:
    predictions = make.severity()
    study = make.study(predictions)
    write_study(
        study,
        predictions,
        {0: {"loss": [1.0, 0.5], "val_loss": [1.0, float("nan")]}},
        tmp_path / "new" / "run",
    )
    assert "learning curves" in (tmp_path / "new" / "run" / "study.html").read_text("utf-8")


@pytest.mark.usefixtures("undrawn")
def test_a_failed_write_leaves_what_was_there(
    make: Any, finished: Callable[..., Path], monkeypatch: Any
) -> None:
    folder = finished(make.severity())

    def content() -> dict[Path, bytes]:
        return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    before = content()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tf_covid.atomic.os.replace", full)
    predictions = make.severity(seed=9)
    with pytest.raises(OutputError, match="No space left"):
        write_study(make.study(predictions), predictions, {}, folder)
    assert content() == before


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_is_a_file(make: Any, tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        write_study(make.study(make.lungs()), make.lungs(), {}, tmp_path / "run")


def test_plain_values_only() -> None:
    given = {
        "a": np.float32(0.5),
        1: np.array([[1, 2]]),
        "n": float("nan"),
        "i": [np.inf, (np.nan,)],
        "p": Path("x"),
    }
    assert plain_dict(given) == {"a": 0.5, "1": [[1, 2]], "n": None, "i": [None, [None]], "p": "x"}


#: Somebody's own predictions become a study: no model, no cohort and no run is needed.
_FOREIGN = """
import sys
from pathlib import Path
from tf_covid.study import build_study, compare, read_predictions, write_predictions, write_study

folder = Path(sys.argv[1])
predictions = read_predictions(folder / "predictions.csv")
study = build_study(
    predictions, model="theirs", init="frozen", config={}, seconds=None, versions={}
)
write_study(study, predictions, {0: {"loss": [2.0, 1.0]}}, folder)
compare([folder], folder / "compared")
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"tensorflow", "keras"})
print(study["cases"], study["accuracy"]["value"], *loaded)
"""


def test_anybodys_predictions_are_a_study_without_tensorflow(tmp_path: Path) -> None:
    """In a fresh interpreter, from the file alone to the pages."""
    header = (
        "case,patient,fold,truth,predicted,p0,p1,p2,p3,p4,ct_score,predicted_score,sex,age,site"
    )
    (tmp_path / "predictions.csv").write_text(
        "\n".join(
            (
                header,
                "a,A,0,0,0,0.9,0.1,0,0,0,0,,F,61,",
                "b,B,0,2,2,0,0.2,0.6,0.2,0,9,8.5,M,,north",
                "c,C,1,4,3,0,0,0.1,0.5,0.4,21,17,,,",
                "d,C,1,1,1,0.3,0.7,0,0,0,,,,,",
            )
        )
        + "\n",
        "utf-8",
    )
    run = subprocess.run(
        [sys.executable, "-c", _FOREIGN, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["4", "0.75"], "TensorFlow and Keras are not among the modules"
    assert (tmp_path / "study.html").is_file()
    assert (tmp_path / "compared" / "comparison.html").is_file()
