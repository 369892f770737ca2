"""The model card beside the weights: what they are, how they were made, what they reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tf_covid.atomic import write_text
from tf_covid.weights import catalog, quarantine, read_contract


def write_card(
    out: Path,
    *,
    task: str,
    command: str,
    curves: Mapping[str, Sequence[float]],
    figures: Mapping[str, str],
    settings: str = "",
    remarks: str = "",
) -> None:
    """Write `README.md` of a model's folder, from the file and what was measured on it.

    Args:
        out: The model's folder; holds `model.keras`.
        task: One sentence on what the network does.
        command: What makes the weights again, line by line.
        curves: Name → one value an epoch; empty if nothing was trained.
        figures: What was measured → its value, on what.
        settings: TOML of the settings that the command reads; "" if it reads none.
        remarks: A paragraph on how it was made; "" for none.
    """
    path = out / catalog.MODEL
    contract = read_contract(path)
    head = (
        f"{path.stat().st_size / 1e6:.1f} MB, float16, {contract.licence}; sha256"
        f" `{quarantine.sha256(path)}`"
    )
    behind = (
        f" Trained behind the lung model `{contract.lungs_sha256}`."
        if contract.lungs_sha256
        else ""
    )
    lines = [
        f"# {out.name}",
        "",
        f"{task}{behind}",
        "",
        f"> {contract.note}",
        "",
        f"`{catalog.MODEL}`: {head}",
        "",
        "Architecture, input and window: `tf_covid.json` inside the file, which is:",
        "",
        "```json",
        contract.model_dump_json(indent=1),
        "```",
        "",
        "## How it was made",
        "",
        *(f"    {line}" for line in command.splitlines()),
        "",
        *([remarks, ""] if remarks else []),
        *(["`config.toml`:", "", "```toml", settings, "```", ""] if settings else []),
        "## What it reached",
        "",
        "| measured | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in figures.items()),
    ]
    if curves:
        lines += [
            "",
            "## Training curves",
            "",
            "| epoch | " + " | ".join(curves) + " |",
            "|---" * (len(curves) + 1) + "|",
        ]
    for epoch, values in enumerate(zip(*curves.values(), strict=True), 1):
        lines.append(f"| {epoch} | " + " | ".join(f"{value:.4f}" for value in values) + " |")
    write_text("\n".join(lines) + "\n", out / catalog.CARD)
