"""What a study says about cases that its models may have been trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tf_covid.weights.seen import Sighting

#: Who had been trained on the cases: the models themselves, or the weights that a training started
#: from.
MODEL, START = "the model", "the weights that training started from"


def as_seen(sightings: Sequence[Sighting], cases: int) -> dict[str, Any]:
    """What the files of a study's models say about its cases, ready for JSON.

    Args:
        sightings: What the file of each model says.
        cases: Number of cases that were answered.

    Returns:
        `cases`, their number; `seen`, those that at least one model was trained on;
        `patients_seen`, those whose patient one was trained on, None where no file keeps patients;
        `unchecked`, model → what could not be checked.
    """
    kept = [one.patients for one in sightings if one.patients is not None]
    return {
        "cases": cases,
        "seen": list(dict.fromkeys(case for one in sightings for case in one.cases)),
        "patients_seen": (
            list(dict.fromkeys(case for part in kept for case in part)) if kept else None
        ),
        "unchecked": {one.model: list(one.unchecked) for one in sightings if one.unchecked},
    }


def seen_sentences(seen: Mapping[str, Any] | None, who: str = MODEL) -> list[str]:
    """What a reader must know before the figures; empty where all was checked and nothing found.

    Args:
        seen: Result of `as_seen`; None where training started at random.
        who: `MODEL` or `START`.
    """
    if seen is None:
        return []
    sentences, of = [], seen["cases"]
    if count := len(seen["seen"]):
        sentences.append(
            f"{count} of {of} scans were in the training set of {who}: what it answers on them says"
            " nothing about new patients."
        )
    others = [case for case in seen["patients_seen"] or () if case not in seen["seen"]]
    if others:
        sentences.append(
            f"{len(others)} more of {of} scans are of patients that {who} was trained on."
        )
    if seen["unchecked"]:
        why = "; ".join(
            f"{model}: {', '.join(parts)}" for model, parts in seen["unchecked"].items()
        )
        rest = "the others" if count else "these scans"
        sentences.append(f"Whether {who} had been trained on {rest} could not be checked ({why}).")
    return sentences


def seen_in_short(seen: Mapping[str, Any] | None) -> str:
    """The addition to “a frozen model” in the head of the page.

    Args:
        seen: Result of `as_seen`; None where it is not known.
    """
    if seen is None:
        return ""
    if count := len(seen["seen"]):
        return f", trained on {count} of these scans"
    if others := len(seen["patients_seen"] or ()):
        return f", trained on patients of {others} of these scans"
    return (
        ", trained on what could not be checked"
        if seen["unchecked"]
        else ", not trained on these scans"
    )
