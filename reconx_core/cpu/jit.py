"""Compilation of numba kernels: cached on disk, run by one Python thread at a time.

Without fast-math: numba optimises a kernel differently when it loads it from its cache, and only plain IEEE arithmetic (with
explicit fused operations, see simd.fma) is bit-identical in the process that compiled a kernel and in later ones.

Importing numba takes half a second, so modules with kernels are imported where they are used, not in a package's
``__init__``.
"""

from __future__ import annotations

import hashlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba.core.caching import FunctionCache

from reconx_core.errors import UserError

_lock = threading.RLock()
_process = os.getpid()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Lock for kernel calls: numba's fallback threading layer aborts the process if two threads enter it.

    Raises:
        UserError: in a forked child process, where the parent's thread pools are gone and a kernel would deadlock.
    """
    if os.getpid() != _process:
        raise UserError("The CPU kernels cannot run in a forked process; start worker processes with the 'spawn' method.")
    with _lock:
        yield


def _digest_of_kernels() -> str:
    package = Path(__file__).parents[1]
    sources = sorted(path for folder in ("cpu", "losses", "rasterize") for path in package.glob(f"{folder}/*.py"))
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in sources)).hexdigest()


class _SourceCache(FunctionCache):
    """numba's cache index covers only the kernel's own file; this one also covers the helpers that it inlines."""

    _digest = _digest_of_kernels()

    def _index_key(self, sig: Any, codegen: Any) -> tuple[Any, ...]:
        return (*super()._index_key(sig, codegen), self._digest)


def _cached(dispatcher: Any) -> Any:
    try:
        dispatcher._cache = _SourceCache(dispatcher.py_func)
    except RuntimeError as error:  # neither the package nor the user's cache folder is writable
        warnings.warn(f"CPU kernels are compiled anew in every process: {error}", stacklevel=3)
    return dispatcher


def kernel(function: Callable) -> Any:
    """Compile a kernel whose ``prange`` loops run on all threads."""
    return _cached(numba.njit(parallel=True, nogil=True, error_model="numpy")(function))


def serial_kernel(function: Callable) -> Any:
    """Compile a kernel that runs on the calling thread."""
    return _cached(numba.njit(nogil=True, error_model="numpy")(function))


def inlined(function: Callable) -> Any:
    """A helper that is inlined into the kernels that call it."""
    return numba.njit(forceinline=True, error_model="numpy")(function)
