"""What the phantom looks like and all that it draws.

Docs/phantoms.png, and the tables of docs/phantom.md.

    python benchmarks/phantom_sheet.py [--seed 0] [--slices 128] [--workers 2]

Ranges and truth are read off `tf_covid.phantom` itself, so the page cannot say anything else.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # "one core" is one core

import inspect
import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tables import DOCS, Page, say, table

from tf_covid.phantom import Chest, PhantomSettings, draw_chest
from tf_covid.report.pictures import Plane, plain
from tf_covid.severity import LABELS
from tf_covid.tensor import Tensor

COLUMNS, ROWS, TILE, GAP = 6, 4, 165, 2

#: Grey levels of the sheet: noise does not compress, and the eye tells fewer apart.
GREYS = 64

#: Units at the end of a setting's name.
UNITS = {"mm": "mm", "hu": "HU", "degrees": "°"}

#: A slice is shown if it has this share of the lung of the fullest one.
LEAST_LUNG = 0.25

#: What the table of ranges does not show.
EXCEPTIONS = (
    "A range is drawn uniformly, but `noise_hu`, `nodule_mm` and `bud_mm` on a logarithmic scale."
    " COVID's `consolidated_share` is multiplied by another number of 0–1; lobar pneumonia is all"
    " consolidation, oedema all glass with septal lines."
)


def tile(job: tuple[int, int]) -> Image.Image:
    """One phantom, by seed and number of slices, at a random level within its lungs.

    Its class in the corner.
    """
    seed, slices = job
    chest = draw_chest(seed, (slices, 256, 256), severity=seed % len(LABELS))
    lung = (chest.lungs > 0).sum(axis=(1, 2))
    level = int(
        np.random.default_rng([seed, 1]).choice(np.flatnonzero(lung >= LEAST_LUNG * lung.max()))
    )
    _, height, width = chest.spacing_mm
    plane = Plane(chest.hu[level], chest.lungs[level], None, (height, width))
    picture = plain(plane, TILE / max(plane.size_mm))
    font = ImageFont.load_default(12)
    ImageDraw.Draw(picture).text((5, 3), f"{seed}: {LABELS[chest.severity]}", fill=255, font=font)
    return picture


def sheet(first: int, slices: int, workers: int) -> Image.Image:
    """The contact sheet, grey, 6×4 phantoms."""
    out = Image.new("L", (COLUMNS * (TILE + GAP) - GAP, ROWS * (TILE + GAP) - GAP), 255)
    jobs = [(first + number, slices) for number in range(COLUMNS * ROWS)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for number, picture in enumerate(pool.map(tile, jobs)):
            row, column = divmod(number, COLUMNS)
            out.paste(picture.resize((TILE, TILE)), (column * (TILE + GAP), row * (TILE + GAP)))
            say(f"drawn {number + 1} of {len(jobs)}")
    return out


def save(picture: Image.Image, path: Path) -> None:
    """Write a grey picture as a PNG of few levels."""
    step = 256 // GREYS
    few = picture.point([value // step for value in range(256)]).convert("P")
    few.putpalette([round(level * 255 / (GREYS - 1)) for level in range(GREYS) for _ in range(3)])
    few.save(path, optimize=True, bits=(GREYS - 1).bit_length())
    say(f"{path}: {picture.width}×{picture.height}, {path.stat().st_size / 1000:.0f} kB")


def value(name: str, setting: Tensor) -> str:
    """What a setting says, with its unit."""
    unit = UNITS.get(name.rsplit("_", 1)[-1], "")
    if name.startswith("p_"):
        return f"{100 * setting:g} % of the chests"
    if isinstance(setting, tuple):
        text = (" – " if len(setting) == 2 else ", ").join(f"{one:g}" for one in setting)
    else:
        text = f"{setting:g}"
    return f"{text} {unit}".strip().replace(" °", "°").replace("-", "−")


def effects(settings: PhantomSettings) -> Iterator[str]:
    """A heading, the section's docstring and a table for each section of the settings."""
    count = sum(len(fields(getattr(settings, section.name))) for section in fields(settings))
    yield f"{count} settings. {EXCEPTIONS}"
    for section in fields(settings):
        part = getattr(settings, section.name)
        yield f"### {section.name.capitalize()}"
        yield inspect.getdoc(type(part)) or ""
        rows = [
            (f"`{entry.name}`", value(entry.name, getattr(part, entry.name)))
            for entry in fields(part)
        ]
        yield table(("setting", "drawn from"), rows)


def truth() -> Iterator[str]:
    """The docstring of `Chest`: its first lines, and its arguments as a list."""
    text, _, arguments = (inspect.getdoc(Chest) or "").partition("\n\nArgs:\n")
    yield text
    # An argument starts at four blanks; what is indented further goes on with it.
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", arguments, re.MULTILINE)
    yield "\n".join(f"- `{name}`: {' '.join(meaning.split())}" for name, meaning in found)


def seconds(seeds: range, slices: int) -> str:
    """The processor time of one chest."""
    taken = []
    for seed in seeds:
        start = time.process_time()
        draw_chest(seed, (slices, 256, 256))
        taken.append(time.process_time() - start)
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text("utf-8"))
    return (
        f"One chest of 256×256×{slices} voxels takes {np.median(taken):.1f} s of one core (median"
        f" of {len(taken)}, {min(taken):.1f} – {max(taken):.1f} s;"
        f" {cpu[1] if cpu else 'unknown processor'}), truth included."
    )


@click.command()
@click.option(
    "--seed", default=0, show_default=True, help="Seed of the first phantom of the sheet."
)
@click.option(
    "--slices", default=128, show_default=True, help="Slices of each phantom of the sheet."
)
@click.option("--workers", default=2, show_default=True)
@click.option(
    "--timed", default=5, show_default=True, help="Chests of 120 slices to take the time of."
)
@click.option(
    "--write/--no-write", default=True, help="Write docs/phantoms.png and into docs/phantom.md."
)
def main(seed: int, slices: int, workers: int, timed: int, write: bool) -> None:
    """Draw the sheet and print the tables."""
    page = Page(DOCS / "phantom.md", write)
    page.put("phantom effects", *effects(PhantomSettings()))
    page.put("phantom truth", *truth())
    page.put("phantom time", seconds(range(timed), 120))
    picture = sheet(seed, slices, workers)
    if write:
        save(picture, DOCS / "phantoms.png")
        page.put(
            "phantom sheet",
            "![24 synthetic chests, one axial slice each](phantoms.png)",
            f"Seeds {seed} – {seed + COLUMNS * ROWS - 1}, each at a random level within the lungs,"
            " lung window.",
        )


if __name__ == "__main__":
    main()
