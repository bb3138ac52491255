"""Dependencies point one way, and functions stay small."""

import ast
import statistics
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

from reconx_core.settings import STAGES

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    p.relative_to(ROOT) for package in ("reconx_core", "tasks", "reconx", "flows") for p in (ROOT / package).rglob("*.py")
)
MAX_LINES, MEDIAN_LINES = 100, 12


def functions(path):
    return [n for n in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]


def length(function):
    return function.end_lineno - function.lineno + 1


def test_imports_keep_the_contracts_in_pyproject(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    broken = lint_imports(no_cache=True, no_logo=True)
    assert not broken, capsys.readouterr().out


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_are_absolute(path):
    # import-linter's layers and the code versions of the stages read names in full.
    nodes = ast.walk(ast.parse((ROOT / path).read_text()))
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_function_is_long(path):
    assert not [f"{path}:{f.lineno} {f.name}" for f in functions(path) if length(f) > MAX_LINES]


def test_functions_are_small():
    assert statistics.median(length(f) for path in MODULES for f in functions(path)) <= MEDIAN_LINES


def test_every_folder_of_code_is_a_package():
    assert not [path.parent for path in MODULES if not (ROOT / path.parent / "__init__.py").is_file()]


def test_every_stage_has_its_one_name_everywhere():
    for stage in STAGES:
        assert (ROOT / "tasks" / f"{stage}.py").is_file()
        assert (ROOT / "reconx_core" / stage / "__init__.py").is_file()
        assert f"\n{stage}:" in (ROOT / "params.yaml").read_text()
        assert f"\n  {stage}:" in (ROOT / "dvc.yaml").read_text()
