"""The page that compares runs says what the records say, and shows the pictures that the runs left."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import HEIGHT, STAGES, WIDTH, failed_record, panels, record_scene, write_pictures, write_run

from flows.evaluation import compare_page
from flows.evaluation.comparison import pair_up
from flows.runs.records import read_run
from reconx_core.errors import UserError
from reconx_core.io.images import to_uint8
from reconx_core.metrics.pictures import Picture, side_by_side


def picture(tensor):
    return Image.fromarray(to_uint8(tensor))


def two_runs(tmp_path, pictures="pictures", names="uvw", seeds=(0,)):
    """Run B is better by 1, 2, 3 dB and has pictures of smaller error."""
    runs = []
    for k, letter in enumerate("AB"):
        scenes = {name: record_scene(20 + k * (i + 1)) for i, name in enumerate(names)}
        out = write_run(tmp_path / letter, scenes, {"steps": 1000 * (k + 1)}, seeds=list(seeds))
        for name in names if pictures else ():
            write_pictures(out / name / pictures, 0.2 / (k + 1))
        runs.append(read_run(str(out), letter))
    return runs


def render(runs):
    return compare_page.render_comparison(runs, [pair_up(runs[0], run) for run in runs[1:]])


def test_page_says_what_the_records_say(tmp_path, reconx):
    runs = two_runs(tmp_path)
    out = tmp_path / "page" / "compare.html"
    outcome = reconx("compare", runs[0].folder, runs[1].folder, "-o", out)
    assert outcome.code == 0
    assert str(out) in outcome.out.replace("\n", "")
    page = out.read_text()
    assert re.search(r'data-key="psnr">\+2\.000<', page)
    assert not re.search(r"https?://|url\(|@import|<link", page)
    assert page.count('class="mark ') == 3 * 2 * 3  # scores drawn, runs, scenes
    assert "<title>w · B B · 23.00</title>" in page
    for expected in ("B is better", "splats.steps", "1000", "2000", "Weights not recorded in A and B."):
        assert expected in page, expected


def test_scene_that_changed_most_comes_first_with_its_pictures(tmp_path):
    runs = two_runs(tmp_path)
    changed = compare_page.changed_scenes(runs, [pair_up(*runs)])
    assert [scene.scene for scene in changed] == ["w", "v", "u"]
    assert changed[0].scores == (20.0, 23.0)
    held_out, photo = changed[0].shots
    assert (held_out.view, held_out.is_target, photo.view, photo.is_target) == ("b.jpg", True, "a.jpg", False)
    assert [(run.label, psnr, list(shown)) for run, psnr, shown in held_out.rows] == [
        ("A", 20.0, ["photo", "render", "error", "depth"]),
        ("B", 23.0, ["photo", "render", "error", "depth"]),
    ]
    assert list(photo.rows[0][2]) == ["photo", "render", "error", "confidence"]


def test_pictures_of_a_run_with_seeds_are_those_of_its_first(tmp_path):
    runs = two_runs(tmp_path, "seed-2/pictures")
    for run in runs:
        write_pictures(run.folder / "w" / "seed-10" / "pictures", 0.5)
    found = compare_page.find_pictures(runs[0], "w", tmp_path)
    assert [path.parent.parent.name for path in found] == ["seed-2", "seed-2"]
    assert compare_page.changed_scenes(runs, [pair_up(*runs)])[0].shots


def test_without_pictures_the_page_says_so(tmp_path):
    runs = two_runs(tmp_path)
    shutil.rmtree(runs[1].folder / "w" / "pictures")
    assert "No pictures of B: neither in the run&#39;s folder nor in MLflow." in render(runs)
    page = render(two_runs(tmp_path / "none", pictures=None))
    assert page.count("No pictures of A, B") == 1
    assert "<img" not in page.replace('<img alt=""><p>', "")


def test_pictures_are_limited_by_the_page_not_the_machine(tmp_path, monkeypatch):
    runs = two_runs(tmp_path)
    pairs = [pair_up(*runs)]
    one = compare_page._weight(compare_page.changed_scenes(runs, pairs)[0].shots)
    monkeypatch.setattr(compare_page, "PAGE_BYTES", one + 100)
    changed = compare_page.changed_scenes(runs, pairs)
    assert [bool(scene.shots) for scene in changed] == [True, False, False]
    assert "too heavy" in changed[1].missing


def test_panels_are_cut_from_the_strip_as_they_were_laid():
    shown = panels(3, 0.1)
    strip = picture(side_by_side(Picture("b", True, False, shown)))
    for panel, cut in zip(shown.values(), compare_page.split_strip(strip, WIDTH), strict=True):
        assert cut.size == (WIDTH, HEIGHT)
        assert np.array_equal(np.asarray(cut), to_uint8(panel))


def test_change_is_blue_where_the_other_is_closer_and_orange_where_farther():
    photo = torch.full((HEIGHT, WIDTH, 3), 0.5)
    first, other = photo + 0.2, photo + 0.2
    other[:, : WIDTH // 4] = 0.5
    other[:, -WIDTH // 4 :] = 0.9
    change = np.asarray(compare_page.change_picture(*map(picture, (photo, first, other)))).astype(int)
    left, middle, right = change[0, 0], change[0, WIDTH // 2], change[0, -1]
    assert left[2] > left[0] + 100
    assert right[0] > right[2] + 100
    assert middle.max() == middle.min()


def test_costs_are_summed_by_stage_with_what_came_from_the_store(tmp_path):
    runs = two_runs(tmp_path, pictures=None)
    rows = dict(compare_page.stage_rows(runs))
    assert list(rows) == list(STAGES)
    assert (rows["splats"][0].seconds, rows["splats"][0].cached) == (120.0, 0)
    assert rows["views"][1].cached == 3
    page = render(runs)
    assert "2 min 00 s" in page
    assert "from store" in page


def test_size_speed_and_bins_stand_on_the_page(tmp_path):
    runs = []
    for letter, psnr, fps in (("A", 20, 10.0), ("B", 21, 30.0)):
        scenes = {s: record_scene(psnr, bin="small" if s == "w" else "large", fps=fps, megabytes=5.0) for s in "uvw"}
        folder = write_run(tmp_path / letter, scenes, protocol={"bins": {"small": [0.05, 0.3], "large": [0.3, 1]}})
        runs.append(read_run(str(folder), letter))
    assert dict(compare_page.size_rows(runs, [pair_up(*runs)])) == {
        "Gaussians": ["10", "10"], "scene.ply": ["5.0 MB", "5.0 MB"], "frames a second": ["10.0", "30.0"],
    }  # fmt: skip
    page = " ".join(render(runs).split())
    assert '<th scope="row">frames a second</th><td class="n">10.0</td><td class="n">30.0</td>' in page
    bins = page.split("By the overlap of the input views")[1].split("</table>")[0]
    assert bins.index(">small</th>") < bins.index(">large</th>")
    assert "+1.000" in bins
    assert "By the overlap" not in render(two_runs(tmp_path / "without", pictures=None))


def test_failures_and_scenes_of_one_run_alone_are_named(tmp_path):
    runs = two_runs(tmp_path, pictures=None)
    runs[1].record["scenes"]["v"] = failed_record("The <disk> is full.")
    page = render(runs)
    assert "B: 1 of 3 scenes failed" in page
    assert "The &lt;disk&gt; is full." in page
    assert "Not in both A and B: v" in page
    assert page.count('class="mark ') == 3 * 5


def test_unwritable_page_is_the_users_to_mend(tmp_path):
    runs = two_runs(tmp_path, pictures=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write"):
        compare_page.write_comparison(tmp_path / "file" / "page.html", runs, [pair_up(*runs)])


def test_a_page_whose_name_is_a_folders_is_told_before_the_work(tmp_path, reconx):
    two_runs(tmp_path, pictures=None)
    (tmp_path / "page").mkdir()
    outcome = reconx("compare", tmp_path / "A", tmp_path / "B", "-o", tmp_path / "page")
    assert (outcome.code, outcome.out) == (2, "")
    assert f"Cannot write '{tmp_path / 'page'}': there is a folder of that name" in outcome.err


def test_scenes_to_look_around_in_are_linked_where_two_runs_have_them(tmp_path):
    runs = two_runs(tmp_path)
    folder = tmp_path / "other" / "place"
    (tmp_path / "A" / "w" / "scene.html").write_text("A")
    assert compare_page.scene_pages("w", runs, folder) == ()
    seeded = tmp_path / "B" / "w" / "seed-2" / "scene.html"
    for seed in (10, 2):
        (tmp_path / "B" / "w" / f"seed-{seed}").mkdir()
        (tmp_path / "B" / "w" / f"seed-{seed}" / "scene.html").write_text("B")
    found = {run.label: page for run, page in compare_page.scene_pages("w", runs, folder)}
    assert found == {"A": "../../A/w/scene.html", "B": "../../B/w/seed-2/scene.html"}
    assert (folder / found["B"]).resolve() == seeded
    page = compare_page.render_comparison(runs, [pair_up(*runs)], folder)
    assert page.count('data-pages="../../A/w/scene.html ../../B/w/seed-2/scene.html"') == 1
    assert "data-pages" not in render(runs)
