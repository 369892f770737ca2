"""What ships with the package: a folder for each model, with its card."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tf_covid.errors import ModelError

#: File names inside a shipped model's folder.
MODEL, CARD = "model.keras", "README.md"

#: Name of the 2D lung model, and of the 3D lobe model, that ship.
LUNGS, LOBES = "lungs-unet", "lobes-unet3d"

#: Instead of a lobe model: the 2D U-Net's mask is taken as it is, and no lobes are found.
NO_LOBES = "none"


def folder() -> Path:
    """The folder of the shipped models.

    Package data of `tf_covid.saved_models`, or `saved_models/` of a checkout.

    Raises:
        ModelError: If there is neither.
    """
    try:
        with resources.as_file(resources.files("tf_covid.saved_models")) as path:
            return Path(path)
    except ModuleNotFoundError:
        # `python cli.py` in a checkout that was not installed: the package is mapped at install
        # time only.
        checkout = Path(__file__).parents[2] / "saved_models"
        if (checkout / "__init__.py").is_file():
            return checkout
    raise ModelError("the shipped weights are missing: reinstall tf-covid")


def shipped() -> dict[str, Path]:
    """Name → `.keras` file of every shipped model, sorted by name."""
    return {path.parent.name: path for path in sorted(folder().glob(f"*/{MODEL}"))}


def matches_card(path: Path, digest: str) -> bool:
    """Whether the model card beside a shipped model names this sha256 (hex)."""
    model_card = path.with_name(CARD)
    return model_card.is_file() and digest in model_card.read_text("utf-8")


def find(source: str | Path) -> Path:
    """The file of a shipped name, or the path itself.

    Raises:
        ModelError: If it is neither a shipped name nor a file.
    """
    if isinstance(source, str) and source in (known := shipped()):
        return known[source]
    path = Path(source)
    if path.is_file():
        return path
    raise ModelError(
        f"{source}: neither a file nor a shipped model"
        f" ({', '.join(shipped()) or 'none is installed'})"
    )


def name_of(source: str | Path) -> str:
    """What a model is called in results.

    Its shipped name, its file's name, or its folder's for a `model.keras`.
    """
    if isinstance(source, str) and source in shipped():
        return source
    path = Path(source).absolute()
    return path.parent.name if path.name == MODEL else path.stem
