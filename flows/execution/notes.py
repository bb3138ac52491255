"""reconx's own warnings, outside of stages, as notes for the user."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from flows.execution.ending import take_back_signals
from reconx_core.names import one_line
from tasks.execute import route_warnings


def noted_on(console: Console) -> Callable[[str], None]:
    """What prints a sentence as a note for the user."""
    return lambda note: console.print(f"[yellow]{escape(one_line(note))}[/]", highlight=False, soft_wrap=True)


@contextmanager
def notes(console: Console) -> Iterator[None]:
    """Print reconx's own warnings as notes for the user."""
    take_back_signals()
    with warnings.catch_warnings():
        route_warnings(noted_on(console))
        yield
