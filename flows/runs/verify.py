"""`reconx store verify`: every artifact of a store against its manifest."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.names import one_line


def verify(root: Path, console: Console) -> int:
    """Check every artifact, by its files where the process trusts no digest; names the damaged ones, returns their number.

    Raises:
        UserError: there is no such store.
    """
    if not root.is_dir():
        raise UserError(f"There is no store {root}; name it by --store.")
    count, damaged = 0, 0
    for stage, key in store.entries(root):
        count += 1
        try:
            store.find(root, stage, key)
        except store.DamagedEntry as damage:
            if not (root / stage / key).is_dir():
                continue  # removed meanwhile
            damaged += 1
            scene = one_line(str((store.manifest_of(root, stage, key) or {}).get("scene", "unknown scene")))
            console.print(f"[red]{escape(f'{scene}: {damage}')}[/red]", soft_wrap=True)
    whole = "is whole" if count == 1 else "are whole"
    advice = "; a run that needs them makes them anew" if damaged else ""
    console.print(
        f"{count - damaged} of {count} artifacts in {one_line(str(root))} {whole}{advice}.", soft_wrap=True, markup=False
    )
    return damaged
