"""Unseen synthetic chests, drawn once, on disk: what the measuring programs measure on.

A case is a `.npz` of HU and truth; a killed run continues where it was. They lie in a folder that
carries the mark of the phantom that drew them: those of another phantom are never met.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tf_covid.atomic import replacing
from tf_covid.cohort.workers import end_with_parent
from tf_covid.phantom.cohort import draw_readable
from tf_covid.phantom.mark import phantom_mark

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DrawnCase:
    """One synthetic scan with its truth.

    Args:
        seed: Seed of the chest.
        hu: int16 (D, H, W).
        lungs: bool (D, H, W).
        lesions: bool (D, H, W).
        lobes: uint8 (D, H, W), 1–5 in the order of `severity.LOBES`.
        tissues: uint8 (D, H, W), numbers of `tissues.TISSUES`.
        lobe_scores: Five scores of 0–5.
        ct_score: 0–25.
        severity: 0–4.
        spacing_mm: Voxel size along (D, H, W).
        settings: What was drawn, see `Chest.settings`.
    """

    seed: int
    hu: np.ndarray
    lungs: np.ndarray
    lesions: np.ndarray
    lobes: np.ndarray
    tissues: np.ndarray
    lobe_scores: tuple[int, ...]
    ct_score: int
    severity: int
    spacing_mm: tuple[float, float, float]
    settings: dict[str, Any]


def cases_folder(folder: Path) -> Path:
    """Where in `folder` the cases of this phantom lie."""
    return folder / f"phantom-{phantom_mark()}"


def draw_cases(folder: Path, seeds: range, *, workers: int = 2) -> None:
    """Draw the cases of `seeds` that are not there yet, in several processes.

    Args:
        folder: Where `cases_folder` is made, if needed, for the `.npz` files.
        seeds: A case a seed.
        workers: Number of processes.
    """
    cases_folder(folder).mkdir(parents=True, exist_ok=True)
    missing = [seed for seed in seeds if not _path(folder, seed).exists()]
    log.info("%d of %d cases are there", len(seeds) - len(missing), len(seeds))
    if not missing:
        return
    # A process each, so one BLAS thread each; spawned, since TensorFlow may already run threads in
    # this process.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        for index, _ in enumerate(
            pool.map(_draw, [folder] * len(missing), missing, chunksize=4), 1
        ):
            if index % 100 == 0:
                log.info("drawn %d of %d", index, len(missing))


def read_case(folder: Path, seed: int) -> DrawnCase:
    """One case that `draw_cases` wrote."""
    with np.load(_path(folder, seed)) as file:
        shape = file["hu"].shape
        masks = (
            np.unpackbits(file["masks"], axis=1)[:, : int(np.prod(shape))]
            .reshape(2, *shape)
            .astype(bool)
        )
        scores = tuple(int(score) for score in file["lobe_scores"])
        d, h, w = (float(side) for side in file["spacing_mm"])
        settings = json.loads(str(file["settings"]))
        truth = int(file["ct_score"]), int(file["severity"])
        return DrawnCase(
            seed,
            file["hu"],
            masks[0],
            masks[1],
            file["lobes"],
            file["tissues"],
            scores,
            *truth,
            (d, h, w),
            settings,
        )


def read_cases(folder: Path, seeds: range) -> Iterator[DrawnCase]:
    """Cases in the order of their seeds."""
    return (read_case(folder, seed) for seed in seeds)


def _path(folder: Path, seed: int) -> Path:
    return cases_folder(folder) / f"{seed:08d}.npz"


def case_shape(seed: int) -> tuple[int, int, int]:
    """Grid of a training case: 112–160 pixels a side, 28–64 slices.

    Small, so that thousands fit into an hour.
    """
    rng = np.random.default_rng([seed, 0xCA5E])
    side = int(rng.integers(7, 11)) * 16
    return int(rng.integers(28, 65)), side, side


def _draw(folder: Path, seed: int) -> None:
    # The class follows from the seed, so that any range of seeds is balanced.
    chest = draw_readable(seed, case_shape(seed), severity=seed % 5)
    path = _path(folder, seed)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            hu=chest.hu,
            masks=np.packbits(np.stack([chest.lungs > 0, chest.lesions]).reshape(2, -1), axis=1),
            lobes=chest.lobes,
            tissues=chest.tissues,
            lobe_scores=np.asarray(chest.lobe_scores, np.uint8),
            ct_score=np.uint8(chest.ct_score),
            severity=np.uint8(chest.severity),
            spacing_mm=np.asarray(chest.spacing_mm, np.float32),
            settings=json.dumps(chest.settings, default=float),
        )
