"""What JSON files that this program wrote hold: they may be cut short or of another version by now."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from reconx_core.errors import UserError
from reconx_core.invalid import explain
from reconx_core.io.json_files import read_object

Shape = TypeVar("Shape", bound=BaseModel)


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
