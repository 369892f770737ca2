"""How fine a mask's grid may be: what it could reach at best, and what it costs.

No network is trained here.
"""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf
from sanity import dice
from tables import mean, number, say, table

from tf_covid.layers.resample import full_axis_matrix, in_plane
from tf_covid.models import UNet
from tf_covid.phantom import draw_chest
from tf_covid.phantom.mark import UNSEEN

SIDES = (64, 96, 128, 160, 192, 256)
FILTERS = (8, 12, 16)
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}

#: Slices timed, at a time, and the slices that the time is given for.
TIMED, CHUNK, SLICES = 32, 16, 300
REPEATS = 3

SHAPE, CHESTS = (60, 512, 512), 5

HEADER = (
    *("grid", "ceiling of Dice, mean", "lowest"),
    *(f"{filters} filters, {precision}, s" for filters in FILTERS for precision in PRECISIONS),
)


def grid_table() -> str:
    """A row a grid: ceiling of Dice, seconds for 300 slices of every width and precision."""
    ceilings: dict[int, list[float]] = {side: [] for side in SIDES}
    for seed in range(UNSEEN, UNSEEN + CHESTS):
        lungs = draw_chest(seed, SHAPE, severity=seed % 5).lungs > 0
        for side in SIDES:
            ceilings[side].append(ceiling(lungs, side))
        say(f"ceilings of {seed - UNSEEN + 1} of {CHESTS} chests")
    rows = []
    for side, found in ceilings.items():
        times = [
            seconds(side, filters, policy) for filters in FILTERS for policy in PRECISIONS.values()
        ]
        rows.append(
            [
                f"{side}×{side}",
                number(mean(found), 4),
                number(min(found), 4),
                *(f"{one:.1f}" for one in times),
            ]
        )
        say(f"timed {side}×{side}")
    return table(HEADER, rows)


def ceiling(lungs: np.ndarray, side: int) -> float:
    """Dice of a true mask with itself, brought onto a grid of `side` cells and back."""
    height, width = lungs.shape[1:]
    down = full_axis_matrix(side, height), full_axis_matrix(side, width)
    up = full_axis_matrix(height, side), full_axis_matrix(width, side)
    found = np.empty_like(lungs)
    for first in range(0, len(lungs), 8):
        planes = lungs[first : first + 8].astype(np.float32)
        coarse = in_plane(down[0], planes, down[1])
        found[first : first + 8] = in_plane(up[0], coarse, up[1]).numpy() > 0.5
    return dice(lungs, found)


def seconds(side: int, filters: int, policy: str) -> float:
    """Time of 300 slices through an untrained U-Net.

    The median of three runs, after one that traces the graph.
    """
    network = UNet((side, side, 1), filters=filters, dtype=policy)
    forward = tf.function(lambda slices: network(slices, training=False)["logits"])
    slices = tf.random.stateless_uniform([CHUNK, side, side, 1], [0, 1])
    forward(slices)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(TIMED // CHUNK):
            forward(slices).numpy()
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * SLICES / TIMED
