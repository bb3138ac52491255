"""How the process ends: at once on Ctrl-C and SIGTERM, with a sentence, and without threads of stages that overran."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

INTERRUPTED = "reconx: interrupted; run the same command again to go on from here."
STAGE_THREAD = "reconx stage "  # how the names of threads begin that cannot be ended, see :func:`attempts.within`
_OF_PYCOLMAP = (signal.SIGTERM, signal.SIGABRT)  # of those that its import takes; a stack of a real fault may be of use


@contextmanager
def stop_at_once(console: Console, number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """End the process on Ctrl-C without waiting for threads that compute; what is published is whole, the rest is repeated.

    ``number``: another signal than Ctrl-C's. The exit code is 128 and the signal's number.
    """

    def stop(*_: object) -> None:
        if console.is_terminal:
            console.show_cursor()
        os.write(sys.stderr.fileno(), f"\n{INTERRUPTED}\n".encode())
        os._exit(128 + number)

    with _handled(number, stop):
        yield


@contextmanager
def sigterm_undisturbed() -> Iterator[None]:
    """SIGTERM as :func:`stop_at_once` has it, where that was asked for, within a flow: Prefect would wait for all threads."""
    handler = _wanted.get(signal.SIGTERM)
    if handler is None:
        yield
        return
    with _handled(signal.SIGTERM, handler):
        yield


def take_back_signals() -> None:
    """Give SIGTERM and SIGABRT back what they did before pycolmap was imported, which has them print a native stack."""
    import pycolmap  # noqa: F401

    if threading.current_thread() is threading.main_thread():
        for number in _OF_PYCOLMAP:
            if (handler := signal.getsignal(number)) is not None:  # as Python knows it
                signal.signal(number, handler)


_wanted: dict[signal.Signals, Callable[..., Any]] = {}  # handlers of stop_at_once that are in force


@contextmanager
def _handled(number: signal.Signals, handler: Callable[..., Any]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before, wanted = signal.signal(number, handler), _wanted.get(number)
    _wanted[number] = handler
    try:
        yield
    finally:
        signal.signal(number, before)
        if wanted is None:
            del _wanted[number]
        else:
            _wanted[number] = wanted


def leave_stages_behind(error: BaseException | None) -> None:
    """End the process where a stage that overran goes on in its thread, which would make Python's own end an abort.

    What is to be done at the end of a process is done. Returns where there is no such thread. ``error``: what ends the process.
    """
    if not left_behind():
        return
    code = error.code if isinstance(error, SystemExit) else error and 1
    if not isinstance(error, SystemExit | None):
        traceback.print_exception(error)
    atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def left_behind() -> bool:
    """Whether a stage that overran goes on in its thread."""
    return any(thread.name.startswith(STAGE_THREAD) for thread in threading.enumerate())
