"""What pydantic finds wrong with settings and files, in words for those who wrote them."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from reconx_core.names import abbreviate, quoted

_WHOLE, _NUMBER, _SWITCH = "a whole number", "a number", "true or false"
_KINDS = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), _SWITCH),
    "string_type": "text",
    "finite_number": "a finite number",
}
_NAMES = {int: _WHOLE, float: _NUMBER, bool: _SWITCH, str: "text"}
_SHAPES = ("tuple_type", "list_type", "dict_type", "model_type", "model_attributes_type", "too_long", "too_short")
_COUNTS = ("no", "one", "two", "three", "four")
_EXAMPLES = ("128", "256", "512", "1024")


def explain(error: ValidationError, model: type[BaseModel], what: str, where: str = "") -> str:
    """The first error in a sentence: ``Setting 'views.size' should be at least 64, but is 5.``

    ``what`` was read as ``model``, such as ``setting``; ``where`` follows its name.
    """
    first = error.errors()[0]
    name = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"There is no {what} '{name}'{where}; did you mean '{_nearest(first['loc'], model)}'?"
    if first["type"] == "missing" and _item_of_tuple(first, model):  # of too few items: the whole is meant
        name = name.rpartition(".")[0]
    named = f" '{name}'" if name else ""
    return f"{what[:1].upper()}{what[1:]}{named}{where}{_separator(first)}{problem(first, model)}."


def problem(first: ErrorDetails, model: type[BaseModel]) -> str:
    """What a value of ``model`` should be, and what it is."""
    said = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing" and not _item_of_tuple(first, model):
        return "is missing"
    if not first["loc"] or (first["type"] == "value_error" and not said.startswith("should")):
        return said[:1].lower() + said[1:]
    return f"{_wanted(first, model, said)}, but is {quoted(first['input'])}"


def _separator(first: ErrorDetails) -> str:
    at_whole = not first["loc"] or (first["type"] == "value_error" and not first["msg"].startswith("Value error, should"))
    return ": " if at_whole else " "


def _wanted(first: ErrorDetails, model: type[BaseModel], said: str) -> str:
    kind = first["type"]
    if kind in _KINDS:
        return f"should be {_KINDS[kind]}{_or_null(_annotation(first['loc'], model))}"
    if kind in _SHAPES or kind == "missing":
        loc = first["loc"][:-1] if kind == "missing" else first["loc"]
        return f"should be {_form(str(loc[-1]), _annotation(loc, model))}"
    for text, short in (("greater than or equal to", "at least"), ("less than or equal to", "at most")):
        said = said.replace(text, short)
    said = said.removeprefix("Input ")
    return said[:1].lower() + said[1:]


def _form(key: str, annotation: Any) -> str:
    """How a value of several parts is written."""
    inner = _without_null(annotation)
    null = ", or null" if inner is not annotation else ""
    parts = get_args(inner)
    if get_origin(inner) is tuple and len(parts) < len(_COUNTS) and Ellipsis not in parts:
        kind = _NAMES.get(_plain(parts[0]), "value").removeprefix("a ")
        return f"{_COUNTS[len(parts)]} {kind}s, such as [{', '.join(_EXAMPLES[: len(parts)])}]{null}"
    if get_origin(inner) is list and parts and _is_model(parts[0]):
        first = next(iter(parts[0].model_fields))
        return f"a list, such as {key}=[{{{first}: {first.upper()}}}]{null}"
    if _is_model(inner):
        return f"{{KEY: VALUE}}, with KEY one of {abbreviate(list(inner.model_fields))}{null}"
    return f"a list{null}" if get_origin(inner) in (list, tuple) else f"a mapping{null}"


def _annotation(loc: Sequence[int | str], model: type[BaseModel]) -> Any:
    """The type at a place in ``model``; None where it has no such place."""
    kind: Any = model
    for part in loc:
        kind = _without_null(kind)
        if isinstance(part, int):
            inner = get_args(kind)
            kind = (inner[part] if get_origin(kind) is tuple and part < len(inner) else inner[0]) if inner else None
        else:
            field = kind.model_fields.get(part) if _is_model(kind) else None
            kind = field.annotation if field is not None else None
    return kind


def _item_of_tuple(first: ErrorDetails, model: type[BaseModel]) -> bool:
    return get_origin(_without_null(_annotation(first["loc"][:-1], model))) is tuple


def _without_null(annotation: Any) -> Any:
    """``int`` of ``int | None``."""
    if get_origin(annotation) not in (Union, UnionType):
        return annotation
    others = [part for part in get_args(annotation) if part is not type(None)]
    return others[0] if len(others) == 1 else annotation


def _or_null(annotation: Any) -> str:
    return " or null" if _without_null(annotation) is not annotation else ""


def _plain(annotation: Any) -> Any:
    """``int`` of ``Annotated[int, ...]``."""
    return getattr(annotation, "__origin__", annotation)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _nearest(loc: Sequence[int | str], model: type[BaseModel]) -> str:
    """The key that may have been meant: of the same section, or of any."""
    *sections, _ = map(str, loc)
    section = _without_null(_annotation(loc[:-1], model))
    here = [".".join([*sections, key]) for key in (section.model_fields if _is_model(section) else ())]
    return difflib.get_close_matches(".".join(map(str, loc)), [*here, *_keys(model)], n=1, cutoff=0.0)[0]


def _keys(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield name
        inner = _without_null(field.annotation)
        if _is_model(inner):
            yield from (f"{name}.{key}" for key in _keys(inner))
