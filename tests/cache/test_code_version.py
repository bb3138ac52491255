"""The code version changes with what a stage does, and with nothing else."""

import ast

import pytest

from reconx_core.cache.code_version import _skeleton, code_version, reachable
from reconx_core.settings import STAGES


def skeleton(code):
    return _skeleton(ast.parse(code))


def test_comments_docstrings_and_formatting_do_not_count():
    plain = "def f(x):\n    return x + 1\n\nclass A:\n    y = 2\n"
    dressed = (
        '"""Module."""\ndef f(x):\n    """Adds."""\n    # one\n    return (\n        x+1\n    )\n\n'
        'class A:\n    """An A."""\n    y = 2\n'
    )
    assert skeleton(plain) == skeleton(dressed)


@pytest.mark.parametrize(
    "other", ["def f(x):\n    return x + 2", "def f(y):\n    return y + 1", "def f(x=1):\n    return x + 1"]
)
def test_behaviour_counts(other):
    assert skeleton("def f(x):\n    return x + 1") != skeleton(other)


def test_a_string_that_is_no_docstring_counts():
    assert skeleton("x = 'a'") != skeleton("x = 'b'")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_reaches_what_it_imports_but_neither_other_stages_nor_settings(stage):
    found = reachable((f"reconx_core.{stage}",))
    assert {f"reconx_core.{stage}", "reconx_core"} <= found
    assert "reconx_core.settings" not in found
    others = {f"reconx_core.{other}" for other in STAGES if other != stage}
    assert not found & others


def test_version_differs_between_stages():
    assert len({code_version(f"tasks.{stage}", f"reconx_core.{stage}") for stage in STAGES}) == len(STAGES)


def test_late_imports_inside_functions_are_followed():
    assert "reconx_core.losses.lpips" in reachable(("reconx_core.metrics",))
