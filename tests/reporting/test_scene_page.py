"""The page of a scene: what is packed into it, what it says, and that a browser draws with it what our rasteriser draws."""

import base64
import html
import io
import json
import math
import re
import shutil
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_core.condition.camera_files import cameras_on_path, read_path
from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.rasterize import rasterize
from reconx_core.reporting import scene_page
from reconx_core.reporting.packed import GROUP, pack, space_codes
from reconx_core.reporting.scene_page import render_scene_page
from reconx_core.types import Cameras, Gaussians

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
WIDTH, HEIGHT = 96, 64
# The clock of a slow device: frames of 100 ms, each of which has the time of a second ago.
SLOW = """<script>{ let now = 0; performance.now = () => now;
  window.requestAnimationFrame = done => setTimeout(() => { now += 100; done(now - 1000); }); }</script>"""


def scene(count=1500, degree=3, seed=0):
    """Gaussians of every shape before two cameras, a few of them far away."""
    draw = torch.Generator().manual_seed(seed)
    means = torch.randn(count, 3, generator=draw) * torch.tensor([1.0, 0.7, 0.6]) + torch.tensor([0, 0, 4.0])
    means[::50] = means[::50] * torch.tensor([8.0, 8.0, 12.0])
    scales = (0.02 + 0.12 * torch.rand(count, 3, generator=draw)).log()
    opacity = 3 * torch.randn(count, generator=draw)
    sh = 0.3 * torch.randn(count, (degree + 1) ** 2, 3, generator=draw)
    return Gaussians(means, torch.randn(count, 4, generator=draw), scales, opacity, sh)


def two_cameras():
    turn = so3_exp(torch.tensor([[0.0, 0.05, 0.0], [0.02, -0.3, 0.1]]))
    lens = torch.tensor([[90.0, 0, 45], [0, 92, 33], [0, 0, 1]]).repeat(2, 1, 1)
    return Cameras(lens, rigid(turn, torch.tensor([[0.0, 0, 0], [1.2, 0.1, 0.3]])), WIDTH, HEIGHT)


def unpack(packed):
    """The Gaussians, read as `scene.js` reads them."""
    content, n, terms = zlib.decompress(packed.content), packed.count, (packed.degree + 1) ** 2
    groups = -(-n // GROUP)
    bounds = np.frombuffer(content, "<f4", groups * 6).reshape(groups, 2, 3)
    planes = np.frombuffer(content, np.uint8, offset=groups * 24).reshape(14 + 3 * terms, n).astype(np.float64)

    def levels(rows, limits):
        return limits[0] + planes[rows] / 255 * (limits[1] - limits[0])

    low, high = (np.repeat(bound, GROUP, 0)[:n] for bound in (bounds[:, 0], bounds[:, 1]))
    means = low + (256 * planes[0:6:2] + planes[1:6:2]).T / 65535 * (high - low)
    sh = np.concatenate([levels(slice(14, 17), packed.base), levels(slice(17, None), packed.rest)])
    return Gaussians(
        torch.from_numpy(means).float(),
        torch.from_numpy(planes[9:13].T - 128).float(),
        torch.from_numpy(levels(slice(6, 9), packed.scales).T.copy()).float(),
        torch.logit(torch.from_numpy(planes[13] / 255).float()),
        torch.from_numpy(sh.reshape(terms, 3, n).transpose(2, 0, 1).copy()).float(),
    )


def psnr(a, b):
    return -10 * math.log10(float(((a - b) ** 2).mean()))


def pictures(gaussians, cameras):
    return rasterize(gaussians, cameras).rgb.clamp(0, 1)


@pytest.mark.parametrize("degree", [0, 1, 3])
def test_packed_gaussians_render_like_the_scene(degree):
    gaussians = scene(degree=degree)
    packed = pack(gaussians)
    assert packed.degree == degree
    assert packed.count == int((gaussians.logit_opacities.sigmoid() >= 1 / 255).sum()) < len(gaussians)
    assert psnr(pictures(unpack(packed), two_cameras()), pictures(gaussians, two_cameras())) > 45


def test_packing_is_the_same_each_time_and_takes_a_quarter_of_the_bytes():
    packed = pack(scene(5000, 1))
    assert packed == pack(scene(5000, 1))
    assert len(packed.content) < 5000 * 26  # a PLY has 104 per Gaussian


def test_neighbours_have_near_codes_even_beside_something_very_far():
    means = scene(2000).means.numpy()
    means[0] = 1e6
    ordered = means[np.argsort(space_codes(means))]
    steps = np.linalg.norm(np.diff(ordered, axis=0), axis=-1)
    assert np.median(steps) < 0.3 * np.median(np.linalg.norm(np.diff(means, axis=0), axis=-1))


def test_gaussians_without_extent_and_none_at_all_are_packed():
    one = Gaussians(torch.ones(1, 3), torch.ones(1, 4), torch.zeros(1, 3), torch.full((1,), 9.0), torch.zeros(1, 1, 3))
    torch.testing.assert_close(unpack(pack(one)).means, one.means)
    faint = Gaussians(one.means, one.quats, one.log_scales, one.logit_opacities - 99, one.sh)
    assert pack(faint).count == 0


def test_those_that_are_seen_most_are_kept_and_without_cameras_the_largest(monkeypatch):
    monkeypatch.setattr(scene_page, "MOST_GAUSSIANS", 1500)
    gaussians, cameras = scene(3000), two_cameras()
    kept, large = scene_page._most_seen(gaussians, cameras), scene_page._most_seen(gaussians, None)
    assert len(kept) == len(large) == 1500
    assert psnr(pictures(kept, cameras), pictures(gaussians, cameras)) > 30
    assert large.log_scales.mean() > gaussians.log_scales.mean()


def about_of(page):
    return json.loads(re.search(r'id="about">(.*?)</script>', page, re.DOTALL)[1])


def test_page_needs_nothing_else_and_is_the_same_each_time(monkeypatch):
    arguments = ("A <scene> & more", scene(), two_cameras(), ("a</script>", "b"), torch.rand(2, HEIGHT, WIDTH, 3))
    page = render_scene_page(*arguments)
    assert page == render_scene_page(*arguments)
    assert not re.search(r"https?://|@import|<link|src=\"(?!data:)", page)
    assert "A &lt;scene&gt; &amp; more" in page
    about = about_of(page)
    assert [camera["name"] for camera in about["cameras"]] == ["a</script>", "b"]
    assert "of 1,500" not in page
    monkeypatch.setattr(scene_page, "MOST_GAUSSIANS", 700)
    page = render_scene_page(*arguments)
    assert "700 Gaussians of 1,500, those that the cameras see most of." in page
    assert about_of(page)["count"] <= 700


def shown_by_browser(page, script, tmp_path):
    """What ``script``, in which `scene` is the page's own object, returns in a headless browser."""
    probe = """<pre id="found"></pre><script>(async () => {
      const busy = setInterval(() => { for (let i = 0; i < 1e5; i++) window.noise = Math.random(); }, 10);
      const found = await window.reconx.then(scene => { %s }).catch(error => ({error: String(error)}));
      document.getElementById("found").textContent = JSON.stringify(found);
      clearInterval(busy);
    })();</script></body>"""
    file = tmp_path / "page.html"
    file.write_text(page.replace("</body>", probe % script))
    options = (
        "--headless=new", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist",
        "--no-first-run", "--disable-background-networking", "--window-size=500,400", "--virtual-time-budget=30000",
        "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
    )  # fmt: skip
    done = subprocess.run([BROWSER, *options, file.as_uri()], capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was not shown: {done.stderr[-2000:]}"
    return json.loads(html.unescape(found[1]))


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")
def test_browser_draws_what_the_rasteriser_draws_and_saves_a_path(tmp_path):
    gaussians, cameras, origin = scene(), two_cameras(), (100.0, 0.0, -5.0)
    script = """scene.frames.push(...scene.cameras);
      return {pictures: scene.cameras.map(camera => scene.picture(camera)), path: scene.pathFile(0.5), followed: (() => {
        const said = scene.relative();
        scene.set({...scene.cameras[0], eye: [9, 9, 9]});
        scene.adopt(said);
        return scene.pose().eye;
      })()};"""
    found = shown_by_browser(render_scene_page("test", gaussians, cameras, origin=origin), script, tmp_path)
    assert "error" not in found, found
    for uri, expected in zip(found["pictures"], pictures(gaussians, cameras)):
        shown = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")
        assert psnr(torch.from_numpy(np.asarray(shown) / 255), expected) > 40
    assert found["followed"] == pytest.approx([0, 0, 0], abs=1e-6)
    file = tmp_path / "camera_path.json"
    file.write_text(json.dumps(found["path"]))
    path = cameras_on_path(read_path(file), cameras, origin)
    assert len(path) == 12  # half a second
    torch.testing.assert_close(path.cam_to_world[[0, -1]], cameras.cam_to_world, rtol=0, atol=1e-5)
    torch.testing.assert_close(path.intrinsics[0, 1, 1], cameras.intrinsics[0, 1, 1])


@pytest.mark.long
@pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")
def test_a_click_on_a_photo_goes_to_its_camera_and_lets_the_photo_be_drawn_over_the_picture(tmp_path):
    turns = so3_exp(torch.tensor([[0.1, 0.05, 0.0], [0.02, -0.3, 0.1], [0.0, 0.2, -0.1]]))
    cameras = Cameras(two_cameras().intrinsics[[0, 0, 1]], rigid(turns, 0.3 * torch.eye(3)), WIDTH, HEIGHT)
    lengths = cameras.cam_to_world[:, :3, 2].double().square().sum(-1)
    assert (lengths < 1).any()  # axes as they are in single precision
    script = """return (async () => {
      const frame = () => new Promise(requestAnimationFrame), wipe = document.getElementById("wipe"), at = [];
      const off = camera => Math.hypot(...scene.pose().eye.map((v, k) => v - camera.eye[k]));
      for (const [i, button] of document.querySelectorAll("#photos button").entries()) {
        button.click();
        let furthest = 0;
        for (let frames = 0; frames < 500 && off(scene.cameras[i]) > 0; frames++) {
          await frame();
          furthest = Math.max(furthest, off(scene.cameras[i]));
        }
        await frame(), await frame();
        at.push({off: off(scene.cameras[i]), astray: furthest > 1, wipe: !wipe.disabled});
      }
      scene.set({...scene.pose(), eye: [0.05, 0, 0]});
      await frame(), await frame();
      return {at, away: !wipe.disabled};
    })();"""
    photos = torch.rand(3, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
    page = render_scene_page("test", scene(300), cameras, ("a", "b", "c"), photos).replace("<head>", f"<head>{SLOW}")
    found = shown_by_browser(page, script, tmp_path)
    assert found == {"at": 3 * [{"off": 0, "astray": False, "wipe": True}], "away": False}
