"""Pictures as data URIs: a page needs no file beside it."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def png_uri(png: bytes) -> str:
    """A PNG file as a data URI."""
    return _uri("image/png", png)


def jpeg_uri(picture: Image.Image, quality: int = 82) -> str:
    """A picture, compressed as JPEG of this quality (1–95), as a data URI."""
    buffer = io.BytesIO()
    # Full colour resolution: thin coloured contours bleed at the usual half of it.
    picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return _uri("image/jpeg", buffer.getvalue())


def png_size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG file, from its header."""
    width, height = (int.from_bytes(png[start : start + 4], "big") for start in (16, 20))
    return width, height


def _uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64," + base64.b64encode(data).decode("ascii")
