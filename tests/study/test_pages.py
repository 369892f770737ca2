"""study.html and comparison.html: what they say of themselves, on a phone and in print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser import measured, phone_widths, printed
from tf_covid.study import compare, write_study

Finished = Callable[..., Path]

HEADINGS = (
    r"(The result|Which classes are confused|Does the CT score rise from class to class\?|Training|"
    r"Can the probabilities be trusted\?|Is it the same for everybody\?|How it was made|"
    r"True CT score by predicted class|Class by class|Do the runs differ\?)"
)


@pytest.mark.usefixtures("undrawn")
def test_a_study_says_when_and_on_what_it_was_measured(make: Any, finished: Finished) -> None:
    folder = finished(make.severity(), versions={"tf-covid": "1.2.3"})
    study = json.loads((folder / "study.json").read_text("utf-8"))
    assert study["cohort"] == make.cohort
    assert study["measured_at"] == "2026-11-28T17:20:15Z"
    page = (folder / "study.html").read_text("utf-8")
    head, _, made = page.partition("How it was made")
    short = make.cohort["sha256"][:12]
    assert (
        "measured 2026-11-28, 17:20 UTC · cohort.csv: 60 scans, sha256"
        f" {short} · tf-covid 1.2.3</span>" in head
    )
    assert f"cohort.csv, 60 scans, sha256 {make.cohort['sha256']}" in made
    assert "2026-11-28, 17:20 UTC, on the test cases" in made


@pytest.mark.usefixtures("undrawn")
def test_synthetic_chests_are_called_so_beside_every_heading(make: Any, finished: Finished) -> None:
    drawn = {"name": "phantom:40", "phantom_mark": "0123abcd", "scans": 40}
    folder = finished(make.severity(), "drawn", cohort=drawn)
    page = (folder / "study.html").read_text("utf-8")
    assert "phantom:40: 40 scans, phantom 0123abcd" in page
    headings = page.count("<h2>")
    assert page.count("synthetic chests · not for diagnosis</span></h2>") == headings > 5
    assert page.count(make.note) == 1, "once, where it is read"
    plain = finished(make.severity(), "plain")
    assert "synthetic chests ·" not in (plain / "study.html").read_text("utf-8")
    for runs, said in (([folder], True), ([folder, plain], False)):
        compare(runs, folder.parent / "out", make.quick)
        text = (folder.parent / "out" / "comparison.html").read_text("utf-8")
        assert ("synthetic chests · not for diagnosis" in text) == said
        assert text.count("not for diagnosis</span></h2>") == text.count("<h2>")


@pytest.mark.usefixtures("undrawn")
def test_a_study_of_before_is_compared_too(make: Any, finished: Finished, tmp_path: Path) -> None:
    new, old = finished(make.severity(1), "new"), finished(make.severity(2), "old")
    study = json.loads((old / "study.json").read_text("utf-8"))
    del study["cohort"], study["measured_at"]
    (old / "study.json").write_text(json.dumps(study), "utf-8")
    found = compare([new, old], tmp_path / "out", make.quick)
    assert [run["cohort"] for run in found["runs"]] == [make.cohort, None]
    assert [run["measured_at"] for run in found["runs"]] == ["2026-11-28T17:20:15Z", None]
    page = (tmp_path / "out" / "comparison.html").read_text("utf-8")
    assert "2026-11-28, 17:20 UTC" in page
    assert f"60 scans, sha256 {make.cohort['sha256'][:12]}<" in page
    compare([old], tmp_path / "alone", make.quick)
    page = (tmp_path / "alone" / "comparison.html").read_text("utf-8")
    assert "<th>cohort</th>" not in page
    assert "<th>measured</th>" not in page
    # Nor does a study that says nothing fail to be a page.
    predictions = make.severity()
    write_study(make.study(predictions, cohort=None, measured_at=None), predictions, {}, old)
    assert "measured 20" not in (old / "study.html").read_text("utf-8")


@pytest.fixture(scope="module")
def texts(make: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Pages as they are drawn, with long names."""
    from tf_covid.study import write_predictions

    folder = tmp_path_factory.mktemp("pages")
    curves = {fold: {"loss": [2.0, 1.0], "val_loss": [2.0, 1.5]} for fold in range(2)}
    tables = {"read": make.read(), "covid": make.covid(), "lobes": make.lobes()}
    long = {"cohort": make.cohort | {"name": "w" * 90 + ".csv"}, "note": "x" * 120}
    texts = {}
    for name, predictions in tables.items():
        write_study(make.study(predictions, **long), predictions, curves, folder / name)
        texts[name] = (folder / name / "study.html").read_text("utf-8")
    for seed in range(3):
        run = folder / f"run-{seed}-{'y' * 60}"
        predictions = make.severity(seed)
        write_study(make.study(predictions, **long), predictions, {}, run)
        write_predictions(predictions, run / "predictions.csv")
    compare(sorted(folder.glob("run-*")), folder / "out", make.quick)
    return texts | {"comparison": (folder / "out" / "comparison.html").read_text("utf-8")}


@pytest.mark.slow
def test_nothing_scrolls_sideways_on_a_phone(texts: dict[str, str], tmp_path: Path) -> None:
    for name, text in texts.items():
        needed, there = phone_widths(text, tmp_path)
        assert needed == there, name


@pytest.mark.parametrize("name", ["read", "comparison"])
def test_every_printed_page_has_a_name_and_a_caution(
    name: str, texts: dict[str, str], tmp_path: Path
) -> None:
    pages = printed(texts[name], tmp_path)
    assert len(pages) >= 3
    for page in pages:
        head = " ".join(page[:500].split())
        assert ("i3d" if name == "read" else "run-0-yyy") in head
        assert "Research software · not for diagnosis" in head
        assert not re.search(rf"{HEADINGS}\s*(research · not for diagnosis)?\s*$", page)


def test_in_print_a_value_is_not_smaller_than_its_interval(
    texts: dict[str, str], tmp_path: Path
) -> None:
    for name in ("read", "comparison"):
        text = texts[name].replace("@media print", "@media all")
        said = measured(
            text,
            "[...document.querySelectorAll('td.num')].filter(cell => cell.querySelector('small'))"
            ".map(cell => [cell, cell.querySelector('small')]"
            ".map(part => parseFloat(getComputedStyle(part).fontSize)).join('/'))"
            ".filter((pair, index, all) => all.indexOf(pair) === index).join(' ')",
            tmp_path,
        )
        (pair,) = said.split()
        value, interval = map(float, pair.split("/"))
        assert value > interval >= 9
