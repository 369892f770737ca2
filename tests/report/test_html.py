"""`report.html`: complete, closed, harmless, and readable in a real browser."""

from __future__ import annotations

import dataclasses
import html.parser
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.browser import browse, measured, phone_widths, printed
from tf_covid.lung_voxels import LungVoxels
from tf_covid.report.html import render
from tf_covid.report.views import choose
from tf_covid.result import DISCLAIMER, QualityFlag, Result, Severity
from tf_covid.severity import LOBES

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", self.words.split("</style>")[-1])


def test_the_answer_is_on_the_page(make_case: Any) -> None:
    result, scan = make_case(
        severity=Severity(3, "severe", (0.0, 0.001, 0.25, 0.735, 0.014), 15.4, (12.1, 18.9), True)
    )
    page = Page(render(result, scan))
    for expected in (
        *("case-1", "severe", "15.4 of 25", "likely 12.1 to 18.9", "leave this one to a reader"),
        *(
            "25 %",
            "74 %",
            "< 1 %",
            "Trained on phantoms.",
            "9f2c9f2c9f2c",
            "tensorflow 2.21.0",
            "total 5.90",
        ),
        *(flag.message for flag in result.quality_flags),
        *(
            "does not compare patients",
            f"{result.lungs.slices_kept} of 40",
            "gradcam of severity at Mixed_5c",
        ),
    ):
        assert expected in page.text, expected
    assert page.text.count(DISCLAIMER) >= 2
    assert page.text.index("reach the last slice") < page.text.index("Two stacks"), (
        "worst flag first"
    )


@pytest.mark.parametrize("kind", ["answered", "refused"])
def test_the_head_says_when_and_by_which_version(
    kind: str, make_case: Any, refused: Result
) -> None:
    result, scan = make_case() if kind == "answered" else (refused, None)
    page = Page(render(result, scan)).text
    where = page.index("answered 2026-01-31, 09:30 UTC · tf-covid 0.1.0")
    assert where < page.index(DISCLAIMER)
    older = dataclasses.replace(result, answered_at=None)
    assert "UTC" not in Page(render(older, scan)).text


@pytest.mark.parametrize(
    ("involvement_by", "said", "not_said"),
    [
        ("hu_rule", ("density above −700 HU, vessels removed", "from density alone"), "learned"),
        (
            "disease_probability",
            ("mean probability of disease", "may miss disease or mark healthy lung"),
            "−700 HU",
        ),
    ],
)
def test_the_page_says_what_counted_as_involved(
    involvement_by: Any, said: tuple[str, ...], not_said: str, make_case: Any
) -> None:
    result, scan = make_case()
    lungs = dataclasses.replace(result.lungs, involvement_by=involvement_by)
    text = Page(render(dataclasses.replace(result, lungs=lungs), scan)).text
    for words in (*said, "does not tell infection from atelectasis"):
        assert words in text
    assert not_said not in text


def test_the_lobes_are_a_table_and_a_drawing(lobe_case: Any) -> None:
    result, scan = lobe_case((2, 0, 4, 1, 3))
    page = Page(render(result, scan))
    for words in (
        *LOBES,
        "CT score read from lobes: 10 of 25",
        "The network's estimate, 9.1 of 25",
        "owe nothing to each other",
        "pleural effusion 140 ml",
        "mean probability of disease",
        "12.5 %",
        "0.4 %",
    ):
        assert words in page.text, words
    drawn = [(a.get("class") or "").split() for tag, a in page.tags if tag == "path"]
    assert [names[1] for names in drawn if names[0] == "lobe"] == ["s2", "s0", "s4", "s1", "s3"]


def test_a_lobe_that_is_hardly_there_has_no_score_on_the_page(lobe_case: Any) -> None:
    result, scan = lobe_case((2, None, 4, 1, 3))
    page = Page(render(result, scan))
    assert "CT score read from lobes: none, since the scan hardly shows the right middle lobe" in (
        page.text
    )
    assert "None" not in page.text
    drawn = [a.get("class") for tag, a in page.tags if tag == "path"]
    assert drawn.count("lobe unscored") == 1, "it is drawn without a colour"


def test_the_page_explains_the_outline_of_disease(lobe_case: Any, make_case: Any) -> None:
    result, scan = lobe_case()
    text = Page(render(result, scan)).text
    assert text.count("diseased lung (more probable than not)") == 2, "above both kinds of pictures"
    assert "lesions.nii.gz" in text
    healthy = dataclasses.replace(
        result,
        maps=dataclasses.replace(
            result.maps,
            voxels=LungVoxels.of(
                result.maps.lungs, result.maps.lobes, np.zeros_like(result.maps.lungs)
            ),
        ),
    )
    assert "none marked in this scan" in Page(render(healthy, scan)).text
    assert "diseased lung (" not in Page(render(*make_case())).text


def test_without_lobes_nothing_speaks_of_them(make_case: Any) -> None:
    result, scan = make_case()
    text = Page(render(result, scan)).text
    for words in ("read from lobes", "five lobes\b", "pleural", "between lobes"):
        assert not re.search(words, text.replace("over five lobes of 0–5", "")), words
    little = dataclasses.replace(result.lungs, effusion_ml=9.0)
    assert "pleural" not in Page(render(dataclasses.replace(result, lungs=little), scan)).text


def test_each_slice_is_shown_plain_and_coloured(make_case: Any) -> None:
    page = Page(render(*make_case()))
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2 * (8 + 2), "eight axial pairs, a coronal and a sagittal one"
    assert len([1 for tag, _ in page.tags if tag == "image"]) == 2, "the middle of the lungs"
    assert all(picture["alt"] for picture in pictures)


def test_slice_numbers_and_places_agree(make_case: Any) -> None:
    text = render(*make_case())
    shown = re.findall(
        r"<b>slice (\d+)</b><span[^>]*>z (−?[\d.]+) mm \(patient, LPS\)</span>"
        r"<span[^>]*>(\d+) mm from the top</span>",
        text,
    )
    assert len(shown) == 8
    for number, z, below_mm in shown:
        # Slices count from 1; the fixture's are 7 mm apart and the first one lies at z = 35 mm.
        assert float(below_mm) == pytest.approx((int(number) - 0.5) * 7.0, abs=0.5)
        assert float(z.replace("−", "-")) == 35.0 - 7.0 * (int(number) - 1)


def test_a_slice_is_found_again_in_a_viewing_station(make_case: Any) -> None:
    result, scan = make_case()
    assert "image" not in Page(render(result, scan)).text.split("The slices")[1]
    numbers = (*(140 - index for index in range(39)), None)
    scan = dataclasses.replace(scan, instance_numbers=numbers)
    series = dataclasses.replace(result.series, instance_numbers=numbers, slice_thickness_mm=10.0)
    text = Page(render(dataclasses.replace(result, series=series), scan)).text
    shown = re.findall(r"slice (\d+)image (\d+)z", text)
    assert len(shown) == 8
    assert all(int(number) - 1 + int(image) == 140 for number, image in shown)
    assert "slices 10 mm thick" in text
    assert "InstanceNumber" in text


def test_planes_are_placed_in_mm(make_case: Any) -> None:
    text = Page(render(*make_case())).text
    # The lungs' middle is row 30, the attention's maximum (24, 36, 20); voxels are 4.5 mm wide and
    # start at y = −140, x = −170 mm.
    assert "coronal, 137 mm from the front" in text
    assert "y −5.0 mm, patient, LPS" in text
    assert "coronal164 mm from the front edge of the scany 22.0 mm (patient, LPS)" in text
    assert "sagittal92 mm from the right edge of the scanx −80.0 mm (patient, LPS)" in text
    assert not re.search(r"\b(row|column) \d", text)


def test_a_second_coronal_near_the_first_is_left_out(make_case: Any) -> None:
    result, scan = make_case()
    attention = np.zeros_like(result.maps.attention)
    attention[20, 30, 54] = 255
    maps = dataclasses.replace(result.maps, attention=attention)
    page = Page(render(dataclasses.replace(result, maps=maps), scan))
    shown = [a["alt"] for tag, a in page.tags if tag == "img" and "axial" not in str(a["alt"])]
    assert len(shown) == 2
    assert all("sagittal" in str(alt) for alt in shown)


def test_pictures_have_a_scale_and_enlarge_without_a_script(make_case: Any) -> None:
    text = render(*make_case())
    page = Page(text)
    bars = re.findall(r'class="bar" style="width: ([\d.]+)%">5 cm', text)
    assert len(bars) == 10, "one on each plain picture"
    widths = [float(w) for w in re.findall(r"--aspect: ([\d.]+)", text)]
    assert len(widths) == 10
    # The box of an axial picture is 2 · 13 + 32 columns and its margin of 5 wide, each 4.5 mm.
    result, scan = make_case()
    box = choose(result, scan).box
    width_mm = (box[2].stop - box[2].start) * 4.5
    assert float(bars[0]) == pytest.approx(100 * 50 / width_mm, abs=0.05)
    zooms = [a for tag, a in page.tags if tag == "details"]
    assert len(zooms) == 12, "ten pairs, and both pictures of the figure"
    assert len([1 for tag, _ in page.tags if tag == "summary"]) == 12


def test_both_planes_show_where_the_slices_lie(make_case: Any) -> None:
    result, scan = make_case()
    text = render(result, scan)
    lines = re.findall(r'class="level" style="top: ([\d.]+)%">(\d+)<', text)
    views = choose(result, scan)
    first, last = views.box[0].start, views.box[0].stop
    expected = [
        (pytest.approx(100 * (s.index + 0.5 - first) / (last - first), abs=0.06), s.index + 1)
        for s in views.slices
    ]
    assert [(float(top), int(number)) for top, number in lines] == expected * 2


@pytest.mark.parametrize("where", ["case", "flag", "model", "version"])
def test_hostile_text_stays_text(where: str, make_case: Any) -> None:
    result, scan = make_case()
    result = {
        "case": lambda: dataclasses.replace(result, case=HOSTILE),
        "flag": lambda: dataclasses.replace(
            result, quality_flags=(QualityFlag("x", "info", HOSTILE),)
        ),
        "model": lambda: dataclasses.replace(
            result,
            models=(
                dataclasses.replace(result.models[0], name=HOSTILE, note=HOSTILE, sha256=HOSTILE),
            ),
        ),
        "version": lambda: dataclasses.replace(result, versions={HOSTILE: HOSTILE}),
    }[where]()
    for one in (result, dataclasses.replace(result, status="refused")):
        text = render(one, scan)
        tags = Page(text).tags
        assert not [tag for tag, _ in tags if tag == "script"]
        assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
        assert "<script" not in text
    assert re.sub(r"\s+", " ", HOSTILE) in Page(render(result, scan)).text, (
        "shown as it is, {{ }} included"
    )


def test_nothing_is_fetched(make_case: Any) -> None:
    text = render(*make_case())
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for tag, attributes in Page(text).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(
                "data:image/jpeg;base64,"
            ) or name not in attributes
    assert "default-src 'none'" in text
    assert "script-src" not in text


def test_no_identifier_is_shown(make_case: Any) -> None:
    result, scan = make_case()
    series = dataclasses.replace(
        result.series, identifiers={"uid": "1.2.840.99", "patient_id": "SECRET-7"}
    )
    text = render(dataclasses.replace(result, series=series), scan)
    assert "1.2.840.99" not in text
    assert "SECRET-7" not in text


def test_without_attention_nothing_speaks_of_it(make_case: Any) -> None:
    text = Page(render(*make_case(attention=False))).text
    assert "No attention map" in text
    assert "mean attention" not in text
    assert "does not compare patients" not in text


@pytest.mark.parametrize(("number", "label"), [(0, "no findings"), (1, "mild")])
def test_a_bright_map_of_a_clean_scan_is_not_left_alone(
    make_case: Any, number: int, label: str
) -> None:
    found = Severity(number, label, tuple(float(n == number) for n in range(5)), 0.4, None, None)
    caution = "No findings: bright colours need not mean disease."
    assert (caution in Page(render(*make_case(severity=found))).text) == (number == 0)
    assert "bright colours" not in Page(render(*make_case(severity=found, attention=False))).text
    empty = QualityFlag(
        "attention_empty", "info", "Nothing in the scan raises the target: the map is empty."
    )
    page = Page(render(*make_case(severity=found, quality_flags=(empty,))))
    assert "bright colours" not in page.text
    assert page.text.count("attention: none to show, the map is empty") == 2
    assert not [a for tag, a in page.tags if tag == "span" and a.get("class") == "ramp"]


def test_how_much_of_the_map_lies_in_the_lungs_is_said(make_case: Any) -> None:
    result, scan = make_case()
    looked = dataclasses.replace(result.attention, inside_lung_fraction=0.22)
    text = Page(render(dataclasses.replace(result, attention=looked), scan)).text
    assert "22 % of the map lies within the lungs and is shown; the other 78 % was cut off" in text
    unknown = dataclasses.replace(result.attention, inside_lung_fraction=None)
    text = Page(render(dataclasses.replace(result, attention=unknown), scan)).text
    assert "of the map lies" not in text


def test_a_covid_answer(covid_case: Any) -> None:
    text = Page(render(*covid_case)).text
    assert "positive" in text
    assert "83 %" in text
    assert "17 %" in text
    assert "no severity class" in text
    assert "of 25" not in text


def test_what_is_missing_is_left_out(make_case: Any) -> None:
    text = Page(
        render(
            *make_case(
                severity=None, lungs=None, series=None, models=(), quality_flags=(), timings_s={}
            )
        )
    ).text
    assert "not computed" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("code", "way_out"),
    [("not_hu", "original values"), ("few_slices", "--lungs"), ("new", "axial")],
)
def test_a_refusal_says_why_and_what_to_do(code: str, way_out: str, refused: Result) -> None:
    text = Page(
        render(
            dataclasses.replace(refused, quality_flags=(QualityFlag(code, "error", "Because."),)),
            None,
        )
    ).text
    assert "refused" in text
    assert "Because." in text
    assert way_out in text
    assert DISCLAIMER in text
    assert "not the same as" in text


def test_the_page_is_small(make_case: Any) -> None:
    result, scan = make_case()
    noisy = scan.hu + np.random.default_rng(3).normal(0, 120, scan.shape).astype(np.int16)
    assert len(render(result, dataclasses.replace(scan, hu=noisy)).encode()) < 3_000_000


def test_nothing_scrolls_sideways_on_a_phone(
    lobe_case: Any, refused: Result, tmp_path: Path
) -> None:
    result, scan = lobe_case()
    result = dataclasses.replace(result, case="w" * 90)
    for text in (render(result, scan), render(refused, None)):
        needed, there = phone_widths(text, tmp_path)
        assert needed == there


def test_every_printed_page_has_case_and_caution(make_case: Any, tmp_path: Path) -> None:
    pages = printed(render(*make_case()), tmp_path)
    assert len(pages) >= 2
    for page in pages:
        assert "case-1" in page[:200]
        assert "not for diagnosis" in page
        assert not re.search(r"(How it was made|How to read this|From head to feet)\s*$", page)


def test_only_print_says_what_attention_looks_like_without_colour(
    lobe_case: Any, tmp_path: Path
) -> None:
    page, said = render(*lobe_case()), "in grey it looks like denser lung"
    assert any(said in " ".join(one.split()) for one in printed(page, tmp_path))
    # innerText is what a screen shows.
    assert measured(page, f"document.body.innerText.includes('{said}')", tmp_path) == "false"
    assert measured(page, "document.body.innerText.includes('attention, from')", tmp_path) == "true"


def test_a_report_with_lobes_prints_on_three_pages(lobe_case: Any, tmp_path: Path) -> None:
    pages = printed(render(*lobe_case()), tmp_path)
    assert len(pages) == 3
    assert "How it was made" in pages[-1]


@pytest.mark.parametrize("kind", ["answered", "refused"])
def test_a_browser_shows_it_without_complaint(
    kind: str, lobe_case: Any, refused: Result, tmp_path: Path
) -> None:
    (tmp_path / "report.html").write_text(
        render(*lobe_case()) if kind == "answered" else render(refused, None), "utf-8"
    )
    switches = (
        "no-first-run disable-background-networking disable-component-update disable-sync"
        " hide-scrollbars enable-logging=stderr window-size=1240,3000"
    )
    run = browse(tmp_path / "report.html", *switches.split(), f"screenshot={tmp_path / 'page.png'}")
    assert not [line for line in run.stderr.splitlines() if "CONSOLE" in line]
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape == (3000, 1240, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > (1000 if kind == "answered" else 50)
    if kind == "answered":
        assert (pixels.reshape(-1, 3).max(axis=1) < 60).mean() > 0.1, "the dark pictures are there"
