"""`montage.png`."""

from __future__ import annotations

import dataclasses
import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tf_covid.report import slide
from tf_covid.report.montage import montage


def drawn(case: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = Image.open(io.BytesIO(montage(*case)))
    assert picture.format == "PNG"
    assert picture.size == (1600, 900)
    return np.asarray(picture.convert("RGB"))


def test_the_montage_is_a_slide(make_case: Any) -> None:
    pixels = drawn(make_case())
    assert pixels.std() > 25, "not blank"
    page = np.median(pixels.reshape(-1, 3), axis=0)
    for edge in (pixels[:8], pixels[-8:], pixels[:, :8], pixels[:, -8:]):
        assert (edge == page).all(), "nothing runs over the edge"


def test_what_is_on_the_right_of_the_patient_is_on_the_left(make_case: Any) -> None:
    pixels = drawn(make_case()).astype(int)
    # The attention's colours: far more red than blue. The first axial picture's column is 310
    # pixels wide from 40.
    axial = pixels[200:800, 40:350]
    warm = axial[..., 0] - axial[..., 2] > 80
    assert warm[:, :155].sum() > 10 * max(1, warm[:, 165:].sum())


@pytest.mark.parametrize("case", ["<script>", r"$\frac$", "a$b", "日本 \u202e x", "w" * 300])
def test_any_name_can_be_drawn(case: str, make_case: Any) -> None:
    assert drawn(make_case(case=case)).std() > 25, "not blank"


def test_without_attention_and_for_covid(make_case: Any, covid_case: Any) -> None:
    with_attention = drawn(make_case())
    for case in (make_case(attention=False), covid_case):
        assert (drawn(case) != with_attention).any()


def test_lobes_are_on_the_slide(make_case: Any, lobe_case: Any) -> None:
    without, with_lobes = drawn(make_case()), drawn(lobe_case())
    assert (without[200:820] != with_lobes[200:820]).any(), "borders between lobes"
    assert (without[60:190, 1000:1260] != with_lobes[60:190, 1000:1260]).any(), "the score read"
    assert (without[:190, :1000] == with_lobes[:190, :1000]).all()


def test_the_note_is_not_cut_and_warnings_are_words(
    make_case: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    draw = slide.write

    def write(page: Any, x: float, y: float, text: str, *rest: Any, **more: Any) -> None:
        written.append(text)
        draw(page, x, y, text, *rest, **more)

    monkeypatch.setattr("tf_covid.report.montage.write", write)
    result, scan = make_case()
    note = (
        "Trained on synthetic chests only (tf_covid.phantom), on no patient. A demonstration of the"
        " method: not validated on patients, not for clinical use."
    )
    model = dataclasses.replace(result.models[0], note=note)
    drawn((dataclasses.replace(result, models=(model,)), scan))
    assert note in " ".join(written)
    assert "lungs cut off by the scan" in written
    assert "answered 2026-01-31, 09:30 UTC · tf-covid 0.1.0" in written
    assert "164 mm from the front" in written
    assert written.count("5 cm") == 8, "on each picture"


def test_a_curve_that_is_cut_off_says_so(make_case: Any) -> None:
    result, scan = make_case()
    percent = np.where(result.maps.kept, 4.0, 79.0)
    lungs = dataclasses.replace(result.lungs, involvement_per_slice=tuple(percent))
    uncut = dataclasses.replace(result.lungs, involvement_per_slice=tuple(np.minimum(percent, 10)))
    one, two = (drawn((dataclasses.replace(result, lungs=x), scan)) for x in (lungs, uncut))
    assert (one[500:700, 1000:] != two[500:700, 1000:]).any()


def test_what_is_missing_is_left_out(make_case: Any) -> None:
    pixels = drawn(
        make_case(severity=None, lungs=None, series=None, models=(), quality_flags=(), timings_s={})
    )
    assert pixels.std() > 25, "not blank"
