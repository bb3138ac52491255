"""A bundle says by itself what was changed in it, its scores follow from its renders, and a page ranks equal terms alone."""

import io
import json
import shutil
import zipfile

import pytest
import torch
from standins import HEIGHT, WIDTH

from flows.evaluation.bundle_page import render_leaderboard, shared_scenes
from flows.evaluation.bundles import ABOUT, FORMAT, means_of, prediction_name, read_bundle, write_bundle
from reconx_core import metrics
from reconx_core.errors import UserError
from reconx_core.io.images import encode, write_png
from reconx_core.metrics import given


def scene(name, psnr=20.0, **changes):
    scores = {"psnr": psnr, "ssim": 0.5, "lpips": None, "lpips_alex": None}
    views = [{"view": "d", "file": prediction_name(name, 0, 0), "refined": False} | scores]
    about = {"scene": name, "seed": 0, "split": "train_3", "protocol": "posed", "size": [8, 6], "views": views}
    return about | {"summary": scores} | changes


def write(path, scenes, label="ours", **changes):
    files = {view["file"]: encode(torch.full((6, 8, 3), 0.5), "PNG") for each in scenes for view in each["views"]}
    about = {"format": FORMAT, "title": "t", "label": label, "settings": {}, "facts": {"reconx": "1"}, "failed": {}}
    write_bundle(path, about | {"scenes": scenes, "summary": means_of(scenes)} | changes, files)
    return path


def altered(path, change):
    """The bundle with its content changed, as a zip tool would."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    change(content)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return read_bundle(path).problems


def test_the_same_content_is_the_same_bytes_and_holds(tmp_path):
    first, second = (write(tmp_path / name, [scene("a/b"), scene("c")]) for name in ("x.zip", "y.zip"))
    assert first.read_bytes() == second.read_bytes()
    assert read_bundle(first).problems == []
    assert set(read_bundle(first).files) == {"predictions/a%2Fb/seed-0/0000.png", "predictions/c/seed-0/0000.png"}


def test_what_was_changed_is_named(tmp_path):
    name = prediction_name("a", 0, 0)
    other = encode(torch.zeros(6, 9, 3), "PNG")
    problems = altered(write(tmp_path / "x.zip", [scene("a")]), lambda content: content.update({name: other}))
    assert problems[0] == f"{name} is not what its SHA-256 says."
    assert "is 9x6, and was scored at 8x6" in problems[1]
    problems = altered(write(tmp_path / "y.zip", [scene("a")]), lambda content: content.pop(name))
    assert any("missing" in problem for problem in problems)
    problems = altered(write(tmp_path / "z.zip", [scene("a")]), lambda content: content.update({"more.png": other}))
    assert "more.png is not listed in SHA256SUMS." in problems


def test_means_have_to_follow_from_their_terms(tmp_path):
    better = scene("a")["summary"] | {"psnr": 30.0}
    problems = read_bundle(write(tmp_path / "x.zip", [scene("a", summary=better)])).problems
    assert problems == ["a, seed 0: mean psnr is 30.0, and by its terms 20.0."]
    problems = read_bundle(write(tmp_path / "y.zip", [scene("a")], summary=better)).problems
    assert problems == ["all scenes: mean psnr is 30.0, and by its terms 20.0."]


@pytest.mark.parametrize("content", [b"no zip", None])
def test_what_is_no_bundle_is_a_sentence(tmp_path, content):
    file = tmp_path / "x.zip"
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        archive.writestr(ABOUT, json.dumps({"format": "another"}))
        archive.writestr("SHA256SUMS", "")
    file.write_bytes(content or memory.getvalue())
    with pytest.raises(UserError, match="is no bundle"):
        read_bundle(file)


def test_leaderboard_ranks_the_scenes_that_all_have(tmp_path):
    first = read_bundle(write(tmp_path / "x.zip", [scene("a", 20), scene("b", 40)], "Method A"))
    second = read_bundle(write(tmp_path / "y.zip", [scene("a", 21)], "<second>", row="full"))
    page = render_leaderboard([first, second])
    assert page.count("row full of the ablation") == 1
    assert page.index("&lt;second&gt;") < page.index("Method A")
    assert "Method A: 1 more scene(s), which not all have." in page
    assert '<td class="n" data-key="psnr">20.00</td>' in page
    assert 'data-key="lpips"' not in page
    assert "30.00" not in page  # the mean of scenes that only one has


@pytest.mark.parametrize("changes", [{"split": "train_6"}, {"size": [8, 6], "protocol": "unposed"}])
def test_bundles_on_other_terms_are_not_ranked(tmp_path, changes):
    first, second = (read_bundle(write(tmp_path / f"{i}.zip", [scene("a", **c)])) for i, c in enumerate(({}, changes)))
    with pytest.raises(UserError, match=f"{next(key for key in changes if key != 'size')} of a is"):
        shared_scenes([first, second])
    with pytest.raises(UserError, match="no scene in common"):
        shared_scenes([first, read_bundle(write(tmp_path / "z.zip", [scene("other")]))])


def test_from_predictions_to_a_leaderboard(reconx, tiny, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONX_STORE", str(tmp_path / "store"))
    picture = torch.rand(2 * HEIGHT, 2 * WIDTH, 3, generator=torch.Generator().manual_seed(1))
    write_png(tmp_path / "peer/d.png", picture)
    outcome = reconx("evaluate", photos, "--predictions", "peer", "--label", "A peer", "-o", "run", "-S", "splats.steps=1")
    assert (outcome.code, "splats.steps=1' is of a stage that does not run" in outcome.err) == (2, True)
    outcome = reconx("evaluate", photos, "--predictions", "peer", "--label", "A peer", "-o", "run")
    assert outcome.code == 0, outcome.err
    assert tiny() == ["views"]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["label"] == "A peer"
    assert "averaged over 2x2 pixels" in record["scenes"]["garden"]["notes"][0]
    assert "A peer: made by another method" in reconx("table", "easy", "run").out.replace("\n", " ")
    write_png(tmp_path / "peer/e.png", picture)
    outcome = reconx("evaluate", photos, "--predictions", "peer", "-o", "second")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "1 that are of no held-out view (e)" in outcome.err
    assert not (tmp_path / "second").exists()

    assert reconx("bundle", "run", "-o", "a.zip").code == 0
    outcome = reconx("bundle", "verify", "a.zip", "--data", photos)
    assert (outcome.code, "scores of every view" in outcome.out) == (0, True)
    assert reconx("bundle", "page", "a.zip", "a.zip").code == 0
    about = read_bundle(tmp_path / "a.zip")
    scenes = [each.model_dump() for each in about.about.scenes]
    for scores in (scenes[0]["summary"], scenes[0]["views"][0]):
        scores["psnr"] += 1
    write_bundle(tmp_path / "b.zip", about.about.model_dump() | {"scenes": scenes, "summary": means_of(scenes)}, about.files)
    assert reconx("bundle", "verify", "b.zip").code == 0  # by itself it cannot know
    outcome = reconx("bundle", "verify", "b.zip", "--data", photos)
    assert (outcome.code, "psnr of d is" in outcome.out) == (1, True)


@pytest.mark.slow
def test_a_run_of_our_own_with_seeds_holds_without_its_store(reconx, tiny, photos, tmp_path, monkeypatch):
    def score_scene(gaussians, scene, kept, pointmaps, settings, generator):
        targets = given.held_out(scene, settings)
        noise = torch.rand(targets.images[0].shape, generator=torch.Generator().manual_seed(1))
        render = (targets.images[0] + 0.1 * noise * gaussians.means.mean()).clamp(0, 1)
        results = given.score_pictures([render], targets, settings)
        return given.scores_of(results, scene, gaussians), [picture for _, picture in results]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONX_STORE", str(tmp_path / "store"))
    monkeypatch.setattr(metrics, "score_scene", score_scene)
    assert reconx("evaluate", photos, "--seeds", "2", "-o", "runs/full").code == 0
    outcome = reconx("bundle", "runs")
    assert (outcome.code, "holds 1 run(s) (full); name one of them" in outcome.err) == (2, True)
    outcome = reconx("bundle", "runs/full", "-o", "full.zip")
    assert (outcome.code, "2 renders of 1 scene(s), 2 seeds in" in outcome.out) == (0, True), outcome.err
    shutil.rmtree(tmp_path / "store")
    outcome = reconx("bundle", "verify", "full.zip", "--data", photos)
    assert (outcome.code, "scores of every view" in outcome.out) == (0, True)
    outcome = reconx("bundle", "runs/full")
    assert (outcome.code, "no longer in the store" in outcome.err) == (2, True)
