"""Branching vessels and bronchi: trees grown to targets in the lung, and their exact-volume rasterisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tf_covid.phantom.fields import Field, Grid


@dataclass(frozen=True)
class Tree:
    """Straight segments of a branching tree.

    Args:
        start, stop: (N, 3) ends (u, y, x) in mm.
        radius: (N,) mm.
        level: (N,) generation, 0 at the root.
    """

    start: np.ndarray
    stop: np.ndarray
    radius: np.ndarray
    level: np.ndarray

    def select(self, chosen: np.ndarray) -> Tree:
        """The segments where `chosen` is true."""
        return Tree(self.start[chosen], self.stop[chosen], self.radius[chosen], self.level[chosen])


def together(trees: list[Tree]) -> Tree:
    """Several trees as one."""
    return Tree(
        *(
            np.concatenate([getattr(t, name) for t in trees])
            for name in ("start", "stop", "radius", "level")
        )
    )


def grow(
    root: np.ndarray, targets: np.ndarray, root_mm: float, exponent: float, rng: np.random.Generator
) -> Tree:
    """Grow a tree from `root` towards `targets`, (2**k, 3): each branch serves the half of its targets on its side.

    Every generation splits each group across its longest direction and walks part of the way to the new groups'
    centres; radii follow Murray's law, r**exponent conserved over a bifurcation.
    """
    groups = targets[None].astype(np.float32)
    tips = root[None].astype(np.float32)
    total = len(targets)
    starts, stops, radii, levels = [], [], [], []
    level = 0
    while True:
        count, size, _ = groups.shape
        centres = groups.mean(axis=1)
        low, high = (0.35, 0.62) if size > 1 else (1.0, 1.0)  # the last ones arrive
        share = np.asarray(rng.uniform(low, high, count), np.float32)
        ends = tips + share[:, None] * (centres - tips)
        bend = rng.standard_normal((count, 3), dtype=np.float32)
        length = np.linalg.norm(ends - tips, axis=1, keepdims=True)
        middles = 0.5 * (tips + ends) + 0.09 * length * bend
        mean = root_mm * (size / total) ** (1.0 / exponent)
        radius = np.asarray(mean * rng.uniform(0.85, 1.15, count), np.float32)
        starts += [tips, middles]
        stops += [middles, ends]
        radii += [radius, radius * 0.95]
        levels += [np.full(count, level)] * 2
        if size == 1:
            break
        spread = groups - centres[:, None]
        axes = np.linalg.eigh(np.einsum("gni,gnj->gij", spread, spread))[1][:, :, 2]
        order = np.argsort(np.einsum("gni,gi->gn", spread, axes), axis=1)
        groups = np.take_along_axis(groups, order[:, :, None], axis=1).reshape(
            count * 2, size // 2, 3
        )
        tips = np.repeat(ends, 2, axis=0)
        level += 1
    return Tree(
        np.concatenate(starts), np.concatenate(stops), np.concatenate(radii), np.concatenate(levels)
    )


def _paint_thin(volume: Field, grid: Grid, tree: Tree) -> None:
    """Add segments thinner than a voxel as the volume that they fill, spread over the eight nearest voxels."""
    axes = (grid.u, grid.y, grid.x)
    steps = np.array([float(a[1] - a[0]) for a in axes], np.float32)
    length = np.linalg.norm(tree.stop - tree.start, axis=1)
    pieces = np.maximum(np.ceil(length / (0.6 * steps.min())), 1).astype(int)
    owner = np.repeat(np.arange(len(pieces)), pieces)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    t = ((within + 0.5) / pieces[owner]).astype(np.float32)[:, None]
    place = tree.start[owner] * (1 - t) + tree.stop[owner] * t
    place = (place - np.array([a[0] for a in axes], np.float32)) / steps
    share = np.pi * tree.radius[owner] ** 2 * (length / pieces)[owner] / steps.prod()
    base = np.floor(place).astype(np.intp)
    inside = np.all((base >= 0) & (base < np.array(volume.shape) - 1), axis=1)
    base, place, share = base[inside], place[inside], share[inside]
    part = place - base
    flat = np.ravel_multi_index(base.T, volume.shape)
    _, rows, columns = volume.shape
    out = volume.reshape(-1)
    for corner in range(8):
        d, h, w = corner >> 2 & 1, corner >> 1 & 1, corner & 1
        weight = share.copy()
        for axis, bit in enumerate((d, h, w)):
            weight *= part[:, axis] if bit else 1.0 - part[:, axis]
        np.add.at(out, flat + (d * rows + h) * columns + w, weight.astype(np.float32))


def _paint_thick(volume: Field, grid: Grid, tree: Tree, soft_mm: float) -> None:
    """Raise voxels to the occupancy of capsules, each within its own box."""
    low = np.minimum(tree.start, tree.stop) - tree.radius[:, None] - soft_mm
    high = np.maximum(tree.start, tree.stop) + tree.radius[:, None] + soft_mm
    step = tree.stop - tree.start
    squared = np.maximum((step**2).sum(axis=1), 1e-6)
    for n in range(len(tree.radius)):
        box = grid.box(low[n], high[n])
        target = volume[box]
        if target.size == 0:
            continue
        du = grid.u[box[0]] - tree.start[n, 0]
        dy = grid.y[box[1]] - tree.start[n, 1]
        dx = grid.x[box[2]] - tree.start[n, 2]
        su, sy, sx = step[n] / squared[n]
        t = (du * su)[:, None, None] + (dy * sy)[:, None] + dx * sx
        np.clip(t, 0.0, 1.0, out=t)
        gap = (du * du)[:, None, None] + (dy * dy)[:, None] + dx * dx
        reach = ((du * su)[:, None, None] + (dy * sy)[:, None] + dx * sx) * 2.0 * t - t * t
        gap -= squared[n] * reach
        np.sqrt(np.maximum(gap, 0.0, out=gap), out=gap)
        gap -= tree.radius[n]
        gap *= -1.0 / soft_mm
        gap += 0.5
        np.clip(gap, 0.0, 1.0, out=gap)
        np.maximum(target, gap, out=target)


def paint(volume: Field, grid: Grid, tree: Tree) -> None:
    """Paint a tree's occupancy, 0–1, onto a regular grid: thin branches by their volume, thick ones by their shape."""
    coarse = max(float(axis[1] - axis[0]) for axis in (grid.u, grid.y, grid.x))
    fine = float(grid.x[1] - grid.x[0])
    thick = tree.radius > 0.55 * coarse
    _paint_thin(volume, grid, tree.select(~thick))
    np.minimum(volume, 1.0, out=volume)
    _paint_thick(volume, grid, tree.select(thick), max(fine, 0.5))


def paint_slab(grid: Grid, tree: Tree) -> Field | None:
    """A tree's occupancy on some slices of a larger grid, as if its neighbours were there; None where it is empty."""
    padded = Grid(_padded(grid.u), grid.y, grid.x)
    near = within(tree, (float(padded.u[0]), float(padded.u[-1])))
    if not len(near.radius):
        return None
    share = np.zeros(padded.shape, np.float32)
    paint(share, padded, near)
    return share[1:-1]


def _padded(axis: np.ndarray) -> np.ndarray:
    """An axis with one more point on each side, so that slabs see the branches that cross into them."""
    step = axis[-1] - axis[-2] if len(axis) > 1 else np.float32(1.0)
    return np.concatenate([[axis[0] - step], axis, [axis[-1] + step]]).astype(np.float32)


def within(tree: Tree, near: tuple[float, float]) -> Tree:
    """The segments that reach into a range of u, with a margin for their radius."""
    low = np.minimum(tree.start[:, 0], tree.stop[:, 0]) - tree.radius - 2.0
    high = np.maximum(tree.start[:, 0], tree.stop[:, 0]) + tree.radius + 2.0
    return tree.select((high > near[0]) & (low < near[1]))
