"""Reading JSON files, of this program and of others, with a sentence where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reconx_core.errors import UserError


def read_json(file: Path, remedy: str = "export or download it again") -> Any:
    """What a JSON file in UTF-8, 16 or 32 holds; ``remedy``: what to do where it is damaged.

    Raises:
        UserError: the file cannot be read, or is no JSON.
    """
    try:
        return json.loads(file.read_bytes())  # bytes, because json then heeds a byte-order mark, as Windows writes one
    except OSError as error:
        raise UserError(f"Cannot read '{file}': {error.strerror or error}.") from None
    except RecursionError:
        why = "its brackets are nested too deeply"
    except ValueError as error:
        why = str(error)
    raise UserError(f"'{file}' is damaged, it is no JSON ({why}); {remedy}.")


def read_object(file: Path, remedy: str = "run again what wrote it") -> dict[str, Any]:
    """The JSON object in a file, by default one that this program wrote.

    Raises:
        UserError: the file cannot be read, or is damaged.
    """
    content = read_json(file, remedy)
    if not isinstance(content, dict):
        raise UserError(f"'{file}' is damaged: it holds a {type(content).__name__}; {remedy}.")
    return content
