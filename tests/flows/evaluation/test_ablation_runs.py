"""The ablation over a dataset, in one command: seven runs, a table of seven rows, and what rows have in common done once."""

import csv
import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest
import standins
import torch

from flows.evaluation.ablation import load_ablation
from flows.execution.run import resolve_settings
from reconx_core import confidence, splats, video
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, resolved_settings

ROWS = [row.name for row in load_ablation()]
LITTLE_WORK = (
    "pointcloud.planes=16", "pointcloud.stereo_size=64", "pointcloud.rounds=1", "pointcloud.iterations=1", "video.steps=1",
    "condition.frames_per_pair=1", "confidence.size=64", "splats.max_gaussians=100", "splats.steps=2",
    "metrics.video_frames=2",
)  # fmt: skip


def wanted_tasks(scenes):
    """How many tasks of each stage the settings of the rows ask for, where every setting changes what a stage makes."""
    chains = {stage: set() for stage in STAGES}
    for row in load_ablation():
        settings, keys = resolve_settings(None, list(row.overrides)), {}
        for stage in STAGES:
            own = json.dumps(resolved_settings(stage, settings), sort_keys=True)
            keys[stage] = (own, *(keys[parent] for parent in PARENTS[stage]))
            chains[stage].add(keys[stage])
    return {stage: scenes * len(found) for stage, found in chains.items()}


def made_tasks(out):
    """How many tasks of each stage the rows' records tell of: those that differ in a setting or in what they were given."""
    tasks = {stage: set() for stage in STAGES}
    for row in ROWS:
        record = json.loads((out / row / "run.json").read_text())
        settings = resolve_settings(str(out / row / "settings.yaml"), None)
        for name, scene in record["scenes"].items():
            for stage in STAGES:
                given = [scene["artifacts"][parent]["digest"] for parent in PARENTS[stage]]
                tasks[stage].add((name, json.dumps([resolved_settings(stage, settings), given], sort_keys=True)))
    return {stage: len(found) for stage, found in tasks.items()}


def stored(store):
    return {stage: len(list((store / stage).iterdir())) for stage in STAGES}


def drawn(*given):
    """A generator that differs with all that a stand-in is given."""
    seen = [value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode() for value in given]
    return torch.Generator().manual_seed(int(hashlib.sha256(b"".join(seen)).hexdigest()[:12], 16))


@pytest.fixture
def telling(tiny, monkeypatch):
    """Stand-ins whose results differ with every setting and every input; returns the stages computed."""

    def frames_of(inputs, pointmaps, guide, settings, generator, progress):
        frames = standins.generate_frames(inputs, pointmaps, guide, settings, generator, progress)
        return replace(frames, images=torch.rand(frames.images.shape, generator=drawn(settings, frames.images)))

    def confidence_of(inputs, frames, pointmaps, backend, settings, generator):
        frames = standins.estimate_confidence(inputs, frames, pointmaps, backend, settings, generator)
        return replace(frames, confidence=torch.rand(frames.confidence.shape, generator=drawn(settings, frames.images)))

    def splats_of(frames, pointmaps, settings, generator, progress):
        draw = drawn(settings, frames.images, frames.confidence)
        return standins.fit_splats(frames, pointmaps, settings, draw, progress)

    monkeypatch.setattr(video, "generate_frames", frames_of)
    monkeypatch.setattr(confidence, "estimate_confidence", confidence_of)
    monkeypatch.setattr(splats, "fit_splats", splats_of)
    return tiny


def check_table(reconx, out, folder):
    """`reconx table ablation` of these runs has the seven rows, each with a figure of its own run."""
    outcome = reconx("table", "ablation", out, "-o", folder)
    assert outcome.code == 0, outcome.err
    lines = list(csv.DictReader((folder / "ablation.csv").read_text().splitlines()))
    ours = [line for line in lines if line["published"] == "false" and line["score"] == "psnr"]
    assert [line["row"] for line in ours] == ROWS
    for line in ours:
        record = json.loads((out / line["row"] / "run.json").read_text())
        scores = [scene["summary"]["psnr"] for scene in record["scenes"].values()]
        assert float(line["value"]) == pytest.approx(sum(scores) / len(scores))
        assert int(line["scenes"]) == len(scores)
        assert line["mlflow_run"] == json.loads((out / line["row"] / "mlflow.json").read_text())["run"]


@pytest.mark.slow
def test_rows_share_every_task_that_they_have_in_common(reconx, telling, tmp_path):
    for name in ("attic", "cellar"):
        standins.write_folder(tmp_path / "data" / name)
    out, store = tmp_path / "runs" / "abl", tmp_path / "store"
    command = ("evaluate", tmp_path / "data", "--ablation", "-o", out, "--store", store, "--workers", "3")
    outcome = reconx(*command)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(ROWS)
    assert Counter(telling()) == stored(store) == wanted_tasks(2) == made_tasks(out)
    check_table(reconx, out, tmp_path / "tables")
    assert reconx(*command).code == 0
    assert telling() == []


def test_rows_whose_frames_are_alike_share_what_follows(reconx, tiny, photos, tmp_path):
    """A stand-in that looks at no setting makes the same frames in every row, and what is made of them is done once."""
    out, store = tmp_path / "runs" / "abl", tmp_path / "store"
    assert reconx("evaluate", photos, "--ablation", "-o", out, "--store", store).code == 0
    computed = Counter(tiny())
    assert computed == stored(store) == made_tasks(out)
    assert (computed["video"], computed["confidence"], wanted_tasks(1)["confidence"]) == (3, 2, 5)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_procedural_scenes(reconx, tmp_path):
    out, store = tmp_path / "runs" / "abl", tmp_path / "store"
    settings = [part for setting in LITTLE_WORK for part in ("-S", setting)]
    specification = "procedural:room?seed=0..19&views=2&width=64&height=48"
    outcome = reconx("evaluate", specification, "--ablation", "-o", out, "--store", store, *settings)
    assert outcome.code == 0, outcome.err
    # Fewer than the settings ask for: where two rows' frames or Gaussians are the same bytes, what follows is done once.
    made, wanted = made_tasks(out), wanted_tasks(20)
    assert stored(store) == made
    assert [made[stage] for stage in STAGES[:4]] == [wanted[stage] for stage in STAGES[:4]] == [20, 20, 20, 60]
    assert all(made[stage] <= wanted[stage] for stage in STAGES)
    check_table(reconx, out, tmp_path / "tables")
