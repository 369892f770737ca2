"""How the evidence beside the class follows the truth, on unseen synthetic chests.

    python benchmarks/evidence.py [--cases 30]

Involvement: correlation and mean error against the true share of diseased lung. Attention: how many times denser it is
within lesions than over the lungs (1 is no better than painting them evenly), for every method.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # small products: on a busy machine its threads wait for each other

import click
import numpy as np

from tf_covid import attention
from tf_covid.local import LocalModels
from tf_covid.lungs import read_lungs
from tf_covid.phantom import draw_chest
from tf_covid.training.cases import UNSEEN, case_shape

METHODS = ("gradcam", "gradcam++", "layercam")


@click.command()
@click.option("--cases", default=30, show_default=True)
@click.option("--model", default="severity-i3d", show_default=True)
def main(cases: int, model: str) -> None:
    """Print the table."""
    models = LocalModels([model])
    member = models.members[0]
    clip = member.model.network.input_shape[1:4]
    found, true, density = [], [], {method: [] for method in METHODS}
    for seed in range(UNSEEN, UNSEEN + cases):
        chest = draw_chest(seed, case_shape(seed), severity=seed % 5)
        probability = models.segment(chest.hu).probability
        (answer,) = models.classify(chest.hu, probability)
        if not answer.keep.any():
            continue
        reading = read_lungs(chest.hu, probability, answer.keep, chest.spacing_mm)
        found.append(reading.lungs.involvement_percent)
        true.append(100.0 * chest.lesions.sum() / (chest.lungs > 0).sum())
        lesions = chest.lesions & (reading.labels > 0)
        if not lesions.any():
            continue
        share = lesions.sum() / (reading.labels > 0).sum()
        for method in METHODS:
            raw = attention.attention_map(member.split.explained, answer.features, attention.expected_class, method)
            volume, _ = attention.onto_scan(raw, member.axes, clip, answer.keep, answer.box, reading.labels)
            if volume.any():
                density[method].append((chest.severity, volume[lesions].sum() / volume.sum() / share))
    errors, healthy = (
        np.abs(np.subtract(found, true)),
        [one for one, truth in zip(found, true, strict=True) if not truth],
    )
    correlation = np.corrcoef(found, true)[0, 1]
    print(f"involvement, {len(found)} chests: r {correlation:.2f}, mean error {errors.mean():.1f} points")
    print(f"without disease, {len(healthy)} chests: up to {max(healthy):.0f} %, median {np.median(healthy):.0f} %")
    for method, pairs in density.items():
        numbers, values = (np.array(part) for part in zip(*pairs, strict=True))
        medians = " ".join(
            f"class {number} {np.median(values[numbers == number]):.2f}" for number in sorted(set(numbers))
        )
        print(f"{method} at {models.endpoint}, {len(values)} chests: all {np.median(values):.2f}, {medians}")


if __name__ == "__main__":
    main()
