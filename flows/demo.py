"""`make demo`: photos of a procedural room in a folder, reconstructed without their cameras, scored on held-out views."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from flows.evaluate import EvaluationRequest, evaluate
from flows.execution.run import resolve_settings
from reconx_core.errors import UserError

SCENES = "procedural:room?seed=0"
# Cameras are written beside the photos, but serve only to score: nothing is given to the reconstruction.
SETTINGS = ["views.protocol=unposed"]


def main(folder: Path) -> int:
    """Write the photos into ``folder/photos``, evaluate them into ``folder/run``; returns the exit code."""
    console = Console(highlight=False, emoji=False)
    write_photos(folder / "photos", console)
    request = EvaluationRequest(str(folder / "photos"), resolve_settings(None, SETTINGS))
    return int(evaluate(request, folder / "run", folder / "store", console) > 0)


def write_photos(folder: Path, console: Console) -> None:
    """The room's photos as JPEG files with cameras and a split, as a user's own dataset would be."""
    from reconx_core.datasets import read, scene_names
    from reconx_core.export import dataset as write

    for name, spec in scene_names(Path(SCENES)):
        with console.status(f"Photographing {escape(name)}"):
            paths = write.write_photos(read(spec), folder / name)
        console.print(f"{len(paths)} photos of a procedural room in {folder / name / 'images'}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except UserError as error:
        print(f"reconx: {error}", file=sys.stderr)
        sys.exit(2)
