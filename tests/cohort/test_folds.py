"""Folds: by class, by patient, by site; and the audit that refuses leakage."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tf_covid.cohort.folds import (
    Folds,
    audit,
    check_classes,
    check_folds,
    make_folds,
    near_cases,
    read_folds,
    split_validation,
    write_folds,
)
from tf_covid.cohort.likeness import near_groups, near_key
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import CohortError


def cohort(
    counts: dict[int, int], scans: int = 1, sites: int = 3
) -> tuple[list[ManifestRow], dict[str, int]]:
    """So many patients of each class, with so many scans each."""
    rows, labels = [], {}
    for label, count in counts.items():
        for number in range(count):
            for scan in range(scans):
                case = f"c{label}-{number}-{scan}"
                site = f"site{number % sites}"
                rows.append(
                    ManifestRow(case=case, patient=f"p{label}-{number}", path=Path("x"), site=site)
                )
                labels[case] = label
    return rows, labels


def test_the_papers_counts_are_spread_over_four_folds() -> None:
    rows, labels = cohort({0: 34, 1: 33, 2: 52, 3: 46, 4: 37})
    folds = make_folds(rows, labels, 4, seed=1)
    for label in range(5):
        counts = Counter(folds.test[case] for case, found in labels.items() if found == label)
        assert max(counts.values()) - min(counts[fold] for fold in range(4)) <= 2
    assert folds == make_folds(rows, labels, 4, seed=1)
    assert folds != make_folds(rows, labels, 4, seed=2)


def test_scans_of_a_patient_stay_together() -> None:
    rows, labels = cohort({0: 8, 1: 8}, scans=3)
    folds = make_folds(rows, labels, 4, seed=5)
    for row in rows:
        assert folds.test[row.case] == folds.test[row.case[:-1] + "0"]
    train, test = folds.split(2)
    assert set(train) | set(test) == set(labels)
    assert not set(train) & set(test)


def test_a_class_with_too_few_patients_is_named() -> None:
    rows, labels = cohort({0: 8, 1: 3}, scans=2)
    with pytest.raises(CohortError, match="4 folds need 4 patients of each class; class 1 has 3"):
        make_folds(rows, labels, 4, seed=1)


def test_one_site_is_left_out_in_each_fold() -> None:
    rows, labels = cohort({0: 6, 1: 6})
    folds = make_folds(rows, labels, 4, seed=1, by_site=True)
    assert folds.names == ("site0", "site1", "site2")
    assert all(folds.names[folds.test[row.case]] == row.site for row in rows)


def test_sites_must_be_known_and_hold_whole_patients() -> None:
    rows, labels = cohort({0: 4, 1: 4}, scans=2)
    moved = [
        row.model_copy(update={"site": "elsewhere"}) if row.case == "c0-1-1" else row
        for row in rows
    ]
    with pytest.raises(CohortError, match=r"a patient of two sites.*: 1 of them"):
        make_folds(moved, labels, 2, seed=1, by_site=True)
    nameless = [
        row.model_copy(update={"site": None}) if row.case == "c1-2-0" else row for row in rows
    ]
    with pytest.raises(CohortError, match="needs the site of every case; without one: c1-2-0"):
        make_folds(nameless, labels, 2, seed=1, by_site=True)


def test_a_class_of_one_site_only_cannot_be_learned_there() -> None:
    rows, labels = cohort({0: 6, 1: 6, 2: 1, 3: 4})
    with pytest.raises(
        CohortError, match="fold site0 cannot learn class 2: all its cases are tested in that fold"
    ):
        make_folds(rows, labels, 3, seed=1, by_site=True)
    # A site without a class is tested on the others only: no error.
    few, known = cohort({0: 6, 1: 6, 3: 2})
    folds = make_folds(few, known, 3, seed=1, by_site=True)
    assert {known[case] for case in folds.split(2)[1]} == {0, 1}
    assert {known[case] for case in folds.split(2)[0]} == {0, 1, 3}


def test_folds_of_a_file_train_on_every_class() -> None:
    test = {"a": 0, "b": 1, "c": 0, "d": 1, "e": 1, "f": 0}
    folds = Folds(kind="stratified", seed=1, names=("0", "1"), test=test)
    check_classes(folds, {"a": 0, "b": 0, "c": 1, "d": 1, "e": 1, "f": 0})
    with pytest.raises(
        CohortError, match="fold 1 cannot learn class 3; fold 0 cannot learn class 4: "
    ):
        check_classes(folds, {"a": 0, "b": 0, "c": 4, "d": 3, "e": 3, "f": 4})
    # A scan that could not be read has no fold.
    with pytest.raises(CohortError, match="fold 0 cannot learn class 1: "):
        check_classes(folds, {"a": 0, "b": 0, "c": 1, "unread": 1, "d": 0, "e": 0, "f": 0})


@pytest.mark.parametrize("kind", ["patient", "study", "pixels"])
def test_leakage_names_the_cases(kind: str) -> None:
    folds = Folds(kind="stratified", seed=1, names=("0", "1"), test={"a": 0, "b": 1, "c": 1})
    audit({"a": {kind: "1"}, "b": {kind: "2"}, "c": {kind: "2"}}, folds)
    audit({"a": {kind: ""}, "b": {kind: ""}, "c": {}}, folds)
    with pytest.raises(CohortError, match=f"leakage.*the same {kind} in a and c"):
        audit({"a": {kind: "1"}, "b": {kind: "2"}, "c": {kind: "1"}}, folds)


def test_folds_go_through_a_file(tmp_path: Path) -> None:
    rows, labels = cohort({0: 4, 1: 4})
    folds = make_folds(rows, labels, 2, seed=1)
    write_folds(folds, tmp_path / "folds.json")
    assert read_folds(tmp_path / "folds.json") == folds
    assert [path.name for path in tmp_path.iterdir()] == ["folds.json"]
    check_folds(folds, rows)
    with pytest.raises(CohortError, match=r"1 case\(s\) without a fold \(c1-3-0\), 0 unknown"):
        check_folds(
            folds.model_copy(
                update={"test": {k: v for k, v in folds.test.items() if k != "c1-3-0"}}
            ),
            rows,
        )


@pytest.mark.parametrize(
    "text", ["", "{}", "[" * 100_000, '{"kind": "stratified", "seed": 1, "names": [], "test": 3}']
)
def test_a_file_without_folds_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "folds.json").write_text(text)
    with pytest.raises(CohortError, match="holds no folds"):
        read_folds(tmp_path / "folds.json")


def test_patients_that_tell_when_to_stop_are_of_all_classes() -> None:
    rows, labels = cohort({0: 10, 1: 5, 2: 1}, scans=2)
    cases = [row.case for row in rows]
    train, validation = split_validation(cases, rows, labels, 0.2, seed=1)
    assert Counter(labels[case] for case in validation) == {0: 4, 1: 2}
    assert not {case[:-2] for case in train} & {case[:-2] for case in validation}
    assert split_validation(cases, rows, labels, 0.0, seed=1) == (cases, [])


@pytest.mark.parametrize("seed", range(8))
def test_a_class_keeps_somebody_to_be_trained_on(seed: int) -> None:
    """Class 1 is only in earlier scans of three patients who got worse.

    Half of them are held out.
    """
    rows, labels = cohort({0: 6})
    for number in range(3):
        for scan, label in enumerate((1, 2)):
            rows.append(
                ManifestRow(case=f"worse{number}-{scan}", patient=f"worse{number}", path=Path("x"))
            )
            labels[f"worse{number}-{scan}"] = label
    cases = [row.case for row in rows]
    for share in (0.2, 0.5, 0.89):
        train, validation = split_validation(cases, rows, labels, share, seed)
        assert {labels[case] for case in train} == {0, 1, 2}
        assert validation
    # Where class 1 is of the one patient who would be held out, it stays.
    only = [case for case in cases if case not in ("worse0-0", "worse1-0")]
    train, _ = split_validation(only, rows, labels, 0.5, seed)
    assert "worse2-0" in train


NEAR = [
    ("P01", "p01"),
    ("P01", "P-01"),
    ("P01", "P1"),
    ("P01", "p_001"),
    ("P01", "P 01"),
    ("P01", "P01."),
    ("P01", " P01"),
    ("Zo\u00eb", "Zoe\u0308"),
    ("Zo\u00eb", "ZOE"),
    ("M\u00fcller, A", "muller a"),
    ("Stra\u00dfe", "STRASSE"),
    ("1", "01"),
    ("1", "1.0"),
    ("0", "0.0"),
    ("0", "000"),
    ("1", "1,0"),
    ("1000", "1E+03"),
    ("12.50", "12.5"),
    ("7", "\uff17"),
    ("P7", "\uff30\uff17"),
    ("7", "\u0667"),
    ("P01", "P\u200b01"),
    ("P01", "P\u00a001"),
    ("P01", "\u042001"),
    ("A1", "\u03911"),
    ("\u212b1", "A1"),
    ("'001", "1"),
    ("\ufb01n", "FIN"),
    ("P/01", "P\\01"),
    ("P01", "P\u201301"),
    ("P01", "P\t01"),
]


@pytest.mark.parametrize(("one", "other"), NEAR, ids=lambda text: ascii(text))
def test_ids_that_are_near_equal(one: str, other: str) -> None:
    assert one != other
    assert near_key(one) == near_key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("P1", "P2"),
        ("P1", "P10"),
        ("1", "10"),
        ("12-3", "1-23"),
        ("12-3", "123"),
        ("a1b", "ab1"),
        ("1", "A1"),
        ("10", "1.0"),
        ("0", "O"),
        ("1", "l"),
        ("-", "_"),
        ("1.5", "15"),
        ("\u674e", "\u738b"),
        ("P1a", "P1b"),
    ],
)
def test_ids_that_differ(one: str, other: str) -> None:
    assert near_key(one) != near_key(other)


def near_cohort() -> tuple[list[ManifestRow], dict[str, int]]:
    """Eight pairs of near-equal ids in two classes, and eight patients who are like nobody."""
    pairs = [
        ("P01", "p1"),
        ("Zo\u00eb", "Zoe\u0308"),
        ("1", "01"),
        ("0", "0.0"),
        ("7", "\uff17"),
        ("Q-3", "q03"),
        ("R 4", "R_4"),
        ("5.0", "5"),
    ]
    names = [name for pair in pairs for name in pair] + [f"alone{letter}" for letter in "abcdefgh"]
    rows = [
        ManifestRow(case=f"c{number}", patient=name, path=Path("x"), site="ab"[number % 2])
        for number, name in enumerate(names)
    ]
    return rows, {row.case: number // 2 % 2 for number, row in enumerate(rows)}


@pytest.mark.parametrize("seed", range(5))
def test_near_equal_ids_share_a_fold_and_are_said(seed: int, tmp_path: Path) -> None:
    rows, labels = near_cohort()
    folds = make_folds(rows, labels, 4, seed)
    pairs = tuple((f"c{number}", f"c{number + 1}") for number in range(0, 16, 2))
    assert all(folds.test[one] == folds.test[other] for one, other in pairs)
    assert (
        set(map(frozenset, folds.near_equal))
        == set(map(frozenset, pairs))
        == set(map(frozenset, near_cases(rows)))
    )
    assert len({row.patient for row in rows}) == 24, "they are not merged"
    write_folds(folds, tmp_path / "folds.json")
    assert read_folds(tmp_path / "folds.json") == folds
    side, _ = folds.split(0)
    train, validation = split_validation(side, rows, labels, 0.4, seed)
    assert validation
    assert all((one in train) == (other in train) for one, other in pairs if one in side)


def test_folds_of_a_file_that_part_near_equal_ids_are_refused() -> None:
    rows, labels = near_cohort()
    folds = make_folds(rows, labels, 4, seed=1)
    check_folds(folds, rows)
    moved = folds.model_copy(update={"test": folds.test | {"c1": (folds.test["c0"] + 1) % 4}})
    with pytest.raises(CohortError, match=r"leakage: .*the near-equal patient in c0 and c1"):
        check_folds(moved, rows)
    with pytest.raises(CohortError, match=r"leakage: .*near-equal patient"):
        audit({row.case: {"patient": row.patient} for row in rows}, moved)


def test_near_equal_ids_of_two_sites_are_named() -> None:
    rows, labels = near_cohort()
    with pytest.raises(
        CohortError,
        match=r"8 of them; ids are near-equal in c[0-9]+ and c[0-9]+: if they are two persons",
    ):
        make_folds(rows, labels, 2, seed=1, by_site=True)


def test_folds_of_a_cohort_without_near_equal_ids_stay_what_they_were() -> None:
    assert near_groups(["b", "a", "c1", "c2", "a"]) == {
        name: name for name in ("a", "b", "c1", "c2")
    }
    rows, labels = cohort({0: 8, 1: 8}, scans=2)
    assert make_folds(rows, labels, 4, seed=1).near_equal == ()
