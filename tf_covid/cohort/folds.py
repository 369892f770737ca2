"""Who is trained on and who is tested on.

Folds by patient, and the audit that no patient is on both sides.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tf_covid.atomic import write_text
from tf_covid.cohort.likeness import near_groups, near_key
from tf_covid.cohort.manifest import ManifestRow
from tf_covid.errors import CohortError


class Folds(BaseModel):
    """In which fold each case is tested; it is trained on in all others.

    Written to `folds.json`, to be used again.

    Args:
        kind: "stratified": by class, grouped by patient; "site": one site a fold, left out of its
            training.
        seed: Seed of the stratified folds.
        names: What each fold is called: its number, or the site.
        test: Case → number of its fold, 0 ….
        near_equal: A case of each patient, for patients whose ids are near-equal (`P01` and `p1`)
            and who share a fold for that: perhaps one person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["stratified", "site"]
    seed: int
    names: tuple[str, ...]
    test: dict[str, Annotated[int, Field(ge=0)]]
    near_equal: tuple[tuple[str, ...], ...] = ()

    def split(self, fold: int) -> tuple[list[str], list[str]]:
        """Cases to train on, and cases to test on."""
        train = [case for case, index in self.test.items() if index != fold]
        return train, [case for case, index in self.test.items() if index == fold]


def make_folds(
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    count: int,
    seed: int,
    *,
    by_site: bool = False,
) -> Folds:
    """Folds stratified by class and grouped by patient, or one fold a site.

    Patients whose ids are near-equal stay together like one patient, and stay two otherwise.

    Args:
        rows: The cohort.
        labels: Case → class; a task without classes gives every case the same.
        count: Number of stratified folds.
        seed: Same cohort and seed, same folds.
        by_site: Leave one site out in each fold; `count` is the number of sites then.

    Raises:
        CohortError: If a class has fewer patients than folds, a row has no site, a patient was at
            two sites, or a class is at one site only.
    """
    cases = [row.case for row in rows]
    near = near_cases(rows)
    if by_site:
        sites = _sites(rows)
        names = tuple(sorted(set(sites.values())))
        test = {case: names.index(sites[case]) for case in cases}
        folds = Folds(kind="site", seed=seed, names=names, test=test, near_equal=near)
        check_classes(folds, labels)
        return folds
    groups = near_groups(row.patient for row in rows)
    patients = [groups[row.patient] for row in rows]
    classes = [labels[case] for case in cases]
    _enough(classes, patients, count)
    # Slow to import, and not needed to use folds that are there.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    tested: dict[str, int] = {}
    for fold, (_, chosen) in enumerate(splitter.split(np.zeros(len(cases)), classes, patients)):
        tested |= {cases[index]: fold for index in chosen}
    folds = Folds(
        kind="stratified",
        seed=seed,
        names=tuple(map(str, range(count))),
        test={case: tested[case] for case in cases},
        near_equal=near,
    )
    check_classes(folds, labels)
    return folds


def near_cases(rows: Sequence[ManifestRow]) -> tuple[tuple[str, ...], ...]:
    """A case of each patient, for every group of patients whose ids are near-equal.

    Args:
        rows: The cohort.
    """
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.patient, row.case)
    results: dict[str, list[str]] = defaultdict(list)
    for name, group in near_groups(first).items():
        results[group].append(first[name])
    return tuple(tuple(cases) for cases in results.values() if len(cases) > 1)


def _sites(rows: Sequence[ManifestRow]) -> dict[str, str]:
    if nameless := [row.case for row in rows if not row.site]:
        raise CohortError(
            f"leave-one-site-out needs the site of every case; without one: {_listed(nameless)}"
        )
    where: dict[str, set[str]] = defaultdict(set)
    groups = near_groups(row.patient for row in rows)
    for row in rows:
        where[groups[row.patient]].add(str(row.site))
    if moved := [patient for patient, sites in where.items() if len(sites) > 1]:
        near = [
            cases
            for cases in near_cases(rows)
            if len({row.site for row in rows if row.case in cases}) > 1
        ]
        hint = (
            f"; ids are near-equal in {' and '.join(near[0])}: if they are two persons, rename one"
            if near
            else ""
        )
        raise CohortError(
            f"a patient of two sites would be on both sides of a fold: {len(moved)} of them{hint}"
        )
    sites = {row.case: str(row.site) for row in rows}
    if len(set(sites.values())) < 2:
        raise CohortError(
            f"leave-one-site-out needs two sites at least; all cases are from {rows[0].site!r}"
        )
    return sites


def _enough(classes: Sequence[int], patients: Sequence[str], count: int) -> None:
    """Check that each class has a patient in each fold: a fold tests what it can learn."""
    of_class: dict[int, set[str]] = defaultdict(set)
    for label, patient in zip(classes, patients, strict=True):
        of_class[label].add(patient)
    few = [
        f"class {label} has {len(who)}"
        for label, who in sorted(of_class.items())
        if len(who) < count
    ]
    if few:
        raise CohortError(f"{count} folds need {count} patients of each class; {', '.join(few)}")


def check_folds(folds: Folds, rows: Sequence[ManifestRow]) -> None:
    """That folds from a file are those of this cohort, and keep patients together.

    Raises:
        CohortError: If cases are missing or unknown, or a patient is in two folds.
    """
    cases = {row.case for row in rows}
    if folds.test.keys() != cases:
        missing, unknown = sorted(cases - folds.test.keys()), sorted(folds.test.keys() - cases)
        raise CohortError(
            f"the folds are of another cohort: {len(missing)} case(s) without a fold"
            f" ({_listed(missing)}), {len(unknown)} unknown ({_listed(unknown)})"
        )
    if len(folds.names) < 2 or set(folds.test.values()) != set(range(len(folds.names))):
        raise CohortError(
            f"each of two or more folds needs a case; these are {len(folds.names)}, or one is empty"
        )
    audit({row.case: {"patient": row.patient} for row in rows}, folds)


def check_classes(folds: Folds, labels: Mapping[str, int]) -> None:
    """That each network is taught every class of the cohort.

    A class that is not on the test side is no error: a site may have no severe case. The study's
    metrics are those of all folds together, where it is.

    Args:
        folds: The folds; cases that only they or only the labels know do not count.
        labels: Case → class.

    Raises:
        CohortError: Naming the fold and the class.
    """
    where: dict[int, set[int]] = defaultdict(set)
    for case, fold in folds.test.items():
        if case in labels:
            where[labels[case]].add(fold)
    # A class that is tested in one fold only has nobody in the training of that one.
    if alone := [
        (min(results), label) for label, results in sorted(where.items()) if len(results) == 1
    ]:
        facts = "; ".join(
            f"fold {folds.names[fold]} cannot learn class {label}" for fold, label in alone
        )
        raise CohortError(f"{facts}: all its cases are tested in that fold; choose other folds")


def audit(fingerprints: Mapping[str, Mapping[str, str]], folds: Folds) -> None:
    """Refuse to train where something of a case is on both sides of a fold.

    Args:
        fingerprints: Case → what must not be on both sides, by kind: "patient" (near-equal is the
            same), "study", "pixels" (hashes will do).
        folds: Fold that tests each case.

    Raises:
        CohortError: Naming the kind and the cases.
    """
    seen: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    for case, values in fingerprints.items():
        for kind, value in values.items():
            if value:
                same = near_key(value) if kind == "patient" else value
                seen[kind, same].setdefault(folds.test[case], case)
    leaks = []
    for (kind, _), by_fold in seen.items():
        if len(by_fold) > 1:
            cases = sorted(by_fold.values())
            near = len({fingerprints[case][kind] for case in cases}) > 1
            leaks.append((f"near-equal {kind}" if near else f"same {kind}", cases))
    if leaks:
        facts = "; ".join(f"the {kind} in {' and '.join(cases)}" for kind, cases in leaks[:20])
        more = f"; {len(leaks) - 20} more" if len(leaks) > 20 else ""
        raise CohortError(
            "leakage: cases of different folds share what would be trained and tested on:"
            f" {facts}{more}"
        )


def split_validation(
    cases: Sequence[str],
    rows: Sequence[ManifestRow],
    labels: Mapping[str, int],
    fraction: float,
    seed: int,
) -> tuple[list[str], list[str]]:
    """Split the training side of a fold into training and validation cases, by patient.

    Args:
        cases: Cases of the training side.
        rows: Rows of the cohort's manifest.
        labels: Case → class.
        fraction: Fraction of each class's patients that validate, 0 … 1; at least one patient of a
            class with two or more.
        seed: Seed of the draw; the same cases and seed give the same split.

    Returns:
        Training cases, and validation cases.
    """
    if not fraction:
        return list(cases), []
    groups = near_groups(row.patient for row in rows)
    patient = {row.case: groups[row.patient] for row in rows}
    # A patient with scans of several classes counts for the highest.
    label: dict[str, int] = {}
    for case in cases:
        label[patient[case]] = max(labels[case], label.get(patient[case], 0))
    chosen: set[str] = set()
    rng = np.random.default_rng([seed, 0xF01D])
    for index, total in sorted(Counter(label.values()).items()):
        who = sorted(name for name, value in label.items() if value == index)
        if total > 1:
            chosen |= set(rng.permutation(who)[: min(max(1, round(fraction * total)), total - 1)])
    for index in sorted({labels[case] for case in cases}):
        who = sorted({patient[case] for case in cases if labels[case] == index})
        if chosen.issuperset(who):
            # Of this class there are only earlier scans of patients who got worse: one of them has
            # to be trained on.
            chosen.discard(who[0])
    return [case for case in cases if patient[case] not in chosen], [
        case for case in cases if patient[case] in chosen
    ]


def write_folds(folds: Folds, path: Path) -> None:
    """Write folds as JSON, atomically.

    Raises:
        OutputError: If they cannot be written.
    """
    write_text(folds.model_dump_json(indent=1), path)


def read_folds(path: Path) -> Folds:
    """Folds from a file of `write_folds`.

    Raises:
        CohortError: If it is none.
    """
    try:
        return Folds.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError, RecursionError) as error:
        raise CohortError(f"{path}: holds no folds ({str(error).splitlines()[0]})") from error


def _listed(names: Sequence[str]) -> str:
    return (
        ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        if names
        else "none"
    )
