"""Which scans a network was trained on.

Salted fingerprints in its file, and whether a cohort has some of them.

A fingerprint is a hash of a scan's voxels, int16 HU in the one order that `tf_covid.scan` reads
them in, behind a salt that stands beside it. No scan follows from it; but who holds a scan can test
whether it was in the training set (docs/training.md says so).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from tf_covid.weights import catalog
from tf_covid.weights.contract import Contract, TrainedOn

#: Hex digits of a fingerprint, 64 bits: two of a million scans meet by chance with a probability of
#: 3·10⁻⁸.
_DIGITS = 16

#: What a file of before the fingerprints, or of somebody else, leaves open.
UNSAID = "the file does not say which scans it was trained on"

#: What the programs begin their origin with that train on synthetic chests.
_PHANTOM = "tf_covid.training."


@dataclass(frozen=True)
class Sighting:
    """What a model file says about the scans of a cohort.

    Args:
        model: Name of the model.
        cases: Cases whose voxels it was trained on, in the order of the cohort.
        patients: Cases whose patient it was trained on; None where the file keeps no patients.
        unchecked: What could not be checked, a sentence each.
    """

    model: str
    cases: tuple[str, ...]
    patients: tuple[str, ...] | None
    unchecked: tuple[str, ...]


def fingerprints(pixels: Iterable[str], patients: Iterable[str] = (), *, seed: int) -> TrainedOn:
    """Salted fingerprints of a training set.

    Args:
        pixels: sha256 (hex) of the voxels of each scan.
        patients: Id of each patient; kept by option only.
        seed: Seed of the run. The salt follows from it and from the scans, so that a run that is
            resumed writes the same file; without the scans nobody can foresee it.
    """
    hashes = sorted(set(pixels))
    seeded = "\n".join([f"trained on, seed {seed}", *hashes])
    salt = hashlib.sha256(seeded.encode()).hexdigest()[:32]
    return TrainedOn(
        salt=salt,
        scans=tuple(sorted(_fingerprint(salt, "scan", pixel_hash) for pixel_hash in hashes)),
        patients=tuple(sorted({_fingerprint(salt, "patient", one) for one in patients})),
    )


def _fingerprint(salt: str, kind: str, pixel_hash: str) -> str:
    return hashlib.sha256(f"{salt} {kind} {pixel_hash}".encode()).hexdigest()[:_DIGITS]


def ancestors(name: str, contract: Contract) -> tuple[TrainedOn, ...]:
    """What a network that starts from a file keeps of it.

    Its fingerprints, and what it leaves open.
    """
    if contract.trained_on is not None:
        return contract.trained_on
    return (
        TrainedOn(
            unchecked=f"the weights that it started from ({name}): {_unsaid(name, contract)}"[:500]
        ),
    )


def look(
    name: str, contract: Contract, pixels: Mapping[str, str], patients: Mapping[str, str]
) -> Sighting:
    """Whether a model was trained on scans of a cohort.

    Args:
        name: Name of the model.
        contract: Contract of the model file.
        pixels: Case → sha256 (hex) of its voxels.
        patients: Case → patient's id.
    """
    parts = contract.trained_on
    if parts is None:
        return Sighting(name, (), None, (_unsaid(name, contract),))
    salted = [part for part in parts if part.salt is not None]
    cases = _among([(str(part.salt), frozenset(part.scans)) for part in salted], "scan", pixels)
    keeps = any(part.patients for part in parts)
    ids = {case: patients[case] for case in pixels if case in patients}
    known = _among([(str(part.salt), frozenset(part.patients)) for part in salted], "patient", ids)
    unchecked = tuple(dict.fromkeys(part.unchecked for part in parts if part.unchecked))
    return Sighting(name, cases, known if keeps else None, unchecked)


def _among(
    held: Sequence[tuple[str, frozenset[str]]], kind: str, hashes: Mapping[str, str]
) -> tuple[str, ...]:
    """Cases whose hash is among the fingerprints (salt, fingerprints)."""
    return tuple(
        case
        for case, pixel_hash in hashes.items()
        if any(_fingerprint(salt, kind, pixel_hash) in known for salt, known in held)
    )


def _unsaid(name: str, contract: Contract) -> str:
    """Why a file without fingerprints cannot be compared.

    Those of synthetic chests say how these are drawn again.
    """
    if not contract.origin.startswith(_PHANTOM):
        return UNSAID
    return f"it was trained on synthetic chests drawn from {_seeds(name)}"


def _seeds(name: str) -> str:
    """The seeds that the model card of a shipped model names."""
    path = catalog.shipped().get(name)
    model_card = path.with_name(catalog.CARD) if path else None
    text = model_card.read_text("utf-8") if model_card and model_card.is_file() else ""
    counts = [int(after.split()[0]) for after in text.split("--train ")[1:]]
    return (
        f"seeds 0 to {max(counts) - 1} (its model card has the commands)"
        if counts
        else "seeds of tf_covid.phantom"
    )
