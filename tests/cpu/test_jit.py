"""The cache of compiled kernels notices changed helpers, and says so where it cannot write."""

import importlib.util

import pytest

from reconx_core.cpu import jit

SOURCE = """
from reconx_core.cpu.jit import serial_kernel

@serial_kernel
def double(x):
    return x + x
"""


def compile_anew(path):
    """(cache hits, cache misses) of a module's kernel in what stands for a new process."""
    spec = importlib.util.spec_from_file_location("kernels_under_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.double(2.0) == 4.0
    stats = module.double.stats
    return sum(stats.cache_hits.values()), sum(stats.cache_misses.values())


def test_cache_is_used_until_a_helper_changes(tmp_path, monkeypatch):
    path = tmp_path / "kernels_under_test.py"
    path.write_text(SOURCE)
    assert compile_anew(path) == (0, 1)
    assert compile_anew(path) == (1, 0)
    monkeypatch.setattr(jit._SourceCache, "_digest", "of changed sources")
    assert compile_anew(path) == (0, 1)


def test_unwritable_cache_is_reported(tmp_path, monkeypatch):
    def refuse(function):
        raise RuntimeError("cannot cache function")

    monkeypatch.setattr(jit, "_SourceCache", refuse)
    path = tmp_path / "kernels_under_test.py"
    path.write_text(SOURCE)
    with pytest.warns(UserWarning, match="compiled anew in every process: cannot cache"):
        compile_anew(path)
