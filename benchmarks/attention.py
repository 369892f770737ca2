"""Does the attention look where the disease is?

Every way to make a map, on unseen synthetic chests with disease.

    python benchmarks/attention.py [--cases 60] [--checks 15] [--folder build/unseen] [--model
    severity-i3d]

Prints Markdown tables and puts them into docs/attention.md, which says how to read them. Shipped
severity models are measured one after the other; `--model` takes a name or a `.keras` file instead.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault(
    "OPENBLAS_NUM_THREADS", "1"
)  # small products: on a busy machine its threads wait for each other

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import click
import keras
import numpy as np
import tensorflow as tf
from cases import DrawnCase
from scipy import ndimage
from tables import DOCS, Page, mean, number, percent, say, shipped, table, unseen

from tf_covid import attention
from tf_covid.attention.trust import centre_of_lung, energy_inside, pointing_game
from tf_covid.layers import HUWindow
from tf_covid.local import LocalModels
from tf_covid.lungs import read_lungs
from tf_covid.models import NETWORKS
from tf_covid.phantom.mark import UNSEEN
from tf_covid.pipeline import gate, refuses

ENDPOINTS = {"i3d": ("Mixed_5c", "Mixed_4f", "Mixed_3c"), "ltc": ("conv5", "conv4", "conv3")}
TARGETS = ("severity", "class")
METHODS = ("gradcam", "gradcam++", "layercam")
TOLERANCE_MM = 15.0
CLASSES = (1, 2, 3, 4)  # class 0 has no lesion to look at

#: Random networks that the checks share out among their chests.
RANDOM = 3


class Way(NamedTuple):
    """One way to make a map."""

    endpoint: str
    target: str
    method: str


@dataclass(frozen=True)
class Seen:
    """One scan as the network meets it.

    Clip, what brings a map back, lungs uint8 (D, H, W), predicted class, and the CT score, NaN
    where the network has none.
    """

    clip: Any
    keep: np.ndarray
    box: np.ndarray
    lungs: np.ndarray
    number: int
    ct_score: float


@dataclass(frozen=True)
class Look:
    """What a map found of the lesions, and how much of it lay within the lungs.

    Args:
        near: Whether its maximum lies within a lesion, or no farther from one than the tolerance.
        inside: Whether its maximum lies within a lesion.
        energy: Fraction of the map within lesions.
        density: That, over the fraction of an even map.
        in_lungs: Fraction of the map within the lungs before it was cut to them.
        empty: Whether the map is zero everywhere.
    """

    near: float
    inside: float
    energy: float
    density: float
    in_lungs: float = float("nan")
    empty: bool = False


class Explainer:
    """One network, cut at each of its endpoints; the backbone runs once for all of them."""

    def __init__(self, source: str) -> None:
        self.models = LocalModels([source])
        self.member = self.models.members[0]
        self.name, self.contract = self.member.model.name, self.member.model.contract
        self.network = self.member.model.network
        self.default = self.member.split.endpoint
        names = {layer.name for layer in self.network.layers}
        usual = [name for name in ENDPOINTS[self.contract.model] if name in names]
        cuts = {name: _cut(self.network, name) for name in dict.fromkeys([*usual, self.default])}
        # Those that all of the answer comes through.
        self._heads = {name: cut for name, cut in cuts.items() if cut is not None}
        self.endpoints = tuple(self._heads)
        self.ways = [Way(*way) for way in product(self.endpoints, TARGETS, METHODS)]
        self._axes = {name: attention.feature_axes(self.network, name) for name in self.endpoints}
        outputs = [self.network.get_layer(name).output for name in self.endpoints]
        self._backbone = tf.function(keras.Model(self.network.input, outputs))

    def see(self, hu: np.ndarray, spacing_mm: tuple[float, float, float]) -> Seen | None:
        """What the network sees of a scan; None where it would be refused."""
        probability = self.models.segment(hu).probability
        prepared = self.member.prepare(hu[np.newaxis], probability[np.newaxis])
        keep, box = prepared["keep"].numpy()[0], prepared["box"].numpy()[0]
        lungs = read_lungs(hu, probability, keep, spacing_mm).voxels.sides
        if refuses(gate(self.models, probability, spacing_mm)) or not lungs.any():
            return None
        answer = self.network(prepared["clip"], training=False)
        score = float(answer["ct_score"].numpy()[0, 0]) if "ct_score" in answer else np.nan
        number = int(answer["logits"].numpy()[0].argmax())
        return Seen(prepared["clip"], keep, box, lungs, number, score)

    def maps(self, seen: Seen) -> Iterator[tuple[Way, np.ndarray, float | None]]:
        """Every way's map uint8 (D, H, W), and the share of it that lay within the lungs."""
        # Of one endpoint Keras makes no list.
        outputs = tf.nest.flatten(self._backbone(seen.clip, training=False))
        features = dict(zip(self.endpoints, outputs, strict=True))
        targets = {
            "severity": attention.expected_class,
            "class": attention.class_logit(seen.number),
        }
        clip = self.network.input_shape[1:4]
        for way in self.ways:
            raw = attention.attention_map(
                self._heads[way.endpoint], features[way.endpoint], targets[way.target], way.method
            )
            yield (
                way,
                *attention.onto_scan(
                    raw, self._axes[way.endpoint], clip, seen.keep, seen.box, seen.lungs
                ),
            )

    @contextmanager
    def randomised(self, seed: int, *, head_only: bool) -> Iterator[None]:
        """The network with random weights behind the endpoint of `infer`, or everywhere."""
        keras.utils.set_random_seed(seed)
        fresh = NETWORKS[self.contract.model].build(**self.contract.arguments)
        trained = self.network.get_weights()
        for layer in (self.member.split.head if head_only else self.network).layers:
            layer.set_weights(fresh.get_layer(layer.name).get_weights() if layer.weights else [])
        try:
            yield
        finally:
            self.network.set_weights(trained)


def _cut(network: keras.Model, endpoint: str) -> attention.Split | None:
    """The network cut at an endpoint; None where it cannot be."""
    try:
        return attention.split(network, endpoint)
    except ValueError:
        return None


def look(
    volume: np.ndarray,
    lesions: np.ndarray,
    lungs: np.ndarray,
    case: DrawnCase,
    in_lungs: float | None,
) -> Look:
    """Hold one map against the truth."""
    energy = energy_inside(volume, lesions)
    return Look(
        near=pointing_game(volume, lesions, case.spacing_mm, TOLERANCE_MM),
        inside=pointing_game(volume, lesions, case.spacing_mm, 0.0),
        energy=energy,
        density=energy / (np.count_nonzero(lesions) / np.count_nonzero(lungs)),
        in_lungs=float("nan") if in_lungs is None else in_lungs,
        empty=not volume.any(),
    )


def blind(lesions: np.ndarray, lungs: np.ndarray, case: DrawnCase) -> dict[Way | str, Look]:
    """What needs no network.

    A lung's centre, the picture itself, and the lungs painted evenly (hits of chance).
    """
    share = np.count_nonzero(lesions) / np.count_nonzero(lungs)
    off_mm = ndimage.distance_transform_edt(~lesions, sampling=case.spacing_mm)
    chance = float((off_mm[lungs > 0] <= TOLERANCE_MM).mean())
    grey = (255 * HUWindow()(case.hu).numpy()).astype(np.uint8)
    centre, picture = (
        look(volume, lesions, lungs, case, None)
        for volume in (
            centre_of_lung(lungs, case.spacing_mm),
            np.where(lungs > 0, grey, np.uint8(0)),
        )
    )
    even = Look(chance, share, share, 1.0)
    return {
        "centre of the larger lung": centre,
        "the scan in its window": picture,
        "lungs painted evenly": even,
    }


def correlation(one: np.ndarray, other: np.ndarray, lungs: np.ndarray) -> float:
    """Pearson's r of two maps over the voxels of the lungs.

    0 where one of them is empty or even.
    """
    a, b = (volume[lungs > 0].astype(np.float32) for volume in (one, other))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else 0.0


Checks = dict[str, dict[Way, list[float]]]


def check(
    explainer: Explainer,
    case: DrawnCase,
    seen: Seen,
    original: dict[Way, np.ndarray],
    found: Checks,
    score_changes: list[float],
) -> None:
    """Correlate each map with those of randomised networks and with that of the mirrored scan.

    How much the CT score of the mirrored scan differs is added to `score_changes`.
    """
    for name, head_only in (("head", True), ("everything", False)):
        with explainer.randomised(case.seed % RANDOM, head_only=head_only):
            for way, volume, _ in explainer.maps(seen):
                found[name][way].append(correlation(original[way], volume, seen.lungs))
    mirrored = explainer.see(np.ascontiguousarray(case.hu[..., ::-1]), case.spacing_mm)
    if mirrored is not None:
        lungs = np.maximum(seen.lungs, mirrored.lungs[..., ::-1])
        for way, volume, _ in explainer.maps(mirrored):
            found["mirror"][way].append(correlation(original[way], volume[..., ::-1], lungs))
        score_changes.append(abs(mirrored.ct_score - seen.ct_score))


@dataclass
class Findings:
    """Everything measured on one network.

    (class, look) for each way and each blind map, and the checks.
    """

    looks: dict[Way | str, list[tuple[int, Look]]]
    checks: Checks
    score_changes: list[float] = field(default_factory=list)
    left_out: int = 0


def measure(explainer: Explainer, folder: Path, cases: int, checks: int) -> Findings:
    """Go through the chests."""
    found = Findings(
        {}, {name: {way: [] for way in explainer.ways} for name in ("head", "everything", "mirror")}
    )
    rounds = -(-cases // len(CLASSES))  # seeds go through the five classes in turn
    for case in unseen(folder, range(UNSEEN, UNSEEN + 5 * rounds)):
        if case.severity not in CLASSES:
            continue
        seen = explainer.see(case.hu, case.spacing_mm)
        lesions = case.lesions & (seen.lungs > 0) if seen is not None else np.zeros(1, bool)
        if seen is None or not lesions.any():
            found.left_out += 1
            continue
        made = {way: (volume, share) for way, volume, share in explainer.maps(seen)}
        looks = blind(lesions, seen.lungs, case)
        looks |= {
            way: look(volume, lesions, seen.lungs, case, share)
            for way, (volume, share) in made.items()
        }
        for who, one in looks.items():
            found.looks.setdefault(who, []).append((case.severity, one))
        if len(found.checks["head"][explainer.ways[0]]) < checks:
            check(
                explainer,
                case,
                seen,
                {way: volume for way, (volume, _) in made.items()},
                found.checks,
                found.score_changes,
            )
    return found


def of_class(looks: Sequence[tuple[int, Look]], number: int) -> float:
    """Median density within lesions among the chests of one class."""
    values = [one.density for severity, one in looks if severity == number]
    return float(np.median(values)) if values else float("nan")


def evenly(looks: Sequence[tuple[int, Look]]) -> float:
    """Mean of the classes' median densities.

    No class counts for more because its lesions are smaller.
    """
    values = [of_class(looks, number) for number in CLASSES]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def pointing_rows(explainer: Explainer, found: Findings) -> list[list[str]]:
    """A row a way, the best one bold; then the blind maps."""
    best = max(explainer.ways, key=lambda way: evenly(found.looks[way]))
    rows = []
    for who, looks in sorted(found.looks.items(), key=lambda item: isinstance(item[0], str)):
        ones = [one for _, one in looks]
        row = [
            who if isinstance(who, str) else ", ".join(who),
            percent(mean(one.near for one in ones)),
            percent(mean(one.inside for one in ones)),
            percent(float(np.median([one.energy for one in ones]))),
            number(float(np.median([one.density for one in ones]))),
            *(number(of_class(looks, severity)) for severity in CLASSES),
            number(evenly(looks)),
            percent(mean(one.in_lungs for one in ones if np.isfinite(one.in_lungs))),
            str(sum(one.empty for one in ones)),
        ]
        rows.append([f"**{cell}**" for cell in row] if who == best else row)
    return rows


def pointing_table(explainer: Explainer, found: Findings) -> tuple[str, str]:
    """The table of hits and energies, and what it was measured on."""
    header = [
        *("endpoint, target, method", f"hits, ≤ {TOLERANCE_MM:.0f} mm", "hits within a lesion"),
        *(
            "energy in lesions",
            "density in lesions",
            *(f"class {severity}" for severity in CLASSES),
        ),
        *("mean of the classes", "in the lungs", "empty maps"),
    ]
    cases = max((len(looks) for looks in found.looks.values()), default=0)
    known = 98 / np.sqrt(max(cases, 1))
    note = (
        f"{cases} unseen synthetic chests with disease ({found.left_out} left out: no lung or no"
        " lesion within the lungs that were found); a share of 50 % of them is known to ±"
        f" {known:.0f} points (95 %). `tfcovid infer` makes {explainer.default}, severity, gradcam"
        " unless told otherwise."
    )
    return table(header, pointing_rows(explainer, found)), note


def checks_table(explainer: Explainer, found: Findings) -> tuple[str, str]:
    """The table of correlations."""
    header = [
        "endpoint, target, method",
        "random head",
        "random network",
        "mirrored scan",
        "its lowest tenth",
    ]
    rows = []
    for way in explainer.ways:
        head, everything, mirror = (
            found.checks[name][way] for name in ("head", "everything", "mirror")
        )
        tenth = float(np.quantile(mirror, 0.1)) if mirror else float("nan")
        rows.append(
            [
                ", ".join(way),
                *(number(mean(values)) for values in (head, everything, mirror)),
                number(tenth),
            ]
        )
    checked = len(found.checks["head"][explainer.ways[0]])
    note = f"{checked} of these chests, {RANDOM} random networks in turn."
    changes = [change for change in found.score_changes if np.isfinite(change)]
    if changes:
        note += (
            f" The CT score of the mirrored scan lies {mean(changes):.2f} points off on average, at"
            f" most {max(changes):.2f}."
        )
    return table(header, rows), note


SECTION = """
## {0}

<!-- begin: {0} pointing -->
<!-- end: {0} pointing -->

<!-- begin: {0} checks -->
<!-- end: {0} checks -->
"""


@click.command()
@click.option(
    "--cases", default=60, show_default=True, help="Chests with disease, the four classes in turn."
)
@click.option(
    "--checks", default=15, show_default=True, help="Chests for the random networks and the mirror."
)
@click.option(
    "--folder", type=click.Path(path_type=Path), default=Path("build/unseen"), show_default=True
)
@click.option(
    "--model", "models", multiple=True, help="Shipped name or file; all that ship if not given."
)
@click.option("--write/--no-write", default=True, help="Put the tables into docs/attention.md.")
def main(cases: int, checks: int, folder: Path, models: tuple[str, ...], write: bool) -> None:
    """Print the tables."""
    for source in models or shipped():
        explainer = Explainer(source)
        say(f"{explainer.name}: {len(explainer.ways)} ways to make a map")
        found = measure(explainer, folder, cases, checks)
        path = DOCS / "attention.md"
        text = path.read_text("utf-8")
        if write and f"<!-- begin: {explainer.name} pointing -->" not in text:
            path.write_text(text + SECTION.format(explainer.name), "utf-8")
        page = Page(path, write)
        page.put(f"{explainer.name} pointing", *pointing_table(explainer, found))
        page.put(f"{explainer.name} checks", *checks_table(explainer, found))


if __name__ == "__main__":
    main()
