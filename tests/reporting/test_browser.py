"""report.html and compare.html in a real headless browser, at a phone's width and at a desktop's, light and dark.

Chromium makes no window narrower than 500 pixels, so each page is shown in frames of one harness page. A frame has its own
viewport and, by its colour scheme, its own light or dark theme. The frame without scripts shows what works without JavaScript.
"""

import html
import json
import re
import shutil
import subprocess
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from small_runs import failed_record, failed_scene, record_scene, report_of, report_scene, write_pictures, write_run

from flows.evaluation.compare_page import render_comparison
from flows.evaluation.comparison import pair_up
from flows.runs.records import read_run
from reconx_core.io.video import write_mp4
from reconx_core.reporting.report import render_report

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
pytestmark = [pytest.mark.long, pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome here")]

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--virtual-time-budget=30000", "--dump-dom",
)  # fmt: skip
HEIGHT = 900
FRAMES = {  # name -> width, colour scheme, whether scripts run
    "phone": (390, "light", True),
    "night": (390, "dark", True),
    "desktop": (1280, "light", True),
    "plain": (390, "light", False),
}
SANDBOXED = "Blocked script execution in 'about:srcdoc'"  # the browser's message about the frame without scripts
PROBE = """
const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
const opaque = colour => numbers(colour).length === 3 || numbers(colour)[3] === 1;
function contrast(element, view) {  // of text that stands on a plain background; null where it does not
  let under = element;
  while (under && !opaque(view.getComputedStyle(under).backgroundColor)) {
    if (numbers(view.getComputedStyle(under).backgroundColor)[3] > 0) return null;
    under = under.parentElement;
  }
  if (!under) return null;
  const style = view.getComputedStyle(element), colour = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
  const [a, b] = [colour, view.getComputedStyle(under).backgroundColor].map(c => luminance(numbers(c)));
  return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
}
async function probe(frame) {
  const view = frame.contentWindow, page = frame.contentDocument;
  const folded = page.documentElement.scrollWidth - view.innerWidth;
  page.querySelectorAll("details").forEach(details => { details.open = true; });
  const pictures = [...page.querySelectorAll("img[src]")];
  await Promise.allSettled(pictures.map(image => { image.loading = "eager"; return image.decode(); }));
  const videos = [...page.querySelectorAll("video")];
  await Promise.all(videos.map(video => video.readyState || video.error || new Promise(done => {
    video.onloadedmetadata = video.onerror = done;
    video.load();
  })));
  const plots = [...page.querySelectorAll(".plot")].map(plot => [...plot.querySelectorAll(".mark")]);
  const outside = plots.flat().map(mark => mark.getBoundingClientRect())
    .filter(box => box.width < 4 || box.left < 0 || box.right > view.innerWidth);
  const texts = [...page.body.querySelectorAll("*")].filter(e => e.checkVisibility() && !e.closest("dialog, svg title")
    && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  const pale = texts.map(e => [contrast(e, view), e.textContent.trim().slice(0, 40)]).filter(([c]) => c !== null && c < 4.5);
  const requests = view.performance.getEntriesByType("resource").map(e => e.name).filter(name => !name.startsWith("data:"));
  const found = {
    width: view.innerWidth, folded, opened: page.documentElement.scrollWidth - view.innerWidth, requests, pale,
    pictures: pictures.map(image => image.naturalWidth), videos: videos.map(video => video.videoWidth),
    plots: plots.map(marks => marks.length), outside: outside.length, texts: texts.length,
    titled: plots.flat().filter(mark => mark.querySelector("title")?.textContent).length,
  };
  const dialog = page.querySelector("dialog"), button = page.querySelector(".panels button");
  if (dialog && button) {
    const shown = () => dialog.open && dialog.querySelector("img").alt;
    button.click();
    found.taps = [shown()];
    for (let i = 0; i < 2; i++) { dialog.querySelector("img").click(); found.taps.push(shown()); }
    dialog.querySelector("p").click();
    found.taps.push(shown());
  }
  return found;
}
addEventListener("load", async () => {
  const found = {};
  // The browser's clock jumps to its end as soon as nothing waits for it; pictures are decoded in real time. So keep it busy.
  const busy = setInterval(() => { for (let i = 0; i < 100000; i++) window.noise = Math.random(); }, 10);
  for (const frame of document.querySelectorAll("iframe")) found[frame.id] = await probe(frame);
  clearInterval(busy);
  document.getElementById("findings").textContent = JSON.stringify(found);
});
"""


@dataclass
class Seen:
    frames: dict
    console: list
    screenshot: Image.Image


def look_at(page, folder):
    """What the browser makes of the page: findings per frame, console messages, and a picture of the frames."""
    frames = "".join(
        f'<iframe id="{name}" style="border:0;width:{width}px;height:{HEIGHT}px;color-scheme:{scheme}"'
        f'{"" if scripts else " sandbox=allow-same-origin"} srcdoc="{html.escape(page)}"></iframe>'
        for name, (width, scheme, scripts) in FRAMES.items()
    )
    harness = folder / "harness.html"
    harness.write_text(
        '<!doctype html><meta charset="utf-8"><body style="margin:0;display:flex">'
        f'{frames}<pre id="findings"></pre><script>{PROBE}</script>'
    )
    width = sum(width for width, _, _ in FRAMES.values())
    place = (f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'shot.png'}", f"--window-size={width},{HEIGHT}")
    done = subprocess.run([BROWSER, *OPTIONS, *place, harness.as_uri()], capture_output=True, text=True, timeout=60)
    found = re.search(r'<pre id="findings">(\{.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page was not shown: {done.stderr[-2000:]}"
    messages = [
        line.split("CONSOLE", 1)[1] for line in done.stderr.splitlines() if ":CONSOLE" in line and SANDBOXED not in line
    ]
    return Seen(json.loads(html.unescape(found[1])), messages, Image.open(folder / "shot.png"))


def check_page(seen):
    """What holds for every page, in every frame."""
    assert seen.console == []
    for name, (width, _, _) in FRAMES.items():
        frame = seen.frames[name]
        assert frame["width"] == width
        assert frame["folded"] <= 0, f"{name} is {frame['folded']} pixels too wide"
        assert frame["opened"] <= 0, f"{name} is {frame['opened']} pixels too wide with everything unfolded"
        assert frame["requests"] == []
        assert all(pixels > 0 for pixels in frame["pictures"])
        assert frame["outside"] == 0
        assert frame["titled"] == sum(frame["plots"])
        assert frame["pale"] == []
        assert frame["texts"] > 50
    shot = seen.screenshot.convert("RGB")
    assert shot.getpixel((2, 2)) == (255, 255, 255)
    assert shot.getpixel((FRAMES["phone"][0] + 2, 2)) == (20, 23, 26)


def test_report_of_many_scenes(tmp_path):
    write_mp4(tmp_path / "clip.mp4", torch.rand(6, 48, 64, 3, generator=torch.Generator().manual_seed(0)))
    clip = (tmp_path / "clip.mp4").read_bytes()
    scenes = [report_scene(f"a_long_name_of_scene_{i:02d}", 18 + 0.3 * i, clip if i < 2 else None) for i in range(19)]
    seen = look_at(render_report(report_of([*scenes, failed_scene("tower")])), tmp_path)
    check_page(seen)
    for frame in seen.frames.values():
        assert frame["plots"] == [19, 19, 19]
        assert len(frame["pictures"]) == 19 * 2 * 4
        assert frame["videos"] == [64, 64]
    for name in ("phone", "night", "desktop"):
        assert seen.frames[name]["taps"] == ["photo of a.jpg", "render of a.jpg", "photo of a.jpg", False]
    assert seen.frames["plain"]["taps"][0] is False


def compared_runs(folder):
    """Three runs over six scenes, one of which failed in the third; pictures of all."""
    names, runs = [f"a_long_name_of_scene_{i}" for i in range(6)], []
    for k in range(3):
        scenes = {name: record_scene(20 + i + 0.4 * k * i, spread={"psnr": 0.3}) for i, name in enumerate(names)}
        if k == 2:
            scenes[names[0]] = failed_record()
        out = write_run(folder / f"run_with_a_rather_long_name_{k}", scenes, {"steps": 1000 * (k + 1)}, seeds=[0, 1, 2])
        for name in names:
            write_pictures(out / name / "pictures", 0.2 / (k + 1))
        runs.append(read_run(str(out), "ABC"[k]))
    return runs


def test_comparison_of_two_runs(tmp_path):
    runs = compared_runs(tmp_path / "runs")[:2]
    seen = look_at(render_comparison(runs, [pair_up(*runs)]), tmp_path)
    check_page(seen)
    for frame in seen.frames.values():
        assert frame["plots"] == [2 * 6] * 3
        assert len(frame["pictures"]) == 6 * 2 * 2 * 4
    taps = seen.frames["phone"]["taps"]
    assert taps == ["photo of b.jpg in A", "render of b.jpg in A", "render of b.jpg in B", False]


def test_comparison_of_several_runs(tmp_path):
    runs = compared_runs(tmp_path / "runs")
    seen = look_at(render_comparison(runs, [pair_up(runs[0], run) for run in runs[1:]]), tmp_path)
    check_page(seen)
    for frame in seen.frames.values():
        assert frame["plots"] == [3 * 6 - 1] * 3


def test_a_bad_page_is_found_out(tmp_path):
    bad = """<!doctype html><body style="background:#fff"><p style="width:500px;color:#aaa">pale and wide</p>
      <img src="data:image/png;base64,AAAA"><img src="file:///nowhere/missing.png"><script>undefined_function()</script>"""
    seen = look_at(bad, tmp_path)
    phone = seen.frames["phone"]
    assert phone["folded"] > 0
    assert [text for _, text in phone["pale"]] == ["pale and wide"]
    assert phone["pictures"] == [0, 0]
    assert any("undefined_function" in line for line in seen.console)
