"""reconx's own warnings, outside of stages, as notes for the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape

from flows.execution.ending import take_back_signals
from tasks.execute import route_warnings


@contextmanager
def notes(console: Console) -> Iterator[None]:
    """Print reconx's own warnings as notes for the user."""
    take_back_signals()
    with warnings.catch_warnings():
        route_warnings(lambda note: console.print(f"[yellow]{escape(note)}[/]", highlight=False, soft_wrap=True))
        yield
