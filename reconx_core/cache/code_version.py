"""A digest of the code that a stage can reach, so that a changed method never meets its old results.

Imports are followed statically. What carries no behaviour (comments, docstrings, formatting) does not count.
"""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import NamedTuple

PACKAGE = "reconx_core"
_ROOT = Path(__file__).parents[2]
# Both have a place of their own in every key: the settings by their values, the format by its schema number.
_COUNTED_ELSEWHERE = {f"{PACKAGE}.settings", f"{PACKAGE}.store"}


@cache
def code_version(*modules: str) -> str:
    """SHA-256 over the syntax trees of ``modules`` and of every module of reconx_core that they reach, at any depth."""
    digest = hashlib.sha256()
    for name in sorted(reachable(modules)):
        digest.update(f"{name}\0{_parsed(name).skeleton}\0".encode())
    return digest.hexdigest()


@cache
def module_versions(*modules: str) -> dict[str, str]:
    """The parts of :func:`code_version`: of every file that counts, by its place in the project, a digest (12 hex digits)."""
    return {
        _parsed(name).place: hashlib.sha256(_parsed(name).skeleton.encode()).hexdigest()[:12] for name in reachable(modules)
    }


def reachable(modules: tuple[str, ...]) -> set[str]:
    """``modules`` and, transitively, what they import of reconx_core, late imports in functions included.

    Of a package among ``modules`` themselves everything counts: a stage may load its backends by name.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or name in _COUNTED_ELSEWHERE or (path := _locate(name)) is None:
            continue
        found.add(name)
        waiting += _parsed(name).imports
        waiting += [name.rpartition(".")[0]] if name.startswith(f"{PACKAGE}.") else []
        if path.name == "__init__.py" and name in modules:
            waiting += [f"{name}.{child.stem}" for child in path.parent.glob("*.py") if child.stem != "__init__"]
    return found


class _Parsed(NamedTuple):
    place: str  # in the project
    imports: list[str]
    skeleton: str


@cache
def _parsed(name: str) -> _Parsed:
    """A module that :func:`_locate` finds; read once, for most are reached by every stage."""
    path = _locate(name)
    assert path is not None
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = _imports(tree, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return _Parsed(path.relative_to(_ROOT).as_posix(), imports, _skeleton(tree))


def _locate(name: str) -> Path | None:
    """The source file of a module of this project; None where the name is not a module's (but, say, a function's)."""
    # Not importlib: finding a module imports its parents, and a key must not depend on what happens to be importable.
    base = _ROOT.joinpath(*name.split("."))
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(tree: ast.Module, package: str) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name == PACKAGE or name.startswith(f"{PACKAGE}.")]


def _skeleton(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)
