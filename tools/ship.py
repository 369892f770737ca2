"""Make shipped weights of a finished run of `tfcovid fit --folds none`.

python tools/ship.py RUN saved_models/NAME

The weights are halved to float16, and the model card says how they were made and what they reached.
`--figures FILE` adds rows of a JSON object to its table, for what was measured elsewhere.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tf_covid.errors import TfCovidError
from tf_covid.training.card import write_card
from tf_covid.training.settings import Settings
from tf_covid.weights import load, save_model

#: What the network of a task does, in a sentence; the names of networks as papers write them.
_TASKS = {
    "lungs": "a slice in the study's lung window in; for each pixel the logit of “lung”, and that"
    " of “diseased lung” (glass, consolidation), out.",
    "lobes": "a whole chest CT, seen coarsely, in; for each cell the logits of five lobes and of"
    " what is taken for lung, out.",
    "severity": "the kept slices of a chest CT, masked to the lungs, in; severity class and CT"
    " score out.",
    "covid": "the kept slices of a chest CT, masked to the lungs, in; COVID-19 or not out.",
    "slices": "a slice of a chest CT, masked to the lungs, in; diseased or not, and how much, out.",
}
_NETWORKS = {
    "unet": "2D U-Net",
    "unet3d": "3D U-Net",
    "i3d": "I3D",
    "ltc": "LTC",
    "inception_v1": "Inception-v1",
}

#: Numbers of a study that are no measure of the network.
_NO_FIGURES = {"mann_whitney", "roc", "bootstrap", "lobe_agreement"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a run.

    Raises:
        ClickException: If it is not there or not readable.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise click.ClickException(
            f"{path}: cannot be read; a finished run of tfcovid fit --folds none is needed"
        ) from error


def command_of(question: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The command that makes a run again.

    Args:
        question: What the run was asked for, of `run.json`.
        facts: All of `run.json`.
    """
    manifest = f"phantom:{question['chests']}" if "chests" in question else "MANIFEST"
    parts = ["tfcovid", "fit", manifest, "--task", question["task"], "--model", question["model"]]
    parts += ["--folds", "none", "--config", "config.toml"]
    if question["init"] != "scratch":
        parts += ["--init", str(facts.get("init") or question["init"])]
    return shlex.join([*parts, "--out", "RUN"])


def as_toml(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
    """Lines of TOML for the settings that are not the defaults; tables come last.

    Args:
        values: Settings.
        defaults: Settings that nobody changed.
    """

    def text(value: object) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{key} = {text(item)}" for key, item in value.items()) + " }"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(map(text, value)) + "]"
        return json.dumps(value, ensure_ascii=False)

    changed = {key: value for key, value in values.items() if value != defaults.get(key)}
    sections = {key for key in changed if isinstance(defaults.get(key), Mapping) and defaults[key]}
    lines = [f"{key} = {text(value)}" for key, value in changed.items() if key not in sections]
    for key in sorted(sections):
        lines += ["", f"[{key}]", *as_toml(changed[key], defaults[key])]
    return lines


def figures_of(study: Mapping[str, Any]) -> dict[str, str]:
    """Every metric of a study with its interval.

    Args:
        study: `study.json`.
    """
    kind = f"{study['cases']} {study.get('measured_on') or 'cases'}"

    def rows(name: str, value: object) -> dict[str, str]:
        if not isinstance(value, Mapping):
            return {}
        if isinstance(value.get("value"), int | float):
            low, high = value.get("ci95") or (None, None)
            interval = f" ({low:.3f} to {high:.3f})" if low is not None else ""
            return {f"{name}, {kind}": f"{value['value']:.3f}{interval}"}
        return {
            key: text
            for part, inner in value.items()
            for key, text in rows(f"{name} {part}", inner).items()
        }

    skipped = _NO_FIGURES | {"subgroups", "calibration", "config", "versions", "per_class"}
    results: dict[str, str] = {}
    for name, value in study.items():
        if name not in skipped:
            results |= rows(name.replace("_", " "), value)
    return results


@click.command()
@click.argument("run", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--licence", default="Apache-2.0", show_default=True, help="SPDX identifier.")
@click.option(
    "--figures",
    "more",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    multiple=True,
    help="A JSON object: what was measured → its value.",
)
def main(run: Path, out: Path, licence: str, more: tuple[Path, ...]) -> None:
    """Write OUT/model.keras and OUT/README.md from RUN, a finished run without folds."""
    facts, study = read_json(run / "run.json"), read_json(run / "study.json")
    question = dict(facts["question"])
    if not (run / "model.keras").exists():
        raise click.ClickException(f"{run}: has no model.keras: it was trained in folds")
    try:
        model = load(run / "model.keras")
        contract = model.contract.model_copy(update={"licence": licence})
        out.mkdir(parents=True, exist_ok=True)
        save_model(model.network, contract, out / "model.keras", dtype="float16")
        figures = figures_of(study)
        for path in more:
            figures |= {str(name): str(value) for name, value in read_json(path).items()}
        toml = as_toml(question["settings"], Settings().model_dump(mode="json"))
        write_card(
            out,
            task=f"{_NETWORKS[contract.model]}: {_TASKS[contract.task]}",
            command=command_of(question, facts),
            curves=read_json(run / "curves.json")["curves"],
            figures=figures,
            settings="\n".join(toml),
            remarks=_remarks(question, study),
        )
    except TfCovidError as error:
        raise click.ClickException(str(error)) from error
    click.echo(out / "README.md")


def _remarks(question: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """What has to be known to read the table and to make the weights again."""
    seed = question["settings"]["seed"]
    parts = [f"Seed {seed}, {study['seconds'] / 60:.0f} minutes of training."]
    if "phantom_mark" in question:
        parts.append(
            f"The chests were drawn by the phantom {question['phantom_mark']}"
            " (`tf_covid.phantom.mark`)."
        )
    if study.get("measured_on") == "validation cases":
        parts.append(
            "The study's figures are those of the validation cases, answered by the float32 weights"
            " before they were halved: they may have chosen the epoch."
        )
    return " ".join(parts)


if __name__ == "__main__":
    main()
