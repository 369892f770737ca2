"""The mean of the weights of lung U-Nets that were trained on from one another, as one lung U-Net.

python -m tf_covid.training.average --part 0.5 first.keras --part 0.5 last.keras --cases build/cases
--out DIR

What is trained on for long follows the synthetic chests ever better, and scans that look like none
of them worse. The mean of the weights before and after keeps much of both.

Source: Wortsman et al. 2022, “Robust fine-tuning of zero-shot models” (arXiv 2109.01903).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import keras
import numpy as np

from tf_covid.errors import ModelError
from tf_covid.training.cases import UNSEEN, draw_cases
from tf_covid.training.lungs import ship
from tf_covid.training.run import setup
from tf_covid.weights import LoadedModel, load
from tf_covid.weights.contract import TrainedOn


def averaged(models: Sequence[LoadedModel], shares: Sequence[float]) -> keras.Model:
    """The first network with the weighted mean of all weights, moving statistics included.

    Args:
        models: Models of one architecture.
        shares: Weight of each model in the mean; their sum is 1.

    Raises:
        ModelError: If architecture, task or preprocessing differ, or the shares do not sum to 1.
    """
    if any(fraction < 0 for fraction in shares) or not np.isclose(sum(shares), 1.0):
        raise ModelError(
            f"shares of 0 … 1 that sum to 1 are needed, not {', '.join(map(str, shares))}"
        )
    kinds = [
        one.contract.model_dump(exclude={"origin", "note", "licence", "trained_on"})
        for one in models
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise ModelError("only models of one architecture, task and preprocessing have a mean")
    network = models[0].network
    parts = [
        [np.asarray(value, np.float64) for value in one.network.get_weights()] for one in models
    ]
    network.set_weights(
        [np.average(values, axis=0, weights=shares) for values in zip(*parts, strict=True)]
    )
    return network


def _together(models: Sequence[LoadedModel]) -> tuple[TrainedOn, ...] | None:
    """What all of them were trained on; None where one does not say."""
    parts = [one.contract.trained_on for one in models]
    if any(part is None for part in parts):
        return None
    return tuple(dict.fromkeys(one for part in parts for one in part or ()))


@click.command()
@click.option(
    "--part",
    "parts",
    type=(float, click.Path(exists=True, path_type=Path)),
    multiple=True,
    required=True,
    help="Share and file, once for each lung model.",
)
@click.option(
    "--cases",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Where the chests are kept.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The model's folder.")
@click.option(
    "--unseen", default=100, show_default=True, help="Chests to measure on: seeds 1000000 …."
)
def main(parts: tuple[tuple[float, Path], ...], folder: Path, out: Path, unseen: int) -> None:
    """Average lung models."""
    setup(1, out)
    shares = [fraction for fraction, _ in parts]
    models = [load(path) for _, path in parts]
    network = averaged(models, shares)
    unseen_seeds = range(UNSEEN, UNSEEN + unseen)
    draw_cases(folder, unseen_seeds)
    of = ", ".join(
        f"{fraction:g} of {one.sha256}" for fraction, one in zip(shares, models, strict=True)
    )
    contract = models[0].contract.model_copy(
        update={"origin": f"tf_covid.training.average: {of}", "trained_on": _together(models)}
    )
    out.mkdir(parents=True, exist_ok=True)
    ship(
        network, contract, out, folder, unseen_seeds, program="tf_covid.training.average", curves={}
    )


if __name__ == "__main__":
    main()
