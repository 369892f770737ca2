"""Everything drawn about one patient and one examination, before any voxel grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tf_covid.phantom import clothing, devices, scanner, tissue
from tf_covid.phantom.anatomy import LATTICE_MM, Anatomy, build, draw_body
from tf_covid.phantom.fields import Field, Grid, meet, tube
from tf_covid.phantom.lesions import Disease, draw_disease, excess
from tf_covid.phantom.settings import Draws, LungSettings, PhantomSettings, draw
from tf_covid.phantom.torso import FAR_MM, hila
from tf_covid.phantom.trees import Tree, grow, together
from tf_covid.severity import LABELS


@dataclass(frozen=True)
class Patient:
    """One patient on the table.

    Args:
        anatomy: Organs as distance fields on a lattice; "excess" among them is the disease's.
        protocol: The examination.
        tissue: HU of the tissues.
        lung: What was drawn about the aerated lung.
        disease: Where it lies.
        vessels: Blood vessels of the lungs, and nodules as segments without length.
        bronchi: Their lumens.
        things: What lies on and under the patient.
        devices: Tubes and metal.
        streams: Random streams for texture and noise.
    """

    anatomy: Anatomy
    protocol: scanner.Protocol
    tissue: Draws
    lung: Draws
    disease: Disease
    vessels: Tree
    bronchi: Tree
    things: clothing.Things
    devices: devices.Devices
    streams: list[np.random.Generator]


def regions(read: Callable[[str], Field]) -> np.ndarray:
    """The lobe number, 1–5 in the order of `severity.LOBES`, that each point has if it is lung; uint8."""
    one = np.uint8(1)
    right = np.where(
        read("right_fissure") > 0.0, np.uint8(3), one + (read("horizontal_fissure") > 0.0)
    )
    left = np.uint8(4) + (read("left_fissure") > 0.0)
    return np.where(read("side") > 0.0, left, right)


def _targets(anatomy: Anatomy, left: bool, count: int, rng: np.random.Generator) -> np.ndarray:
    """(count, 3) random places in one lung, in mm; uniform, so the periphery gets its share."""
    inside = (anatomy.fields["lungs"] < -2.0) & ((anatomy.fields["side"] > 0.0) == left)
    places = np.flatnonzero(inside)
    chosen = places[(rng.random(count) * len(places)).astype(int)]
    lattice = anatomy.lattice
    start = np.array([lattice.u[0], lattice.y[0], lattice.x[0]])
    index = np.stack(np.unravel_index(chosen, inside.shape), axis=1) + rng.uniform(
        -0.5, 0.5, (count, 3)
    )
    return (start + index * LATTICE_MM).astype(np.float32)


def _plumbing(
    anatomy: Anatomy, lung: Draws, settings: LungSettings, rng: np.random.Generator
) -> tuple[Tree, Tree]:
    """Blood vessels (arteries and veins) and bronchi of both lungs."""
    vessels, bronchi = [], []
    for side, hilum in hila(anatomy.p).items():
        root = np.array(hilum)
        for shift in (np.array([-2.0, -3.0, 0.0]), np.array([14.0, -6.0, 0.0])):
            targets = _targets(anatomy, side == "left", 1024, rng)
            vessels.append(
                grow(root + shift, targets, lung["vessel_root_mm"], lung["vessel_exponent"], rng)
            )
        targets = _targets(anatomy, side == "left", 128, rng)
        bronchi.append(
            grow(root + np.array([2.0, 6.0, 0.0]), targets, lung["airway_root_mm"], 2.4, rng)
        )
        nodules = _targets(anatomy, side == "left", 8, rng)
        if lung["nodules"]:
            vessels.append(_dots(nodules, *settings.nodule_mm, rng))
        centres = _targets(anatomy, side == "left", int(rng.integers(4, 40)), rng)
        if lung["buds"]:
            # Tree-in-bud: each twig ends in a tuft of dots.
            tuft = np.repeat(centres, 9, axis=0) + rng.normal(
                0.0, 4.0, (9 * len(centres), 3)
            ).astype(np.float32)
            vessels.append(_dots(tuft, *settings.bud_mm, rng))
    return together(vessels), together(bronchi)


def _dots(places: np.ndarray, low_mm: float, high_mm: float, rng: np.random.Generator) -> Tree:
    """Nodules, as segments without length; small ones are the most frequent."""
    radius = np.exp(rng.uniform(np.log(low_mm), np.log(high_mm), len(places))).astype(np.float32)
    return Tree(places, places + np.float32(0.1), radius, np.full(len(places), 99))


def _carve_hila(anatomy: Anatomy, vessels: Tree) -> None:
    """Take the first branches at the hila out of the lungs: radiologists' masks leave them outside; in place."""
    lattice, lungs = anatomy.lattice, anatomy.fields["lungs"]
    hilum = anatomy.fields["hilum"] = np.full(lungs.shape, FAR_MM, np.float32)
    thick = vessels.select((vessels.level < 2) & (vessels.radius > 3.2))
    for start, stop, radius in zip(thick.start, thick.stop, thick.radius, strict=True):
        box = lattice.box(
            np.minimum(start, stop) - radius - 10.0, np.maximum(start, stop) + radius + 10.0
        )
        part = Grid(lattice.u[box[0]], lattice.y[box[1]], lattice.x[box[2]])
        if lungs[box].size:
            branch = tube(part.points(), [start, stop], float(radius) + 0.5)
            lungs[box] = meet(lungs[box], -branch, 4.0)
            np.minimum(hilum[box], branch, out=hilum[box])


def _lattice(protocol: scanner.Protocol) -> Grid:
    """The lattice that covers a scan, whatever its voxels."""
    axes = [
        np.arange(low - LATTICE_MM, high + 2 * LATTICE_MM, LATTICE_MM, dtype=np.float32)
        for low, high in zip(protocol.low, protocol.high, strict=True)
    ]
    return Grid(*axes)


def draw_patient(seed: int, severity: int | None, settings: PhantomSettings) -> Patient:
    """Draw a patient, with a random stream for each purpose, so that a change of one does not move the others."""
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(8)]
    if severity is None:
        severity = int(streams[0].integers(len(LABELS)))
    body = draw_body(settings.body, streams[1])
    protocol = scanner.draw_protocol(settings.scanner, body, streams[2])
    anatomy = build(body, _lattice(protocol), streams[1])
    lung = draw(settings.lung, streams[3])
    vessels, bronchi = _plumbing(anatomy, lung, settings.lung, streams[3])
    _carve_hila(anatomy, vessels)
    lobes = regions(anatomy.fields.__getitem__)
    aired = (anatomy.fields["lungs"] < 0.0) & (anatomy.fields["mass"] > 0.0)
    disease = draw_disease(settings.disease, severity, anatomy, lobes * aired, streams[4])
    anatomy.fields["excess"] = excess(disease, lobes)
    return Patient(
        anatomy,
        protocol,
        tissue.draw_tissue(body, protocol.p, streams[2]),
        lung,
        disease,
        vessels,
        bronchi,
        clothing.draw_things(protocol, anatomy, streams[5]),
        devices.draw_devices(protocol, anatomy, streams[5]),
        streams[6:],
    )
