"""Reading JSON files that this program wrote, and that may be cut short or of another version by now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from reconx_core.errors import UserError
from reconx_core.invalid import explain

Shape = TypeVar("Shape", bound=BaseModel)


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise UserError(f"'{file}' is damaged: it is no JSON; run again what wrote it.") from None
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is damaged: it holds a {type(content).__name__}; run again what wrote it.")
    return content


def find_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file that serves only to tell more; empty where the file is missing or damaged."""
    try:
        return read_object(file)
    except UserError:
        return {}


def check_shape(content: dict[str, Any], shape: type[Shape], file: Path | str) -> Shape:
    """What a file holds, as ``shape`` says that it should.

    Raises:
        UserError: something is missing or of another kind.
    """
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        reason = explain(error, shape, "entry")[:-1]
        raise UserError(f"'{file}' is damaged, or of no run of this version ({reason}); run again what wrote it.") from None
