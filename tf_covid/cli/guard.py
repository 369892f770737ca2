"""What all commands share: errors in one line, exit codes, and types of parameters."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

#: Parameter that names a folder, which need not be there.
FOLDER = click.Path(path_type=Path, file_okay=False)


#: Add `--model`, once or more, to a command.
model_option = click.option(
    "--model",
    "models",
    multiple=True,
    default=("severity-i3d",),
    show_default=True,
    metavar="NAME|FILE",
    help="Shipped name or .keras file; several of one task: the mean of their probabilities.",
)


def guarded(command: Callable[..., bool]) -> Callable[..., None]:
    """Turn errors into one line and exit 1; add `--debug`, which shows the traceback.

    Args:
        command: Gives whether all went well: True is exit 0, False is exit 1.
    """

    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(command)
    def run(*args: Any, debug: bool, **kwargs: Any) -> None:
        from tf_covid import console
        from tf_covid.errors import OptionError

        try:
            done = command(*args, **kwargs)
        except click.ClickException:
            raise
        except OptionError as failure:
            raise click.UsageError(str(failure)) from None
        except KeyboardInterrupt:
            console.error("interrupted; finished cases are kept")
            raise SystemExit(130) from None
        except Exception as failure:  # the outermost layer: whatever it is, one line and exit 1
            if debug:
                raise
            text = str(failure).strip() or "no further text"
            console.error(
                text
                if _ours(failure)
                else f"{type(failure).__name__}: {text} (--debug shows where)"
            )
            raise SystemExit(1) from None
        raise SystemExit(0 if done else 1)

    return run


def lung_model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--lungs-model`, `--lobes-model` and `--allow-other-lungs` to a command."""
    for option in (
        click.option(
            "--allow-other-lungs",
            is_flag=True,
            help="Answer behind other lung models than a network was trained behind.",
        ),
        click.option(
            "--lobes-model",
            metavar="NAME|FILE",
            help=(
                "3D lobe model that finds the lobes and gates the lung mask, or none; without, the"
                " shipped one, which gates only where MODEL was trained behind it."
            ),
        ),
        click.option(
            "--lungs-model",
            metavar="NAME|FILE",
            help="2D lung model; without, the shipped lungs-unet.",
        ),
    ):
        command = option(command)
    return command


def dicom_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for DICOM objects to a command."""
    for option in (
        click.option(
            "--dicom-deidentified",
            is_flag=True,
            help=(
                "The DICOM objects for research: under a pseudonym, with new UIDs and without"
                " dates."
            ),
        ),
        click.option("--dicom-pdf", is_flag=True, help="And report_pdf.dcm, the montage as a PDF."),
        click.option(
            "--dicom-map",
            is_flag=True,
            help="And attention_map.dcm, a Parametric Map, which is large.",
        ),
        click.option(
            "--dicom",
            is_flag=True,
            help=(
                "Write DICOM objects as well: lungs.dcm, attention.dcm, summary.dcm, report.dcm."
                " They hold the patient's identity, as an archive needs."
            ),
        ),
    ):
        command = option(command)
    return command


def archive_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--ca-file` and `--client-cert` to a command."""
    for option in (
        click.option(
            "--client-cert",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Certificate and key (PEM) with which this program shows itself to the archive.",
        ),
        click.option(
            "--ca-file",
            type=click.Path(path_type=Path, dir_okay=False, exists=True),
            help="Certificates (PEM) of who may vouch for the archive, instead of the system's.",
        ),
    ):
        command = option(command)
    return command


def lung_labels(
    context: click.Context, option: click.Parameter, text: str | None
) -> tuple[int, ...]:
    """Labels between commas, as numbers, each once.

    Args:
        context: Context of the command, as click passes it.
        option: Option that the text was given to.
        text: Labels as they were typed.

    Raises:
        click.BadParameter: If one is not a whole number above 0.
    """
    labels = [] if text is None else [label.strip() for label in text.split(",")]
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,8}", label, re.ASCII) for label in labels):
        raise click.BadParameter(
            f"{text!r} is not a list of whole numbers above 0, such as 10,11,12,13,14."
        )
    return tuple(dict.fromkeys(map(int, labels)))


def _ours(failure: Exception) -> bool:
    from tf_covid.errors import TfCovidError

    return isinstance(failure, TfCovidError)
