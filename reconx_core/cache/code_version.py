"""A digest of the code that a stage can reach, so that a changed method never meets its old results.

Imports are followed statically: a module that is loaded by its name alone is not seen, and must be imported somewhere, too.
What carries no behaviour (comments, docstrings, formatting) does not count. Nor does the version of Python, because machines
share a store.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from reconx_core.cache.user_cache import recall, remember

PACKAGE = "reconx_core"
_ROOT = Path(__file__).parents[2]
# Both have a place of their own in every key: the settings by their values, the format by its schema number.
_COUNTED_ELSEWHERE = {f"{PACKAGE}.settings", f"{PACKAGE}.cache.store"}
_NO_BEHAVIOUR = {"ctx", "kind", "type_comment", "type_ignores"}


@cache
def code_version(*modules: str) -> str:
    """SHA-256 over the syntax trees (their digests) of ``modules`` and of every module of reconx_core that they reach."""
    digest = hashlib.sha256()
    for name in sorted(reachable(modules)):
        digest.update(f"{name}\0{_parsed(name).digest}\0".encode())
    return digest.hexdigest()


@cache
def module_versions(*modules: str) -> dict[str, str]:
    """The parts of :func:`code_version`: of every file that counts, by its place in the project, a digest (12 hex digits)."""
    return {_parsed(name).place: _parsed(name).digest[:12] for name in reachable(modules)}


def libraries(modules: tuple[str, ...], without: tuple[str, ...] = ()) -> set[str]:
    """The libraries, by their top-level modules, that ``modules`` and what they reach import; not by way of ``without``."""
    found = {name for module in reachable(modules, without) for name in _parsed(module).libraries}
    return found - sys.stdlib_module_names - {PACKAGE, "tasks", "flows"}


@cache
def reachable(modules: tuple[str, ...], without: tuple[str, ...] = ()) -> frozenset[str]:
    """``modules`` and, transitively, what they import of reconx_core but ``without``, late imports in functions included.

    A package is loaded with any module in it. Where nothing imports the package itself, nothing calls its functions, and their
    late imports do not count.
    """
    found: set[tuple[str, bool]] = set()
    waiting = [(name, True) for name in modules]
    while waiting:
        name, used = step = waiting.pop()
        if step in found or name in _COUNTED_ELSEWHERE or name in without or _locate(name) is None:
            continue
        found.add(step)
        imports = _parsed(name).imports if used else _parsed(name).imports_at_load
        waiting += [(other, True) for other in imports if other != name]  # a package may import its modules through itself
        waiting += [(name.rpartition(".")[0], False)] if name.startswith(f"{PACKAGE}.") else []
    return frozenset(name for name, _ in found)


class _Parsed(NamedTuple):
    place: str  # in the project
    imports: list[str]
    imports_at_load: list[str]  # of these all but the late ones
    libraries: list[str]  # top-level modules that are imported, at load or late
    digest: str  # of the syntax tree, in hex


@cache
def _parsed(name: str) -> _Parsed:
    """A module that :func:`_locate` finds; read once, for most are reached by every stage."""
    path = _locate(name)
    assert path is not None
    place, source = path.relative_to(_ROOT).as_posix(), path.read_bytes()
    # Parsing all modules takes two seconds, so what came of the same text is remembered from one process to the next.
    entry = f"code/{hashlib.sha256(f'{_own_digest()} {place} '.encode() + source).hexdigest()}.json"
    with suppress(ValueError, TypeError):
        return _Parsed(*json.loads(recall(entry) or b"null"))
    parsed = _parse(name, place, source)
    remember(entry, json.dumps(parsed).encode())
    return parsed


@cache
def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _parse(name: str, place: str, source: bytes) -> _Parsed:
    tree = ast.parse(source.decode("utf-8"))
    package = name if place.endswith("/__init__.py") else name.rpartition(".")[0]
    imports, at_load = (_imports(tree, package, late) for late in (True, False))
    return _Parsed(place, imports, at_load, _libraries(tree), hashlib.sha256(_skeleton(tree).encode()).hexdigest())


@cache
def _locate(name: str) -> Path | None:
    """The source file of a module of this project; None where the name is not a module's (but, say, a function's)."""
    # Not importlib: finding a module imports its parents, and a key must not depend on what happens to be importable.
    base = _ROOT.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(tree: ast.Module, package: str, late: bool) -> list[str]:
    """What a module of ``package`` imports of the project; ``late``: also inside of functions."""
    names = []
    for node in _walk(tree, late):
        if isinstance(node, ast.Import):
            names += [part for alias in node.names for part in _with_parents(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name == PACKAGE or name.startswith(f"{PACKAGE}.")]


def _libraries(tree: ast.Module) -> list[str]:
    """The top-level modules that a module imports, with those of the standard library and of this project."""
    plain = (alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names)
    named = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module and not node.level)
    return sorted({name.partition(".")[0] for name in (*plain, *named)})


def _walk(tree: ast.AST, late: bool) -> Iterator[ast.AST]:
    """All nodes; without ``late`` those that run when the module is loaded."""
    yield tree
    if late or not isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef)):
        for child in ast.iter_child_nodes(tree):
            yield from _walk(child, late)


def _with_parents(name: str) -> list[str]:
    """``import a.b`` makes a's own functions callable, too."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _absolute(node: ast.ImportFrom, package: str) -> str:
    """The full name of the module that a ``from`` statement names, perhaps by dots."""
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])


def _skeleton(node: Any) -> str:
    """A syntax tree as text, the same under every version of Python: ast.dump is not."""
    if isinstance(node, list):
        return f"[{','.join(map(_skeleton, node))}]"
    if not isinstance(node, ast.AST):
        return ascii(node)  # repr shows as it is what this version's Unicode tables call printable
    fields = (f"{name}={_skeleton(value)}" for name, value in sorted(_fields(node).items()))
    return f"{type(node).__name__}({','.join(fields)})"


def _fields(node: ast.AST) -> dict[str, Any]:
    """The fields that carry behaviour; what is empty is left out, because versions differ in which empty fields there are."""
    fields = {name: value for name, value in ast.iter_fields(node) if name not in _NO_BEHAVIOUR}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        fields["body"] = _without_docstring(node.body)
    elif isinstance(node, ast.JoinedStr):
        fields["values"] = _joined(node.values)
    elif isinstance(node, ast.FormattedValue) and _skeleton(node.format_spec) == "JoinedStr()":
        del fields["format_spec"]
    return {name: value for name, value in fields.items() if value is not None and value != []}


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements without ``pass``, too, which may stand where a docstring could."""
    first = body[0] if body else None
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return [statement for statement in body[is_docstring:] if not isinstance(statement, ast.Pass)]


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string; where its text is cut, and whether there are empty pieces, differs between versions."""
    parts: list[ast.expr] = []
    for is_text, group in groupby(values, lambda value: isinstance(value, ast.Constant)):
        if not is_text:
            parts += group
        elif text := "".join(map(ast.literal_eval, group)):
            parts.append(ast.Constant(text))
    return parts
