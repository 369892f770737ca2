"""A few slices at a time: lattice fields upsampled only where they matter, and painted over one another."""

from __future__ import annotations

import numpy as np

from tf_covid.phantom.fields import Box, Field, Grid, Upsampler, occupancy


class Extents:
    """Where each distance field of a lattice comes near its inside, slice by slice; known once asked for."""

    def __init__(self, fields: dict[str, Field], lattice: Grid, reach_mm: float) -> None:
        self._fields, self._lattice, self._reach = fields, lattice, reach_mm
        self._known: dict[str, np.ndarray] = {}

    def _of(self, name: str) -> np.ndarray:
        """(U, 4) first and last y and x index of the inside in each lattice slice; first > last where empty."""
        if name not in self._known:
            near = np.less(self._fields[name], self._reach)
            found = []
            for lines in (np.any(near, axis=2), np.any(near, axis=1)):
                empty = ~lines.any(axis=1)
                first = np.where(empty, lines.shape[1], lines.argmax(axis=1))
                found += [
                    first,
                    np.where(empty, -1, lines.shape[1] - 1 - lines[:, ::-1].argmax(axis=1)),
                ]
            self._known[name] = np.stack(found, axis=1)
        return self._known[name]

    def box(self, name: str, grid: Grid, slices: slice) -> Box | None:
        """The box, within some slices of a grid, that holds a field's inside; None if there is none."""
        u = np.interp(grid.u[slices], self._lattice.u, np.arange(len(self._lattice.u)))
        rows = self._of(name)[int(u[0]) : int(np.ceil(u[-1])) + 1]
        first_y, last_y, first_x, last_x = (
            rows[:, 0].min(),
            rows[:, 1].max(),
            rows[:, 2].min(),
            rows[:, 3].max(),
        )
        if first_y > last_y:
            return None
        axes = self._lattice.y, self._lattice.x
        ends = [
            (float(axis[a]) - self._reach, float(axis[b]) + self._reach)
            for axis, a, b in zip(axes, (first_y, first_x), (last_y, last_x), strict=True)
        ]
        _, height, width = grid.box((0.0, ends[0][0], ends[1][0]), (0.0, ends[0][1], ends[1][1]))
        return (slices, height, width) if grid.y[height].size and grid.x[width].size else None


class Slab:
    """Some slices of one patient on one grid.

    Args:
        fields: The patient's lattice fields.
        extents: Where they are.
        up: From their lattice to `grid`.
        grid: The grid of the whole scan.
        box: What of the grid this slab holds.
    """

    def __init__(
        self, fields: dict[str, Field], extents: Extents, up: Upsampler, grid: Grid, box: Box
    ) -> None:
        self._fields, self._extents, self._up, self._whole, self._box = (
            fields,
            extents,
            up,
            grid,
            box,
        )
        self.grid = Grid(grid.u[box[0]], grid.y[box[1]], grid.x[box[2]])
        self.width_mm = max(
            float(grid.x[1] - grid.x[0]), 0.6
        )  # the width of every edge: no scanner resolves less
        self._known: dict[str, Field] = {}

    def read(self, name: str) -> Field:
        """A field on the whole slab."""
        if name not in self._known:
            self._known[name] = self._up(self._fields[name], self._box)
        return self._known[name]

    def part(self, name: str) -> tuple[Slab, Box] | None:
        """The part of this slab that holds the inside of a field, and its place here; None if there is none."""
        found = self._extents.box(name, self._whole, self._box[0])
        if found is None:
            return None
        spans = []
        for inner, outer in zip(found[1:], self._box[1:], strict=True):
            whole = range(10**9)[outer]
            spans.append(slice(max(inner.start, whole.start), min(inner.stop, whole.stop)))
        if any(span.start >= span.stop for span in spans):
            return None
        inner_slab = Slab(
            self._fields, self._extents, self._up, self._whole, (self._box[0], spans[0], spans[1])
        )
        offsets = [self._box[1].start or 0, self._box[2].start or 0]
        place = [
            slice(span.start - o, span.stop - o) for span, o in zip(spans, offsets, strict=True)
        ]
        return inner_slab, (slice(None), place[0], place[1])

    def paint(
        self,
        hu: Field,
        name: str,
        value: Field | float,
        *,
        inset_mm: float = 0.0,
        edge_mm: float | None = None,
    ) -> None:
        """Paint `value` over the inside of a field, made smaller by `inset_mm`; in place."""
        found = self.part(name)
        if found is None:
            return
        inner, place = found
        share = occupancy(inner.read(name) + inset_mm, edge_mm or self.width_mm)
        blend(hu[place], share, value[place] if isinstance(value, np.ndarray) else value)


def blend(hu: Field, share: Field, value: Field | float) -> None:
    """`value` where `share` is 1, `hu` where it is 0, mixed between; in place."""
    difference = value - hu
    difference *= share
    hu += difference
