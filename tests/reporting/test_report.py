"""The page is self-contained and shows the scores as they are."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from reconx_core.errors import UserError
from reconx_core.io.images import encode
from reconx_core.metrics import summarise
from reconx_core.metrics.pose import AUC_THRESHOLDS
from reconx_core.reporting import report
from reconx_core.reporting.numbers import format_duration, mean_or_none, mean_scores, pooled_spread
from reconx_core.reporting.report import (
    COLUMNS,
    MAX_PICTURED_SCENES,
    VIDEO_BYTES,
    ReportPicture,
    RunReport,
    SceneReport,
    StageCost,
    StageTotal,
    format_score,
    render_report,
    stage_totals,
    write_report,
)
from reconx_core.types import Scores, ViewScore

VIDEO = b"\x00\x00\x00\x18ftypmp42" + bytes(100)


class Page(HTMLParser):
    """The page's tables, links, images and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.cells: dict[str, list[str]] = {}
        self.text: list[str] = []
        self._key: str | None = None
        self._table = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.sources += [given[name] for name in ("src", "href", "srcset", "data") if given.get(name)]
        if tag == "table":
            self._table = given.get("id") or given.get("class") or ""
        if tag == "td" and "data-key" in given:
            self._key = f"{self._table}.{given['data-key']}"

    def handle_data(self, data):
        self.text.append(data)
        if self._key:
            self.cells.setdefault(self._key, []).append(data)
            self._key = None


def png(seed: int = 0, size: tuple[int, int] = (30, 40)) -> bytes:
    return encode(torch.rand(*size, 3, generator=torch.Generator().manual_seed(seed)), "PNG")


def scene(name: str = "barn", **changes: object) -> SceneReport:
    views = (
        ViewScore("a.jpg", 31.234, 0.95, None, False, False),
        ViewScore("b.jpg", 19.0, 0.61, None, False, True),
        ViewScore("b.jpg", 21.5, 0.7125, None, True, True),
    )
    summary = {"psnr": 21.5, "ssim": 0.7125, "lpips": None, "photo_psnr": 31.234, "auc_5": 0.5, "gaussians": 12345.0}
    pictures = tuple(ReportPicture(v, v == "b.jpg", {"photo": png(1), "render": png(2)}) for v in ("a.jpg", "b.jpg"))
    whole = SceneReport(
        name, "train_3", (40, 30), Scores(views, summary, "unposed"), pictures, VIDEO,
        (StageCost("pointcloud", 12.5, 900), StageCost("splats", 50.0, 1234, True)),
    )  # fmt: skip
    return dataclasses.replace(whole, **changes)


def run(*scenes: SceneReport, **changes: object) -> RunReport:
    settings = {"seed": 3, "splats": {"steps": 1000}}
    whole = RunReport("Test <run>", scenes, settings, (3,), None, "LPIPS is left out: no weights.", {"torch": "2"})
    return dataclasses.replace(whole, **changes)


def test_nothing_is_fetched_from_elsewhere():
    html = render_report(run(scene(), files={"scene.ply": "the Gaussians"}))
    sources = Page(html).sources
    assert len([s for s in sources if s.startswith("data:image/")]) == 4
    assert [s for s in sources if not s.startswith("data:")] == ["scene.ply"]
    assert not re.search(r"https?://|url\(|@import|<link", html)


def test_images_and_video_decode():
    sources = Page(render_report(run(scene()))).sources
    for source in sources:
        kind, _, data = source.partition(";base64,")
        content = base64.b64decode(data, validate=True)
        if kind == "data:video/mp4":
            assert content == VIDEO
        else:
            assert Image.open(io.BytesIO(content)).convert("RGB").size == (40, 30)


def test_table_of_one_scene_equals_its_scores():
    done = scene()
    cells = Page(render_report(run(done))).cells
    shown = {key: cells[f"scores.{key}"] for key in done.scores.summary if done.scores.summary[key] is not None}
    assert shown == {"psnr": ["21.50"], "ssim": ["0.713"], "photo_psnr": ["31.23"], "auc_5": ["0.500"], "gaussians": ["12,345"]}
    assert "scores.lpips" not in cells
    assert cells["views.psnr"] == ["31.23", "19.00", "21.50"]
    assert cells["views.lpips"] == ["–"] * 3


def test_table_of_scenes_ends_with_the_mean():
    second = scene("mill")
    scores = dataclasses.replace(second.scores, summary={"psnr": 20.5, "ssim": 0.5, "lpips": 0.25, "photo_psnr": 30.0})
    cells = Page(render_report(run(scene(), dataclasses.replace(second, scores=scores)))).cells
    assert cells["scores.psnr"] == ["21.50", "20.50", "21.00"]
    assert cells["scores.lpips"] == ["–", "0.250", "–"]
    assert cells["scores.auc_5"] == ["0.500", "–", "–"]


def test_context_stands_beside_the_numbers():
    text = " ".join(" ".join(Page(render_report(run(scene()))).text).split())
    for fact in ("protocol unposed", "split train_3", "resolution 40 × 30 px", "LPIPS net not computed", "scenes 1", "seed 3"):
        assert fact in text
    assert "LPIPS is left out: no weights." in text
    assert "50.0 s" in text
    assert "1,234 MiB" in text


def test_failed_scene_is_named_with_its_stage_and_error():
    failed = SceneReport("tower", failed_stage="pointcloud", error="The photos do not overlap.")
    text = " ".join(" ".join(Page(render_report(run(scene(), failed))).text).split())
    assert "1 of 2 scenes failed" in text
    assert "tower at pointcloud : The photos do not overlap." in text
    assert "scenes 1 of 2" in text


def test_a_run_that_failed_altogether_still_has_a_page():
    html = render_report(run(SceneReport("tower", failed_stage="views", error="No photos.")))
    assert "No photos." in html
    assert 'id="scores"' not in html


def test_names_are_escaped():
    html = render_report(run(scene("<script>alert(1)</script>")))
    assert "<script>alert" not in html
    assert "Test &lt;run&gt;" in html


def test_heavy_video_stays_outside():
    html = render_report(run(scene(video=bytes(VIDEO_BYTES + 1))))
    assert "data:video" not in html
    assert "too large for this page" in html


def test_many_pictures_are_thinned_and_the_page_says_so(monkeypatch):
    monkeypatch.setattr(report, "PAGE_BYTES", 300_000)
    heavy = png(0, (160, 160))
    pictures = tuple(ReportPicture(f"{i}.jpg", True, {"photo": heavy, "render": heavy}) for i in range(30))
    scores = Scores(tuple(ViewScore(f"{i}.jpg", 20.0, 0.5, None, False, True) for i in range(30)), {"psnr": 20.0}, "posed")
    html = render_report(run(scene(scores=scores, pictures=pictures)))
    shown = html.count('class="view"')
    assert 1 < shown < 30
    assert f"Shown are {shown} of 30 views." in html
    assert sum(map(len, Page(html).sources)) <= 300_000


def test_picture_and_video_files_are_read_where_they_lie(tmp_path):
    (tmp_path / "photo.png").write_bytes(png(1))
    (tmp_path / "clip.mp4").write_bytes(VIDEO)
    pictures = (ReportPicture("b.jpg", True, {"photo": tmp_path / "photo.png"}),)
    from_files = render_report(run(scene(pictures=pictures, video=tmp_path / "clip.mp4")))
    pictures = (ReportPicture("b.jpg", True, {"photo": png(1)}),)
    assert from_files == render_report(run(scene(pictures=pictures)))


def test_page_of_two_hundred_scenes_stays_light_and_complete(monkeypatch):
    monkeypatch.setattr(report, "PAGE_BYTES", 400_000)
    scenes = []
    for i in range(200):
        whole = scene(f"scene_{i:03d}")
        scores = dataclasses.replace(whole.scores, summary={"psnr": 10.0 + (i * 37 % 200) / 10, "ssim": 0.5})
        scenes.append(dataclasses.replace(whole, scores=scores))
    failed = [SceneReport(f"lost_{i}", failed_stage="pointcloud", error=f"Reason {i}.") for i in range(12)]
    html = render_report(run(*scenes, *failed))
    page = Page(html)
    assert html.count('class="mark ') == 200 * 2
    assert page.cells["scores.psnr"] == [f"{10 + (i * 37 % 200) / 10:.2f}" for i in range(200)] + ["19.95"]
    assert all(f"Reason {i}." in html for i in range(12))
    assert len(page.cells["views.psnr"]) == 200 * 3
    pictured = html.partition("Scenes without pictures here")[0]
    assert pictured.count('class="scene"') == MAX_PICTURED_SCENES
    for shown in (10.0, 29.9):  # the worst and the best
        name = next(s.name for s in scenes if s.scores.summary["psnr"] == shown)
        assert f">{name}</h2>" in pictured
    assert sum(len(s) for s in page.sources if s.startswith("data:image/")) <= 400_000


def test_time_is_summed_over_scenes_and_memory_is_the_largest():
    cheap = scene("mill", costs=(StageCost("splats", 150.0, 800), StageCost("metrics", 1.0, 50, True)))
    totals = stage_totals(cost for of in (scene(), cheap) for cost in of.costs)
    assert totals == [
        StageTotal("pointcloud", 1, 12.5, 900, 0), StageTotal("splats", 2, 200.0, 1234, 1), StageTotal("metrics", 1, 1.0, 50, 1)
    ]  # fmt: skip
    text = " ".join(" ".join(Page(render_report(run(scene(), cheap))).text).split())
    assert "splats 1 of 2 from store 3 min 20 s 1 min 40 s 1,234 MiB" in text


def test_spread_over_seeds_stands_beside_the_scores():
    spread = scene(spread={"psnr": 0.25})
    page = Page(render_report(run(spread, dataclasses.replace(spread, name="mill"), seeds=(0, 1, 2))))
    assert page.cells["scores.psnr"] == ["21.50 ± 0.25", "21.50 ± 0.25", "21.50 ± 0.18"]
    assert page.cells["scores.ssim"] == ["0.713"] * 3
    assert "over the 3 seeds" in " ".join(page.text)


def test_pooled_spread_is_that_of_the_mean_over_scenes():
    rng = np.random.default_rng(0)
    scores = 20 + rng.normal(0, 3, (1, 40)) + rng.normal(0, 0.5, (3, 40))  # seeds, scenes
    found = pooled_spread(list(scores.std(0, ddof=1)))
    assert found == pytest.approx(0.5 / np.sqrt(40), rel=0.15)
    assert pooled_spread([0.1, None]) is None
    assert pooled_spread([]) is None


def test_a_mean_is_known_if_every_scene_has_the_score():
    summaries = [{"psnr": 20.0, "lpips": None}, {"psnr": 22.0, "lpips": 0.5, "ssim": 0.9}]
    assert mean_scores(summaries) == {"psnr": 21.0, "lpips": None, "ssim": None}
    assert mean_scores([]) == {}
    assert mean_or_none([]) is None


@pytest.mark.parametrize(
    ("seconds", "shown"), [(9.96, "10.0 s"), (245.2, "4 min 05 s"), (11520, "3 h 12 min"), (3599.9, "1 h 00 min")]
)
def test_durations_read_well(seconds, shown):
    assert format_duration(seconds) == shown


def test_infinite_score():
    assert format_score("psnr", float("inf")) == "∞"


def test_every_score_has_a_column():
    views = [ViewScore("a", 1.0, 1.0, 1.0, r, t) for r, t in ((False, False), (False, True), (True, True))]
    expected = set(summarise(views)) | {"gaussians", "registered", "rotation_error", "translation_error", "camera_confidence"}
    expected |= {"frames_placed", "chamfer", "f_score"}
    expected |= {f"{what}_{score}" for what in ("depth", "trusted", "splats") for score in ("error", "within_3", "known")}
    areas = {f"auc_{t}{kind}" for t in AUC_THRESHOLDS for kind in ("", "_trapezoid", "_binned")}
    assert expected | areas == set(COLUMNS)


def test_page_is_written_and_a_bad_folder_is_a_user_error(tmp_path):
    write_report(tmp_path / "out" / "report.html", run(scene()))
    assert (tmp_path / "out" / "report.html").read_text().endswith("</html>")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        write_report(tmp_path / "file" / "report.html", run(scene()))


def test_scene_is_loaded_by_a_click_only_and_linked():
    page = render_report(run(scene("attic", page="my attic/scene.html"), scene()))
    assert page.count('data-pages="my%20attic/scene.html"') == page.count('<a href="my%20attic/scene.html">') == 1
    assert page.count('class="live"') == 1
    assert "<iframe" not in page
