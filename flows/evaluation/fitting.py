"""Tables of runs in a terminal: as tables where their numbers fit, else a line for every cell."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table

_WORD = 10  # characters to which a column that may wrap can shrink
_BESIDE = 3  # two blanks and a line


def print_fitting(console: Console, table: Table) -> None:
    """The table; where the terminal is too narrow for columns that must not wrap, its rows, a line for each of their cells."""
    if sum(map(_least, table.columns)) + 1 <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title, style="bold", soft_wrap=True)
    _, *headings = (column.header for column in table.columns)
    for name, *cells in zip(*(column.cells for column in table.columns)):
        if name:
            console.print(name, style="bold", soft_wrap=True)
        for heading, cell in zip(headings, cells):
            if cell:
                console.print(f"  {heading}  {cell}", soft_wrap=True)
    if table.caption:
        console.print(table.caption)


def _least(column: Column) -> int:
    """The narrowest in which the column is whole."""
    longest = max(cell_len(str(text)) for text in (column.header, *column.cells))
    return (longest if column.no_wrap else min(longest, _WORD)) + _BESIDE
