"""Whether a cohort has scans that a model was trained on, and what a study says of them."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tf_covid.experiment.evaluate import evaluate
from tf_covid.experiment.fit import FitRequest, fit
from tf_covid.study import compare
from tf_covid.study.seen import START, as_seen, seen_in_short, seen_sentences
from tf_covid.training.settings import Settings
from tf_covid.weights import Contract, load, read_contract, save_model, seen
from tf_covid.weights.contract import TrainedOn

PIXELS = {"a": "1" * 64, "b": "2" * 64, "c": "3" * 64}
PATIENTS = {"a": "P1", "b": "P2", "c": "P1"}


def contract(*parts: TrainedOn, **facts: Any) -> Contract:
    return Contract(
        model="i3d",
        arguments={},
        task="severity",
        note="",
        **({"trained_on": parts or None} | facts),
    )


def test_scans_of_the_training_set_are_found() -> None:
    part = seen.fingerprints([PIXELS["a"], PIXELS["c"]], seed=1)
    found = seen.look("x", contract(part), PIXELS, PATIENTS)
    assert found == seen.Sighting("x", ("a", "c"), None, ())
    assert seen.look("x", contract(part), {"a": "4" * 64}, {}).cases == ()


def test_patients_are_kept_by_option_only() -> None:
    part = seen.fingerprints([PIXELS["a"]], ["P1"], seed=1)
    assert seen.look("x", contract(part), PIXELS, PATIENTS).patients == ("a", "c")
    text = part.model_dump_json()
    assert "P1" not in text
    assert PIXELS["a"][:16] not in text
    assert not seen.fingerprints([PIXELS["a"]], seed=1).patients


def test_the_salt_follows_from_seed_and_scans_and_from_nothing_else() -> None:
    part = seen.fingerprints(PIXELS.values(), seed=1)
    assert part == seen.fingerprints(reversed(PIXELS.values()), seed=1), (
        "a resumed run writes the same file"
    )
    others = [seen.fingerprints(PIXELS.values(), seed=2), seen.fingerprints([PIXELS["a"]], seed=1)]
    assert len({one.salt for one in (part, *others)}) == 3
    assert not set(part.scans) & {mark for one in others for mark in one.scans}, (
        "two files tell nothing of each other"
    )


def test_what_a_file_does_not_say_is_said() -> None:
    assert seen.look("x", contract(), PIXELS, {}).unchecked == (seen.UNSAID,)
    assert "do not" not in " ".join(
        seen.look("x", contract(seen.fingerprints([], seed=1)), PIXELS, {}).unchecked
    )
    own = seen.fingerprints([PIXELS["a"]], seed=1)
    child = contract(own, *seen.ancestors("kinetics", contract()))
    found = seen.look("x", child, PIXELS, {})
    assert found.cases == ("a",)
    assert "started from (kinetics): the file does not say" in found.unchecked[0]
    assert seen.ancestors("parent", contract(own)) == (own,), (
        "what a parent has seen, its child has"
    )


@pytest.mark.parametrize("name", ["severity-i3d", "severity-ltc", "lungs-unet", "lobes-unet3d"])
def test_shipped_networks_name_their_seeds(name: str) -> None:
    found = seen.look(name, read_contract(seen.catalog.find(name)), PIXELS, {})
    assert found.cases == ()
    assert re.search(r"synthetic chests of tf_covid.phantom \w+, seeds \d+ to", found.unchecked[0])


@pytest.mark.parametrize(
    ("sightings", "short", "said"),
    [
        ([("m", (), None, ())], "not trained on these scans", []),
        (
            [("m", ("a",), None, ())],
            "trained on 1 of these scans",
            ["1 of 3 scans were in the training set"],
        ),
        (
            [("m", ("a",), None, ()), ("n", ("a", "b"), None, ())],
            "trained on 2 of",
            ["2 of 3 scans"],
        ),
        (
            [("m", ("a",), ("a", "c"), ())],
            "trained on 1",
            ["1 of 3", "1 more of 3 scans are of patients"],
        ),
        ([("m", (), ("c",), ())], "on patients of 1", ["1 more of 3 scans are of patients"]),
        (
            [("m", (), None, ("why",))],
            "could not be checked",
            ["had been trained on these scans could not be checked"],
        ),
        (
            [("m", ("a",), None, ("why",))],
            "trained on 1",
            ["1 of 3", "the others could not be checked (m: why)"],
        ),
    ],
)
def test_sentences(sightings: list[tuple[Any, ...]], short: str, said: list[str]) -> None:
    found = as_seen([seen.Sighting(*one) for one in sightings], 3)
    assert short in seen_in_short(found)
    sentences = seen_sentences(found)
    assert len(sentences) == len(said)
    assert all(part in sentence for part, sentence in zip(said, sentences, strict=True))
    assert all(START in sentence for sentence in seen_sentences(found, START))


def test_nothing_known_claims_nothing() -> None:
    assert seen_in_short(None) == ""
    assert seen_sentences(None) == []


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("init", ["frozen", "x.keras", "scratch"])
def test_the_page_says_it_before_the_figures(
    make: Any, finished: Callable[..., Path], init: str
) -> None:
    known = None if init == "scratch" else as_seen([seen.Sighting("m", ("case-1",), None, ())], 60)
    folder = finished(make.severity(), init=init, seen_in_training=known)
    assert json.loads((folder / "study.json").read_text())["seen_in_training"] == known
    page = (folder / "study.html").read_text()
    assert "not trained on them" not in page
    assert ("one that had never seen the patient" in page) == (init == "scratch")
    loud = "1 of 60 scans were in the training set of " + (
        "the model:" if init == "frozen" else START
    )
    assert (loud in page) == (init != "scratch")
    if known:
        assert page.index(loud) < page.index('class="lead"')
        assert loud in compare([folder], folder.parent / "compared")["runs"][0]["note"]


SETTINGS = Settings(
    clip=(16, 32, 32),
    working_grid=(24, 48, 48),
    batch=2,
    epochs=1,
    network={"dense": 8},
    validation_fraction=0.3,
    keep="best",
)


def trained(manifest: Path, out: Path, **more: Any) -> list[str]:
    """A run of a tiny network; what it said."""
    said: list[str] = []
    fit_request = FitRequest(
        manifest, "covid", "ltc", out, SETTINGS, folds=2, cache=manifest.parent / "cache", **more
    )
    fit(fit_request, on_message=said.append, epoch_progress=lambda *_: nullcontext(lambda *_: None))
    return said


@pytest.fixture(scope="module")
def run(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seen")
    said = trained(small_cohort, folder / "run", patient_fingerprints=True)
    assert not [line for line in said if line.startswith("warning")]
    return folder / "run"


@pytest.mark.slow
def test_a_fold_knows_what_it_learned_from(run: Path) -> None:
    tested = json.loads((run / "folds.json").read_text())["test"]
    for fold in (0, 1):
        (part,) = read_contract(run / f"fold-{fold}" / "model.keras").trained_on or ()
        assert (
            len(part.scans)
            == len(part.patients)
            == sum(number != fold for number in tested.values())
        )
    assert json.loads((run / "study.json").read_text())["seen_in_training"] is None


@pytest.mark.slow
def test_evaluate_says_which_scans_were_in_the_training_set(
    run: Path, small_cohort: Path, tmp_path: Path
) -> None:
    """Under other names and in another file format: only a fold's own test scans are new to it."""
    folds = json.loads((run / "folds.json").read_text())["test"]
    with small_cohort.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        packed = small_cohort.parent / row["path"]
        plain = tmp_path / f"{row['case']}.nii"
        with gzip.open(packed) as source, plain.open("wb") as target:
            shutil.copyfileobj(source, target)
        row |= {
            "fold": folds[row["case"]],
            "case": f"other-{row['case']}",
            "patient": f"x{row['patient']}",
            "path": plain.name,
        }
        row |= {key: "" for key in ("lungs", "lesions", "lobes", "tissues") if key in row}
    own = {"all.csv": rows, "test.csv": [row for row in rows if row["fold"] == 0]}
    for name, chosen in own.items():
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(
                file, [key for key in rows[0] if key != "fold"], extrasaction="ignore"
            )
            writer.writeheader()
            writer.writerows(chosen)
    said: list[str] = []
    model = run / "fold-0" / "model.keras"
    evaluate([model], tmp_path / "all.csv", tmp_path / "all", on_message=said.append)
    study = json.loads((tmp_path / "all" / "study.json").read_text())
    assert study["cohort"] == {
        "name": "all.csv",
        "sha256": hashlib.sha256((tmp_path / "all.csv").read_bytes()).hexdigest(),
        "scans": len(rows),
    }
    assert study["measured_at"].endswith("Z")
    assert (tmp_path / "all" / "figures" / "confusion.svg").is_file()
    found = study["seen_in_training"]
    assert set(found["seen"]) == {row["case"] for row in rows if row["fold"] == 1}
    assert not found["unchecked"]
    count = f"{len(found['seen'])} of {len(rows)} scans were in the training set of the model"
    assert any(line.startswith(f"warning: {count}") for line in said)
    assert count in (tmp_path / "all" / "study.html").read_text()
    said.clear()
    evaluate([model], tmp_path / "test.csv", tmp_path / "test", on_message=said.append)
    assert not said
    assert "not trained on these scans" in (tmp_path / "test" / "study.html").read_text()


@pytest.mark.slow
def test_fit_that_starts_from_a_model_says_which_scans_it_knew(
    run: Path, small_cohort: Path, tmp_path: Path
) -> None:
    parent = run / "fold-1" / "model.keras"
    said = trained(small_cohort, tmp_path / "run", init=parent)
    known = sum(
        number != 1 for number in json.loads((run / "folds.json").read_text())["test"].values()
    )
    count = f"{known} of 10 scans were in the training set of {START}"
    assert any(line.startswith(f"warning: {count}") for line in said)
    assert count in (tmp_path / "run" / "study.html").read_text()
    own, inherited = read_contract(tmp_path / "run" / "fold-0" / "model.keras").trained_on or ()
    assert (inherited,) == read_contract(parent).trained_on
    assert not own.patients
    # A file of before the fingerprints, with an untrained head: what is not known is said, and the
    # head gets trained.
    old = load(parent)
    blank = old.contract.model_copy(update={"trained_on": None, "untrained_head": True})
    save_model(old.network, blank, tmp_path / "old.keras")
    said = trained(small_cohort, tmp_path / "again", init=tmp_path / "old.keras")
    assert any("could not be checked (old: the file does not say" in line for line in said)
    fresh = read_contract(tmp_path / "again" / "fold-0" / "model.keras")
    assert not fresh.untrained_head
    assert fresh.trained_on
    assert fresh.trained_on[1].unchecked
