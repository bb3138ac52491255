"""`report.html`: one self-contained page per run, with scores, pictures, video, costs and settings, readable on a phone."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from reconx_core.files import explain_disk, write_atomic
from reconx_core.types import Scores, ViewScore

PAGE_BYTES = 15_000_000  # of pictures and videos as they stand in the page, where base64 adds a third
VIDEO_BYTES = 8_000_000  # all videos of a page together, as files
PANEL_WIDTH = 640  # pixels

# key in Scores.summary -> column title, format, unit or direction, what it is
COLUMNS = {
    "psnr": ("PSNR", "{:.2f}", "dB ↑", "on held-out views"),
    "ssim": ("SSIM", "{:.3f}", "↑", "on held-out views"),
    "lpips": ("LPIPS", "{:.3f}", "↓", "on held-out views"),
    "psnr_unrefined": ("PSNR, unrefined", "{:.2f}", "dB ↑", "held-out cameras as aligned, before refinement"),
    "ssim_unrefined": ("SSIM, unrefined", "{:.3f}", "↑", "held-out cameras as aligned, before refinement"),
    "lpips_unrefined": ("LPIPS, unrefined", "{:.3f}", "↓", "held-out cameras as aligned, before refinement"),
    "photo_psnr": ("Photo PSNR", "{:.2f}", "dB ↑", "on the input photos"),
    "photo_ssim": ("Photo SSIM", "{:.3f}", "↑", "on the input photos"),
    "photo_lpips": ("Photo LPIPS", "{:.3f}", "↓", "on the input photos"),
    "rotation_error": ("Rotation", "{:.2f}", "° ↓", "mean error between pairs of input cameras"),
    "translation_error": ("Translation", "{:.2f}", "° ↓", "mean error of direction between pairs of input cameras"),
    "auc_5": ("AUC@5°", "{:.3f}", "↑", "view pairs by the larger angle error, area under the curve"),
    "auc_10": ("AUC@10°", "{:.3f}", "↑", "view pairs by the larger angle error, area under the curve"),
    "auc_20": ("AUC@20°", "{:.3f}", "↑", "view pairs by the larger angle error, area under the curve"),
    "auc_30": ("AUC@30°", "{:.3f}", "↑", "view pairs by the larger angle error, area under the curve"),
    "registered": ("Placed", "{:.0%}", "", "share of the input photos whose camera was found"),
    "gaussians": ("Gaussians", "{:,.0f}", "", "number of Gaussians in the scene"),
}
HEADLINES = ("psnr", "ssim", "lpips", "photo_psnr", "photo_ssim", "auc_30")


@dataclass(frozen=True)
class StageCost:
    """What a stage of a scene took when it was computed, in this run or (``cached``) in an earlier one."""

    stage: str
    seconds: float
    peak_mib: float
    cached: bool = False


@dataclass(frozen=True)
class ReportPicture:
    """One view's panels (`photo`, `render`, ...) as the bytes of picture files."""

    view: str
    is_target: bool
    panels: dict[str, bytes]


@dataclass(frozen=True)
class SceneReport:
    """One scene: its scores, or the stage and the error that ended it."""

    name: str
    split: str = "all photos"
    size: tuple[int, int] | None = None  # width, height of the scored images
    scores: Scores | None = None
    pictures: tuple[ReportPicture, ...] = ()
    video: bytes | None = None  # MP4
    costs: tuple[StageCost, ...] = ()
    notes: tuple[str, ...] = ()  # sentences worth knowing, such as photos that could not be placed
    failed_stage: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class RunReport:
    """Everything the page says, as plain data."""

    title: str
    scenes: tuple[SceneReport, ...]
    settings: dict[str, Any]  # the resolved settings, a mapping per section
    seeds: tuple[int, ...]
    lpips_net: str | None  # None: not computed
    lpips_missing: str | None = None  # why not
    facts: dict[str, str] = field(default_factory=dict)  # versions, machine, preset, git revision, ...
    files: dict[str, str] = field(default_factory=dict)  # files beside the page -> what they are


def write_report(path: Path, run: RunReport) -> None:
    """Write the page at ``path``, atomically; it refers to nothing outside itself but ``run.files``, by relative links.

    Raises:
        OSError: the folder cannot be written or the disk is full.
    """
    try:
        write_atomic(path, render_report(run).encode())
    except OSError as error:
        raise explain_disk(error, path.parent) from error


def render_report(run: RunReport) -> str:
    """The page's HTML."""
    videos = _inline_videos(run.scenes)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reconx_core"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    done = [scene for scene in run.scenes if scene.scores is not None]
    return environment.get_template("report.html.jinja").render(
        run=run,
        done=done,
        failed=[scene for scene in run.scenes if scene.error is not None],
        columns=used_columns(done),
        all_columns=COLUMNS,
        headlines=_headlines(done),
        mean=mean_summary(done),
        number=format_score,
        score_of=_view_score,
        context=_context(run, done),
        pictures=_inline_pictures(run.scenes, PAGE_BYTES - sum(map(len, videos.values()))),
        videos=videos,
        slowest=max((cost.seconds for scene in run.scenes for cost in scene.costs), default=0.0),
    )


def format_score(key: str, value: float | None) -> str:
    """A score as the page shows it; a dash for one that was not computed."""
    if value is None:
        return "–"
    return "∞" if math.isinf(value) else COLUMNS[key][1].format(value)


def mean_summary(scenes: Iterable[SceneReport]) -> dict[str, float | None]:
    """The mean over scenes of every score; None where a scene lacks it."""
    summaries = [scene.scores.summary for scene in scenes if scene.scores is not None]
    keys = [key for key in COLUMNS if any(key in summary for summary in summaries)]
    return {key: _mean([summary.get(key) for summary in summaries]) for key in keys}


def used_columns(scenes: Iterable[SceneReport]) -> list[str]:
    """Scores that at least one scene has, in the order of the table."""
    summaries = [scene.scores.summary for scene in scenes if scene.scores is not None]
    return [key for key in COLUMNS if any(summary.get(key) is not None for summary in summaries)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if len(known) == len(values) else None


def _headlines(done: list[SceneReport]) -> list[str]:
    return [key for key in HEADLINES if key in used_columns(done)][:4]


def _context(run: RunReport, done: list[SceneReport]) -> list[tuple[str, str]]:
    """What has to stand beside every number: protocol, split, resolution, LPIPS net, number of scenes, seeds."""
    sizes = _several(f"{scene.size[0]} × {scene.size[1]}" for scene in done if scene.size)
    return [
        ("protocol", _several(scene.scores.protocol for scene in done if scene.scores)),
        ("split", _several(scene.split for scene in done)),
        ("resolution", f"{sizes} px" if sizes else "–"),
        ("LPIPS net", run.lpips_net or "not computed"),
        ("scenes", f"{len(done)} of {len(run.scenes)}" if len(done) < len(run.scenes) else str(len(done))),
        ("seed" if len(run.seeds) == 1 else "seeds", ", ".join(map(str, run.seeds))),
    ]


def _several(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _inline_pictures(scenes: tuple[SceneReport, ...], budget: int) -> dict[str, list[tuple[ReportPicture, dict[str, str]]]]:
    """Per scene the pictures with their panels as data URIs; evenly thinned where all together would be too heavy."""
    return {scene.name: _within(budget // len(scenes), scene.pictures) for scene in scenes}


def _within(budget: int, pictures: tuple[ReportPicture, ...]) -> list[tuple[ReportPicture, dict[str, str]]]:
    encoded = [(picture, {name: _data_uri(panel) for name, panel in picture.panels.items()}) for picture in pictures]
    total = sum(len(uri) for _, panels in encoded for uri in panels.values())
    if total <= budget or len(encoded) < 2:
        return encoded
    count = max(1, len(encoded) * budget // total)
    return [encoded[i * len(encoded) // count] for i in range(count)]


def _view_score(scores: Scores, picture: ReportPicture) -> ViewScore:
    """The score that the picture shows: the one with the refined camera, where there are two."""
    rows = [row for row in scores.views if (row.view, row.is_target) == (picture.view, picture.is_target)]
    return max(rows, key=lambda row: row.refined)


def _data_uri(picture: bytes) -> str:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((PANEL_WIDTH, 4 * PANEL_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _inline_videos(scenes: tuple[SceneReport, ...]) -> dict[str, str]:
    """Per scene its clip as a data URI, as long as the page stays light enough."""
    videos: dict[str, str] = {}
    room = VIDEO_BYTES
    for scene in scenes:
        if scene.video is not None and len(scene.video) <= room:
            room -= len(scene.video)
            videos[scene.name] = "data:video/mp4;base64," + base64.b64encode(scene.video).decode()
    return videos
