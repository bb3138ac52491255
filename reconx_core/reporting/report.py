"""`report.html`: one self-contained page per run, with scores, pictures, video, costs and settings, readable on a phone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reconx_core.reporting.numbers import format_duration, mean_scores, pooled_spread
from reconx_core.reporting.pages import (
    PAGE_BYTES,
    data_uri,
    open_picture,
    picture_uri,
    render_page,
    write_page,
)
from reconx_core.reporting.plots import ScenePlot, scene_plot
from reconx_core.types import Scores, ViewScore

VIDEO_BYTES = 8_000_000  # all videos of a page together, as files; half of it for several scenes
MAX_PICTURED_SCENES = 24  # most scenes of which a page shows pictures

_AUC = "view pairs by the larger angle error, area under the curve"
# key in Scores.summary -> column title, format, unit or direction, what it is
COLUMNS = {
    "psnr": ("PSNR", "{:.2f}", "dB ↑", "on held-out views"),
    "ssim": ("SSIM", "{:.3f}", "↑", "on held-out views"),
    "lpips": ("LPIPS", "{:.3f}", "↓", "on held-out views, by VGG16"),
    "lpips_alex": ("LPIPS Alex", "{:.3f}", "↓", "on held-out views, by AlexNet"),
    "psnr_unrefined": ("PSNR, unrefined", "{:.2f}", "dB ↑", "held-out cameras as aligned, before refinement"),
    "ssim_unrefined": ("SSIM, unrefined", "{:.3f}", "↑", "held-out cameras as aligned, before refinement"),
    "lpips_unrefined": ("LPIPS, unrefined", "{:.3f}", "↓", "held-out cameras as aligned, before refinement"),
    "lpips_alex_unrefined": ("LPIPS Alex, unrefined", "{:.3f}", "↓", "held-out cameras as aligned, before refinement"),
    "photo_psnr": ("Photo PSNR", "{:.2f}", "dB ↑", "on the input photos"),
    "photo_ssim": ("Photo SSIM", "{:.3f}", "↑", "on the input photos"),
    "photo_lpips": ("Photo LPIPS", "{:.3f}", "↓", "on the input photos, by VGG16"),
    "photo_lpips_alex": ("Photo LPIPS Alex", "{:.3f}", "↓", "on the input photos, by AlexNet"),
    "rotation_error": ("Rotation", "{:.2f}", "° ↓", "mean error between pairs of input cameras"),
    "translation_error": ("Translation", "{:.2f}", "° ↓", "mean error of direction between pairs of input cameras"),
    **{f"auc_{t}": (f"AUC@{t}°", "{:.3f}", "↑", f"{_AUC}, exact") for t in (5, 10, 20, 30)},
    **{f"auc_{t}_trapezoid": (f"AUC@{t}°, trapezoid", "{:.3f}", "↑", f"{_AUC}, as SuperGlue") for t in (5, 10, 20, 30)},
    **{f"auc_{t}_binned": (f"AUC@{t}°, binned", "{:.3f}", "↑", f"{_AUC}, as VGGT") for t in (5, 10, 20, 30)},
    "registered": ("Placed", "{:.0%}", "", "share of the input photos whose camera was found"),
    "camera_confidence": ("Cameras", "{:.2f}", "", "confidence in the estimated cameras; below 0.5 they may be wrong"),
    "frames_placed": ("Frames", "{:.0%}", "", "share of the generated frames whose camera was found; the others are left out"),
    "depth_error": ("Depth error", "{:.2f}", "% ↓", "relative error of the pointmaps' depth, where they have one"),
    "depth_within_3": ("Depth within 0.03", "{:.1f}", "% ↑", "share of the pointmaps' depth within 3 % of the true one"),
    "depth_known": ("Depth known", "{:.0%}", "", "share of the photos' pixels for which the pointmaps have a depth"),
    "trusted_error": ("Trusted depth error", "{:.2f}", "% ↓", "depth error where the pointmaps' confidence is 0.5 or more"),
    "trusted_within_3": ("Trusted depth within 0.03", "{:.1f}", "% ↑", "share of the trusted depth within 3 % of the true one"),
    "trusted_known": ("Depth trusted", "{:.0%}", "", "share of the photos' pixels whose depth has confidence 0.5 or more"),
    "splats_error": ("Splats' depth error", "{:.2f}", "% ↓", "relative error of the rendered depth, held-out views"),
    "splats_within_3": ("Splats within 0.03", "{:.1f}", "% ↑", "share of the rendered depth within 3 %, held-out views"),
    "splats_known": ("Splats known", "{:.0%}", "", "share of the held-out views' pixels that the Gaussians cover"),
    "chamfer": ("Chamfer", "{:.2f}", "% ↓", "point cloud to the true surface and back, of the median depth"),
    "f_score": ("F-score", "{:.3f}", "↑", "of the point cloud, at 1 % of the median depth"),
    "gaussians": ("Gaussians", "{:,.0f}", "", "number of Gaussians in the scene"),
}
HEADLINES = ("psnr", "ssim", "lpips", "photo_psnr", "photo_ssim", "auc_30")


@dataclass(frozen=True)
class StageCost:
    """Time and memory that a stage of a scene took when it was computed, in this run or (``cached``) in an earlier one."""

    stage: str
    seconds: float
    peak_mib: float
    cached: bool = False
    cuda_peak_mib: float = 0.0
    made: float | None = None  # seconds since the epoch at its end


@dataclass(frozen=True)
class StageTotal:
    """Time and memory that a stage took over all scenes of a run."""

    stage: str
    scenes: int  # in which it finished
    seconds: float  # all scenes together
    peak_mib: float  # the largest of all scenes
    cached: int  # scenes whose result was in the store


@dataclass(frozen=True)
class ReportPicture:
    """One view's panels (`photo`, `render`, ...): picture files, or their bytes."""

    view: str
    is_target: bool
    panels: dict[str, bytes | Path]


@dataclass(frozen=True)
class SceneReport:
    """One scene: its scores, or the stage that failed and its error."""

    name: str
    split: str = "all photos"
    size: tuple[int, int] | None = None  # width, height of the scored images
    scores: Scores | None = None
    pictures: tuple[ReportPicture, ...] = ()
    video: bytes | Path | None = None  # MP4
    costs: tuple[StageCost, ...] = ()
    notes: tuple[str, ...] = ()  # sentences for the reader, such as on photos that could not be placed
    failed_stage: str | None = None
    error: str | None = None
    spread: dict[str, float] = field(default_factory=dict)  # of the scores: standard deviation over several seeds
    above: bytes | Path | None = None  # picture of the photos and the path of the frames from above
    fps: float | None = None  # at which it is rendered, at the size of the scored images
    megabytes: float | None = None  # of scene.ply
    page: str | None = None  # the scene to look around in, relative to the report


@dataclass(frozen=True)
class RunReport:
    """The content of the page, as plain data."""

    title: str
    scenes: tuple[SceneReport, ...]
    settings: dict[str, Any]  # the resolved settings, a mapping per section
    seeds: tuple[int, ...]
    lpips_net: str | None  # None: not computed
    lpips_missing: str | None = None  # why not
    facts: dict[str, str] = field(default_factory=dict)  # versions, machine, preset, git revision, ...
    files: dict[str, str] = field(default_factory=dict)  # files beside the page -> what they are


def write_report(path: Path, run: RunReport) -> None:
    """Write the page to ``path``, atomically. It is self-contained, apart from relative links to ``run.files``.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    write_page(path, render_report(run))


def render_report(run: RunReport) -> str:
    """The page's HTML."""
    done = [scene for scene in run.scenes if scene.scores is not None]
    headlines = _headlines(done)
    shown = scenes_with_pictures(run.scenes, headlines[0] if headlines else None)
    videos = _inline_videos(shown)
    return render_page(
        "report",
        run=run,
        done=done,
        failed=[scene for scene in run.scenes if scene.error is not None],
        shown={scene.name for scene in shown},
        columns=used_columns(done),
        all_columns=COLUMNS,
        headlines=headlines,
        mean=mean_scores(scene.scores.summary for scene in done if scene.scores),
        spread=mean_spread(done),
        plots=[_plot(key, done) for key in headlines[:3]] if len(done) > 1 else [],
        totals=stage_totals(cost for scene in run.scenes for cost in scene.costs),
        number=format_score,
        duration=format_duration,
        score_of=_view_score,
        context=_context(run, done),
        pictures=_inline_pictures(shown, PAGE_BYTES - sum(map(len, videos.values()))),
        videos=videos,
        above={scene.name: picture_uri(open_picture(scene.above)) for scene in shown if scene.above is not None},
        slowest=max((cost.seconds for scene in run.scenes for cost in scene.costs), default=0.0),
    )


def format_score(key: str, value: float | None) -> str:
    """A score as the page shows it; a dash for one that was not computed."""
    if value is None:
        return "–"
    return "∞" if math.isinf(value) else COLUMNS[key][1].format(value)


def mean_spread(scenes: Iterable[SceneReport]) -> dict[str, float | None]:
    """Standard deviation over seeds of the mean over scenes, for every score."""
    scenes = list(scenes)
    return {key: pooled_spread([scene.spread.get(key) for scene in scenes]) for key in COLUMNS}


def stage_totals(costs: Iterable[StageCost]) -> list[StageTotal]:
    """The costs of all scenes summed up by stage, in order of first appearance."""
    by_stage: dict[str, list[StageCost]] = {}
    for cost in costs:
        by_stage.setdefault(cost.stage, []).append(cost)
    return [
        StageTotal(stage, len(of), math.fsum(c.seconds for c in of), max(c.peak_mib for c in of), sum(c.cached for c in of))
        for stage, of in by_stage.items()
    ]


def scenes_with_pictures(scenes: tuple[SceneReport, ...], key: str | None) -> tuple[SceneReport, ...]:
    """The scenes of which the page shows pictures: all, or 24 at even steps from the lowest score ``key`` to the highest."""
    done = [scene for scene in scenes if scene.pictures]
    if len(done) <= MAX_PICTURED_SCENES or key is None:
        return tuple(done[:MAX_PICTURED_SCENES])
    ranked = sorted(done, key=lambda scene: _score(scene, key))
    chosen = {ranked[i * (len(ranked) - 1) // (MAX_PICTURED_SCENES - 1)].name for i in range(MAX_PICTURED_SCENES)}
    return tuple(scene for scene in done if scene.name in chosen)


def used_columns(scenes: Iterable[SceneReport]) -> list[str]:
    """Scores that at least one scene has, in the order of the table."""
    summaries = [scene.scores.summary for scene in scenes if scene.scores is not None]
    return [key for key in COLUMNS if any(summary.get(key) is not None for summary in summaries)]


def _score(scene: SceneReport, key: str) -> float:
    value = scene.scores.summary.get(key) if scene.scores else None
    return -math.inf if value is None else value


def _plot(key: str, done: list[SceneReport]) -> ScenePlot:
    values = {scene.name: [scene.scores.summary.get(key)] for scene in done if scene.scores}
    return scene_plot(f"{COLUMNS[key][0]} per scene", values, ("",), partial(format_score, key))


def _headlines(done: list[SceneReport]) -> list[str]:
    return [key for key in HEADLINES if key in used_columns(done)][:4]


def _context(run: RunReport, done: list[SceneReport]) -> list[tuple[str, str]]:
    """The context that every number needs: protocol, split, resolution, LPIPS net, number of scenes, seeds."""
    sizes = _distinct(f"{scene.size[0]} × {scene.size[1]}" for scene in done if scene.size)
    return [
        ("protocol", _distinct(scene.scores.protocol for scene in done if scene.scores)),
        ("split", _distinct(scene.split for scene in done)),
        ("resolution", f"{sizes} px" if sizes else "–"),
        ("LPIPS net", run.lpips_net or "not computed"),
        ("scenes", f"{len(done)} of {len(run.scenes)}" if len(done) < len(run.scenes) else str(len(done))),
        ("seed" if len(run.seeds) == 1 else "seeds", ", ".join(map(str, run.seeds))),
    ]


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _inline_pictures(scenes: tuple[SceneReport, ...], budget: int) -> dict[str, list[tuple[ReportPicture, dict[str, str]]]]:
    """Per scene the pictures with their panels as data URIs; evenly thinned if all together exceed the budget."""
    return {scene.name: _fit_budget(budget // len(scenes), scene.pictures) for scene in scenes}


def _fit_budget(budget: int, pictures: tuple[ReportPicture, ...]) -> list[tuple[ReportPicture, dict[str, str]]]:
    """As many of the pictures as fit, at even steps, held-out views first, but at least one; only those are encoded."""
    ranked = sorted(range(len(pictures)), key=lambda i: not pictures[i].is_target)
    encoded = {ranked[0]: _encode(pictures[ranked[0]])}
    count = max(1, min(len(pictures), budget // _encoded_size(encoded[ranked[0]])))
    while True:
        chosen = sorted(ranked[i * len(ranked) // count] for i in range(count))
        encoded |= {i: _encode(pictures[i]) for i in chosen if i not in encoded}
        total = sum(_encoded_size(encoded[i]) for i in chosen)
        if total <= budget or count == 1:
            return [(pictures[i], encoded[i]) for i in chosen]
        count = max(1, min(count - 1, count * budget // total))


def _encode(picture: ReportPicture) -> dict[str, str]:
    return {name: picture_uri(open_picture(panel)) for name, panel in picture.panels.items()}


def _encoded_size(panels: dict[str, str]) -> int:
    return sum(map(len, panels.values()))


def _view_score(scores: Scores, picture: ReportPicture) -> ViewScore:
    """The score of the view in the picture: of two, the one with the refined camera."""
    rows = [row for row in scores.views if (row.view, row.is_target) == (picture.view, picture.is_target)]
    return max(rows, key=lambda row: row.refined)


def _inline_videos(scenes: tuple[SceneReport, ...]) -> dict[str, str]:
    """Per scene its clip as a data URI, until the size budget is used up."""
    videos: dict[str, str] = {}
    room = VIDEO_BYTES if len(scenes) < 2 else VIDEO_BYTES // 2
    for scene in scenes:
        size = _size(scene.video)
        if scene.video is not None and size <= room:
            room -= size
            content = scene.video if isinstance(scene.video, bytes) else scene.video.read_bytes()
            videos[scene.name] = data_uri("video/mp4", content)
    return videos


def _size(file: bytes | Path | None) -> int:
    return file.stat().st_size if isinstance(file, Path) else len(file or b"")
