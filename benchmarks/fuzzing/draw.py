"""One number → one changed scan, always the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fuzzing import (
    mutate_bombs,
    mutate_bytes,
    mutate_dicom,
    mutate_elements,
    mutate_mix,
    mutate_volumes,
)
from fuzzing.mutation import Changed, Mutation
from fuzzing.seeds import Base

MUTATIONS: tuple[Mutation, ...] = (
    *mutate_elements.MUTATIONS,
    *mutate_dicom.MUTATIONS,
    *mutate_volumes.MUTATIONS,
    *mutate_bytes.MUTATIONS,
    *mutate_mix.MUTATIONS,
    *mutate_bombs.MUTATIONS,
)
#: How often each group is drawn where it fits.
_SHARES = {"structure": 5, "header": 5, "bytes": 3, "cut": 2, "mixture": 3, "container": 6}
#: Bases that are drawn more often: much may be wrong in them that the others share.
_OFTEN = {"explicit": 4, "enhanced": 2, "nifti": 3, "nrrd": 3, "mha": 3}
_MOST_DRAWS = 40
#: Share of the inputs that are bombs; drawn apart, so that a change of it leaves the other inputs
#: what they are.
_BOMBS = 0.01


@dataclass(frozen=True)
class Input:
    """A changed scan and where it came from."""

    number: int
    base: str
    mutation: Mutation
    changed: Changed


def base_of(seed: int, number: int, bases: list[Base]) -> Base:
    """The base that the input of one number is made of."""
    weights = np.array([_OFTEN.get(base.name, 1) for base in bases], dtype=float)
    return bases[
        int(np.random.default_rng([seed, number]).choice(len(bases), p=weights / weights.sum()))
    ]


def draw(seed: int, number: int, bases: list[Base]) -> Input:
    """The input of one number.

    Args:
        seed: Of the whole run.
        number: Of the input.
        bases: All of them, also those that are not read: else the numbers of two checkouts would
            mean different inputs.

    Raises:
        RuntimeError: If no mutation fits, which is a fault of the table of mutations.
    """
    base, rng = base_of(seed, number, bases), np.random.default_rng([seed, number, 1])
    if np.random.default_rng([seed, number, 2]).random() < _BOMBS:
        for mutation in mutate_bombs.MUTATIONS:
            if base.family in mutation.families and (bomb := mutation.apply(rng, base)) is not None:
                return Input(number, base.name, mutation, bomb)
    groups = _groups(base)
    shares = np.array([_SHARES[group] for group in groups], dtype=float)
    for _ in range(_MOST_DRAWS):
        group = groups[int(rng.choice(len(groups), p=shares / shares.sum()))]
        fitting = [one for one in MUTATIONS if one.group == group and base.family in one.families]
        odds = np.array([one.share for one in fitting], dtype=float)
        mutation = fitting[int(rng.choice(len(fitting), p=odds / odds.sum()))]
        changed = mutation.apply(rng, base)
        if changed is not None and (
            changed.archive is not None or changed.base.members != base.members
        ):
            return Input(number, base.name, mutation, changed)
    raise RuntimeError(f"{base.name}: no mutation fits after {_MOST_DRAWS} draws")


def _groups(base: Base) -> list[str]:
    found = {one.group for one in MUTATIONS if base.family in one.families}
    return sorted(found - {"bombs"} if base.pack else found - {"bombs", "container"})


def put(base: Base, folder: Path, archive: bytes | None = None) -> Path:
    """Write a scan into an empty folder, and give the path that is to be read."""
    if base.pack:
        path = folder / base.path
        path.write_bytes(base.packed() if archive is None else archive)
        return path
    for name, data in base.members:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return folder / base.path if base.path else folder
