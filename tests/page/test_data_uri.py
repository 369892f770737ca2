"""Pictures that are part of a page."""

from __future__ import annotations

import base64
import io

from PIL import Image

from tf_covid.page.data_uri import jpeg_uri, png_size, png_uri


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_a_png_is_kept_as_it_is() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (7, 3), "red").save(buffer, "PNG")
    uri = png_uri(buffer.getvalue())
    assert uri.startswith("data:image/png;base64,")
    assert decoded(uri).size == (7, 3)
    assert png_size(buffer.getvalue()) == (7, 3)


def test_a_jpeg_keeps_its_colours_at_full_resolution() -> None:
    picture = Image.new("RGB", (64, 64), (0, 0, 0))
    picture.paste((74, 201, 255), (32, 0, 33, 64))
    shown = decoded(jpeg_uri(picture))
    assert shown.format == "JPEG"
    red, _, blue = shown.getpixel((32, 32))  # type: ignore[misc]
    assert blue - red > 120, "a line of one pixel keeps its colour"
