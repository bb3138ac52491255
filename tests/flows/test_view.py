"""`reconx view`: the page of what lies in a folder, served or written."""

import io
import json
import re
import threading
import urllib.error
import urllib.request

import pytest
import torch
from rich.console import Console

from flows.view import make_page, serve, view
from reconx_core import export
from reconx_core.errors import UserError
from reconx_core.export.formats import read_gaussians
from reconx_core.types import Cameras, Gaussians, PointCloud, Views

ORIGIN = (5e5, 5.4e6, 120.0)


@pytest.fixture
def folder(tmp_path):
    """A scene with two photos, as `reconx reconstruct` leaves it."""
    folder = tmp_path / "attic"
    torch.manual_seed(0)
    gaussians = Gaussians(torch.rand(5, 3), torch.rand(5, 4), torch.zeros(5, 3), torch.zeros(5), torch.zeros(5, 1, 3))
    export.write_ply(folder / "scene.ply", gaussians, ORIGIN)
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 0.25
    cameras = Cameras(torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]).repeat(2, 1, 1), poses, 32, 24)
    masks = torch.ones(2, 24, 32, dtype=torch.bool)
    photos = Views(torch.rand(2, 24, 32, 3), masks, ("a", "b"), masks[:, 0, 0] & False, None, torch.full((2,), torch.nan))
    export.write_cameras(folder / "cameras", cameras, photos, PointCloud(*torch.zeros(2, 0, 3), torch.zeros(0)), ORIGIN)
    return folder


def about(page):
    return json.loads(re.search(r'id="about">(.*?)</script>', page, re.DOTALL)[1])


@pytest.mark.parametrize("name", ["", "scene.ply"])
def test_page_has_cameras_and_photos_of_the_folder_in_the_frame_of_the_scene(folder, name):
    page = make_page(folder / name)
    assert "<title>attic " in page
    content = about(page)
    assert content["origin"] == list(ORIGIN)
    assert [camera["name"] for camera in content["cameras"]] == ["a", "b"]
    assert content["cameras"][1]["pose"][0] == pytest.approx([1, 0, 0, 0.25])
    assert all(camera["photo"].startswith("data:image/jpeg") for camera in content["cameras"])


def test_gaussians_alone_are_enough(folder, tmp_path):
    alone = tmp_path / "other.ply"
    alone.write_bytes((folder / "scene.ply").read_bytes())
    content = about(make_page(alone))
    assert content["cameras"] == []
    assert content["start"]["eye"][2] < float(read_gaussians(alone).means[:, 2].median())


def test_page_is_served_to_this_machine_and_a_taken_port_is_passed_over(folder):
    page = make_page(folder)
    with serve(page, 8765) as first, serve(page, first.server_address[1]) as second:
        assert second.server_address[0] == "127.0.0.1"
        assert second.server_address[1] > first.server_address[1]
        threading.Thread(target=second.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{second.server_address[1]}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            assert answer.read().decode() == page
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}/favicon.ico", timeout=10)
        second.shutdown()


def test_page_can_be_written_instead(folder):
    view(folder, 8080, folder / "a\npage.html", Console(file=(said := io.StringIO())))
    assert (folder / "a\npage.html").read_text() == make_page(folder)
    assert said.getvalue().count("\n") == 1
    with pytest.raises(UserError, match=r"should end in \.html"):
        view(folder, 8080, folder / "page.txt", Console(file=io.StringIO()))
