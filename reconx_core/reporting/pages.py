"""Shared by all pages: templates, pictures inside the page, and their size budget."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from reconx_core.io.files import explain_disk, write_atomic
from reconx_core.names import shown

PAGE_BYTES = 15_000_000  # budget for the pictures and videos inside a page, in base64, which adds a third
PANEL_WIDTH = 640  # pixels


def render_page(template: str, **content: Any) -> str:
    """The HTML of a template in ``reconx_core/reporting/templates`` (without its `.html.jinja`)."""
    return _templates().get_template(f"{template}.html.jinja").render(**content)


@cache
def _templates() -> jinja2.Environment:
    """One, since it keeps what it compiles: the report's template takes most of a second."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("reconx_core.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip


def write_page(path: Path, html: str) -> None:
    """Write a page atomically.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    try:
        write_atomic(path, shown(html).encode())
    except OSError as error:
        raise explain_disk(error, path.parent) from error


def open_picture(picture: bytes | Path) -> Image.Image:
    """A picture from the bytes of a file, or from the file."""
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture).convert("RGB")


def picture_uri(image: Image.Image) -> str:
    """A picture as a data URI for a page: JPEG, at most 640 pixels wide."""
    small = image.copy()
    small.thumbnail((PANEL_WIDTH, 4 * PANEL_WIDTH))
    buffer = io.BytesIO()
    # Not WebP: it is a sixth smaller but 15 times slower to encode, which delays the end of a run of many scenes.
    small.save(buffer, "JPEG", quality=80)
    return data_uri("image/jpeg", buffer.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """A file's content as a base64 data URI of media type ``kind``."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()
