"""Dependencies point one way, and functions stay small."""

import ast
from pathlib import Path

import pytest

from reconx_core.settings import STAGES

ROOT = Path(__file__).parents[1]
MODULES = sorted(p.relative_to(ROOT) for package in ("reconx_core", "tasks", "flows") for p in (ROOT / package).rglob("*.py"))
ORCHESTRATION = {"prefect", "dvc", "mlflow", "typer"}
MAX_LINES = 100


def imported(path):
    """Every module that a file imports, anywhere in it, as written (and, for `from a import b`, also `a.b`)."""
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
    tops = {name.split(".")[0] for name in imported(path)}
    if path.parts[0] == "reconx_core":
        assert not tops & {"tasks", "flows", *ORCHESTRATION}
    if path.parts[0] == "tasks":
        assert "flows" not in tops
    assert "cv2" not in tops  # clashes with pycolmap in one process


@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_imports_another(stage):
    others = {f"reconx_core.{other}" for other in STAGES if other != stage}
    for path in (ROOT / "reconx_core" / stage).rglob("*.py"):
        for name in imported(path.relative_to(ROOT)):
            assert ".".join(name.split(".")[:2]) not in others, f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_function_is_long(path):
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno + 1 <= MAX_LINES, f"{path}:{node.lineno} {node.name}"


def test_every_stage_has_its_one_name_everywhere():
    for stage in STAGES:
        assert (ROOT / "tasks" / f"{stage}.py").is_file()
        assert (ROOT / "reconx_core" / stage / "__init__.py").is_file()
        assert f"\n{stage}:" in (ROOT / "params.yaml").read_text()
        assert f"\n  {stage}:" in (ROOT / "dvc.yaml").read_text()
