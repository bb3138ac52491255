"""`reconx view`: the page of a finished scene, served to the browser or written to a file."""

from __future__ import annotations

import http.server
from http import HTTPStatus
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from flows.execution.notes import notes
from flows.runs.earlier import note_derived
from flows.scene import cameras_beside, load_cameras, load_scene, scene_origin
from reconx_core.datasets import nerfstudio
from reconx_core.errors import UserError
from reconx_core.export.origin import NO_ORIGIN
from reconx_core.io.files import require_writable_file
from reconx_core.names import one_line
from reconx_core.reporting.pages import write_page
from reconx_core.reporting.scene_page import render_scene_page

MOST_TRIED = 20  # ports from the given one on


def view(scene: Path, port: int, out: Path | None, console: Console) -> None:
    """Serve the scene's page until interrupted, or write it to ``out``.

    Raises:
        UserError: there is no scene, ``out`` is no .html or cannot be written, or no port is free.
    """
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"'{out}' should end in .html.")
    with notes(console), console.status("Making the page"):
        page = make_page(scene)
    if out is not None:
        require_writable_file(out)
        write_page(out, page)
        note_derived(scene, out)
        console.print(f"The scene is in {one_line(str(out))}; it opens in any browser.", soft_wrap=True, markup=False)
        return
    with serve(page, port) as server:
        console.print(f"The scene is at http://localhost:{server.server_address[1]}; Ctrl-C ends it.", soft_wrap=True)
        server.serve_forever()


def make_page(scene: Path) -> str:
    """The page of a scene, with the cameras and photos that lie beside it.

    Raises:
        UserError: there is no scene, or what lies beside it cannot be read.
    """
    gaussians, origin = load_scene(scene), scene_origin(scene)
    folder = (scene if scene.is_dir() else scene.parent).resolve()
    title = folder.name if (folder / "cameras").is_dir() else scene.stem
    beside = cameras_beside(scene)
    if not beside.is_file():
        return render_scene_page(title, gaussians, origin=origin or NO_ORIGIN)
    cameras = load_cameras(beside, origin)
    names, photos = _photos(beside)
    return render_scene_page(title, gaussians, cameras, names, photos, origin or NO_ORIGIN)


def _photos(transforms: Path) -> tuple[list[str], Float[Tensor, "n h w 3"] | None]:
    """Names of the cameras' photos, and the photos where their folder is there."""
    photos = nerfstudio.read(transforms).photos
    names = [Path(photo.name).stem for photo in photos]
    there = (transforms.parent / "images").is_dir()
    return names, torch.stack([photo.load() for photo in photos]) if there else None


def serve(page: str, port: int) -> http.server.ThreadingHTTPServer:
    """A server of one page on this machine alone, at ``port`` or the next free one; the caller lets it serve and closes it.

    Raises:
        UserError: none of the ports is free.
    """
    content = page.encode()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.split("?")[0] in ("/", "/scene.html")
            self.send_response(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            if found:
                self.wfile.write(content)

        def log_message(self, format: str, *_: object) -> None:
            """Nothing: every visit would be a line."""

    for tried in range(port, min(port + MOST_TRIED, 65536)):
        try:
            return http.server.ThreadingHTTPServer(("127.0.0.1", tried), Handler)
        except OSError:
            continue
    raise UserError(f"None of the ports from {port} on is free; name another with --port.")
