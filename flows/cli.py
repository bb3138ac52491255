"""The command line `reconx`. Everything heavy is imported inside the commands, so that help and mistakes are told at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from reconx_core.errors import UserError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
console = Console(highlight=False)

PresetOption = Annotated[str | None, typer.Option("--preset", "-p", help="default, permissive, paper, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", "-S", metavar="STAGE.KEY=VALUE", help="Change one setting.")]
StoreOption = Annotated[Path | None, typer.Option("--store", help="Where results of stages are kept and looked up.")]
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="Scenes that run side by side.")]


def main() -> None:
    """Entry point: a user's mistake ends with one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"reconx: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("reconx: interrupted; run the same command again to go on from here.", file=sys.stderr)
        sys.exit(130)


@app.callback()
def about() -> None:
    """A few photos to a 3D Gaussian scene, and whole datasets evaluated."""


@app.command()
def reconstruct(
    source: Annotated[str, typer.Argument(metavar="PHOTOS_OR_VIDEO", help="A folder of 2 or more photos, or a video.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for the results.")] = Path("outputs"),
    preset: PresetOption = None,
    set_: SetOption = None,
    store: StoreOption = None,
) -> None:
    """Photos or a video of a place to a 3D Gaussian scene."""
    from flows.reconstruct import reconstruct as run
    from flows.run import default_store, resolve_settings

    run(source, out, resolve_settings(preset, set_), store or default_store(), console)


if __name__ == "__main__":
    main()
