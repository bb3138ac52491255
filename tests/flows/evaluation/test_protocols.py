"""Protocols: published indices read as they are, rules, crops and masks; seeds and the ablation on shared stages."""

import io
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from small_runs import failed_record, record_scene
from standins import write_folder

from flows.evaluation.ablation import load_ablation
from flows.evaluation.protocols import PROTOCOLS, bin_of, bins_of, load_protocol, plan_protocol, splits_of
from flows.evaluation.published import load_published
from flows.evaluation.score_tables import print_scores
from flows.runs.results import means_of_bins
from reconx_core.datasets import Capture, Photo, Split
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import rigid
from reconx_core.io.json_files import read_json
from reconx_core.settings import Settings, ViewsSettings, parse_settings
from reconx_core.views import views_of

NAMES = sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


@pytest.fixture
def dataset(tmp_path):
    for name in ("attic", "cellar"):
        write_folder(tmp_path / "data" / name)
    return tmp_path / "data"


@pytest.mark.parametrize("name", NAMES)
def test_every_protocol_is_whole(name):
    """Its settings are settings, its rule is a rule, and its set is one of its table."""
    protocol = load_protocol(name)
    for views in protocol.views:
        chosen = load_protocol(name, views)
        settings = chosen.applied(Settings(), [])
        assert settings.views.protocol == "posed"
        assert chosen.record()["views"] == views
        assert chosen.index.get(views) or settings.views.split.endswith(str(views)) or protocol.make_index
    if protocol.table:
        assert protocol.set in {entry.set for entry in load_published(protocol.table).entries}


def read_splits(file, views):
    return splits_of(read_json(file), file, views)


def test_every_set_of_the_papers_tables_has_a_protocol():
    known = {(protocol.table, protocol.set) for protocol in map(load_protocol, NAMES)}
    for table in ("easy", "hard", "cross", "multiview"):
        assert {(table, entry.set) for entry in load_published(table).entries} <= known


@pytest.mark.parametrize(
    ("text", "message"),
    [("views: [2]", "is no protocol"), ("title: a\nviews: [2]", "either a split or"),
     ("title: a\nviews: [2]\nsplit: 'gap:9'\nsettings: {splats: {steps: 1}}", "the rest is the method's"),
     ("title: a\nviews: [2, 3]\nindex: {2: a.json}", "for each number of views, an index"), ("- 1", "is no protocol"),
     ("title: a\nviews: [2]\nsplit: 'gap:9'\nbins: {low: [0, 1]}", "which an index says")],
)  # fmt: skip
def test_a_malformed_file_is_a_sentence(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_protocol(str(tmp_path / "mine.yaml"))


def test_unknown_names_and_numbers_of_views_are_sentences(reconx, dataset):
    outcome = reconx("evaluate", dataset, "--protocol", "hrad-re10k")
    assert outcome.code == 2
    assert "hard-re10k" in outcome.err
    outcome = reconx("evaluate", dataset, "--protocol", "llff", "--views", "4")
    assert (outcome.code, "is for 2, 3, 6, 9 input views, not 4" in outcome.err) == (2, True)
    assert reconx("evaluate", dataset, "--views", "4").code == 2


def test_the_fields_indices_are_read_as_they_are(real_data):
    re10k = read_splits(real_data / "eval_index" / "pixelsplat_re10k.json", 2)
    assert len(re10k) == 6474
    assert re10k["5aca87f95a9412c6"] == "views:58,133:84,102,129"
    reconfusion = read_splits(real_data / "eval_index" / "mipnerf360_reconfusion_splits.json", 3)
    assert reconfusion["bicycle"].startswith("views:2,28,110:0,8,16,")
    assert len(reconfusion) == 9


def test_the_pairs_are_sorted_by_their_overlap(real_data, monkeypatch, tmp_path):
    """As NoPoSplat's script does, but for three pairs below the smallest bin, which it counts among the medium ones."""
    monkeypatch.setenv("RECONX_DATA", str(real_data))
    protocol = load_protocol("overlap-re10k")
    index = real_data / "eval_index" / "noposplat_re10k_overlap.json"
    names = json.loads(index.read_text())
    bins = bins_of(protocol, names, index)
    assert Counter(bins.values()) == {"small": 1403, "medium": 2565, "large": 1630}
    assert bins["4ec2510baca79e6b"] == "medium"
    ends = [bin_of(overlap, protocol.bins) for overlap in (0.04, 0.05, 0.3, 0.31, 0.55, 0.8, 0.81)]
    assert ends == ["", "small", "small", "medium", "medium", "large", ""]
    assert protocol.record()["bins"] == {"small": (0.05, 0.3), "medium": (0.3, 0.55), "large": (0.55, 0.8)}


def test_the_means_of_bins_stand_below_the_table_and_in_the_record():
    listed = (("a", 20, "low"), ("b", 24, "high"), ("c", 22, "low"))
    scenes = {name: {**record_scene(psnr), "bin": of} for name, psnr, of in listed}
    scenes |= {"d": {**record_scene(30), "bin": None}, "e": {**failed_record(), "bin": "low"}}
    protocol = {"title": "Mine", "bins": {"low": [0, 0.5], "middle": [0.5, 0.6], "high": [0.6, 1]}}
    file = io.StringIO()
    print_scores(Console(file=file, width=200), {"scenes": scenes, "protocol": protocol, "settings": {"seed": 0}})
    rows = [" ".join(line.replace("│", " ").split()[:5]) for line in file.getvalue().splitlines()]
    assert [row for row in rows if "overlap" in row] == ["low overlap (2) 21.00 0.500", "high overlap (1) 24.00 0.500"]
    assert "mean 24.00 0.500 28.00 10" in rows
    bins = means_of_bins(scenes)
    assert {name: (of["scenes"], of["done"], of["summary"]["psnr"]) for name, of in bins.items()} == {
        "low": (3, 2, 21.0), "high": (1, 1, 24.0),
    }  # fmt: skip


def test_an_index_without_overlaps_is_no_index_of_bins(real_data, tmp_path):
    index = real_data / "eval_index" / "pixelsplat_re10k.json"
    with pytest.raises(UserError, match=r"says no 'overlap' of its pairs, by which overlap-re10k sorts them"):
        plan_protocol(load_protocol("overlap-re10k"), [("a", str(tmp_path))], Settings(), index, tmp_path)


def test_a_scans_targets_are_one_split(real_data, monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_DATA", str(real_data))
    scenes = [(name, str(tmp_path / name)) for name in ("scan1_train", "scan8", "scan2")]
    chosen = plan_protocol(load_protocol("cross-dtu", 3), scenes, Settings(), None, tmp_path)
    assert [(name, settings.views.split) for name, _, settings, _ in chosen] == [
        ("scan1_train", "views:33,31,43:32,24,23,44"), ("scan8", "views:33,31,43:32,24,23,44"),
    ]  # fmt: skip


@pytest.mark.parametrize("lists", [[1], {"train_3": 5, "test": [1]}, {"train_3": ["x"], "test": [1]}, None])
def test_an_index_of_another_form_is_told_in_a_sentence(tmp_path, lists):
    (tmp_path / "index.json").write_text(json.dumps({"scenes": {"garden": lists}}))
    with pytest.raises(UserError, match=r"index\.json should list each scene's 'train_3' and 'test' views"):
        read_splits(tmp_path / "index.json", 3)


def test_a_missing_index_says_where_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.delenv("RECONX_DATA", raising=False)
    with pytest.raises(UserError, match=r"needs pixelsplat_acid.json .*dcharatan/pixelsplat.*or give --index FILE"):
        plan_protocol(load_protocol("easy-acid"), [("a", str(tmp_path / "x" / "a"))], Settings(), None, tmp_path)


@pytest.mark.slow
def test_an_index_chooses_the_scenes_and_their_views(reconx, tiny, dataset, tmp_path):
    index = tmp_path / "mine.json"
    index.write_text(json.dumps({"cellar": {"context": [0, 1], "target": [1]}, "attic": None}))
    options = ("--index", index, "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert reconx("evaluate", dataset, *options).code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert {name: scene["split"] for name, scene in record["scenes"].items()} == {"cellar": "views:0,1:1"}
    assert record["protocol"]["split"] == str(index)
    index.write_text(json.dumps({"garden": {"context": [0, 1], "target": [1]}}))
    outcome = reconx("evaluate", dataset, *options)
    assert (outcome.code, "lists none of the 2 scenes" in outcome.err) == (2, True)


@pytest.mark.slow
def test_pairs_by_rule_are_listed_and_short_scenes_left_out(reconx, tiny, dataset, tmp_path):
    for i in range(7):
        (dataset / "cellar" / f"c{i}.png").write_bytes((dataset / "cellar" / "a.png").read_bytes())
    wide = {**yaml.safe_load((PROTOCOLS / "hard-re10k.yaml").read_text()), "split": "gap:6", "settings": {}}
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(wide))
    out = tmp_path / "out"
    options = ("--protocol", tmp_path / "wide.yaml", "-o", out, "--store", tmp_path / "store")
    assert reconx("evaluate", dataset, *options).code == 0
    pairs = json.loads((out / "index.json").read_text())
    assert pairs == {"attic": None, "cellar": {"context": [1, 7], "target": [3, 4, 5]}}
    assert list(json.loads((out / "run.json").read_text())["scenes"]) == ["cellar"]
    # The list is an index that can be given again.
    assert read_splits(out / "index.json", 2) == {"cellar": "views:1,7:3,4,5"}


@pytest.mark.slow
def test_seeds_share_what_draws_nothing_and_give_mean_and_spread(reconx, tiny, dataset, tmp_path):
    out = tmp_path / "out"
    options = ("evaluate", dataset, "--seeds", "3", "-o", out, "--store", tmp_path / "store")
    assert reconx(*options).code == 0
    done = tiny()
    assert (done.count("views"), done.count("splats")) == (2, 6)
    record = json.loads((out / "run.json").read_text())
    scene = record["scenes"]["attic"]
    values = torch.tensor([scene["seeds"][str(seed)]["psnr"] for seed in (0, 1, 2)], dtype=torch.float64)
    assert record["seeds"] == [0, 1, 2]
    assert len(set(values.tolist())) == 3
    assert scene["summary"]["psnr"] == pytest.approx(float(values.mean()))
    assert scene["spread"]["psnr"] == pytest.approx(float(values.std()))
    assert scene["summary"]["lpips"] is None
    assert (out / "attic" / "seed-2" / "scene.ply").is_file()
    assert reconx(*options).code == 0
    assert tiny() == []


@pytest.mark.slow
def test_the_ablation_is_seven_runs_on_shared_stages(reconx, tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "runs" / "abl"
    assert reconx("evaluate", dataset, "--ablation", "-o", out, "--store", tmp_path / "store").code == 0
    done = tiny()
    assert [done.count(stage) for stage in ("views", "pointcloud", "condition", "video")] == [2, 2, 2, 6]
    records = {row.name: json.loads((out / row.name / "run.json").read_text()) for row in load_ablation()}
    assert {record["row"] for record in records.values()} == set(records)
    assert records["baseline"]["settings"]["video"]["backend"] == "none"
    monkeypatch.chdir(tmp_path)
    outcome = reconx("table", "ablation", "-o", tmp_path / "tables")
    assert outcome.code == 0, outcome.err
    rows = (tmp_path / "tables" / "ablation.csv").read_text().splitlines()
    assert sum(",psnr," in row and ",false," in row for row in rows) == 7


def capture(height, width, object_mask=None):
    shades = torch.linspace(0, 1, width).expand(height, width)[..., None].repeat(1, 1, 3)
    intrinsics = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]])
    photos = [
        Photo("a", lambda: shades, intrinsics=intrinsics, cam_to_world=pose, load_object_mask=object_mask)
        for pose in rigid(torch.eye(3).expand(3, 3, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]]))
    ]
    return Capture("scene", tuple(photos), {"train_2": Split((0, 1), (2,))})


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (40, 40), (24, 50)])
def test_a_crop_covers_and_keeps_rays(height, width):
    """The middle of the photo stays in the middle, and the focal grows with the picture."""
    views = views_of(capture(height, width), ViewsSettings(split="train_2", crop=(32, 48)))
    assert views.images.shape[1:3] == (32, 48)
    scale = max(32 / height, 48 / width)
    assert views.cameras.intrinsics[0, 0, 0] == pytest.approx(width * scale, rel=0.02)
    assert views.cameras.intrinsics[0, :2, 2].tolist() == pytest.approx([24, 16], abs=0.51)
    assert views.images[0, :, 23:25].mean() == pytest.approx(0.5, abs=0.02)
    assert views.masks.all()


@pytest.mark.parametrize(
    ("stored", "calibrated", "expected"),
    [((64, 96), None, (8, 12)), ((66, 98), None, (8, 12)), ((32, 48), (64, 96), (8, 12)), ((8, 12), (64, 96), (8, 12)),
     ((8, 12), (68, 100), (8, 12)), ((9, 13), (68, 100), (9, 13))],
)  # fmt: skip
def test_photos_at_an_eighth_are_so_by_the_size_of_their_cameras(stored, calibrated, expected):
    """Whichever folder of a published set is there: the originals, or copies of them at a quarter or an eighth."""
    scene = capture(*stored)
    if calibrated is not None:
        grown = torch.tensor([calibrated[1] / stored[1], calibrated[0] / stored[0], 1])[:, None]
        photos = [replace(photo, intrinsics=photo.intrinsics * grown, size=calibrated) for photo in scene.photos]
        scene = replace(scene, photos=tuple(photos))
    views = views_of(scene, ViewsSettings(split="train_2", shrink=8))
    assert views.images.shape[1:3] == expected
    assert views.cameras.intrinsics[0, 0, 0] == pytest.approx(expected[1], rel=1e-6)
    assert views.cameras.intrinsics[0, 1, 2] == pytest.approx(expected[0] / 2, rel=1e-6)


def test_photos_smaller_than_the_protocols_are_not_enlarged():
    scene = capture(4, 6)
    photos = tuple(replace(photo, size=(64, 96)) for photo in scene.photos)
    with pytest.raises(UserError, match=r"6x4, smaller than 12x8, which views\.shrink=8 makes of its camera's size"):
        views_of(replace(scene, photos=photos), ViewsSettings(split="train_2", shrink=8))
    with pytest.raises(UserError, match=r"shrink.*crop says the size already"):
        parse_settings({}, ["views.crop=[32,32]", "views.shrink=8"])


def test_object_masks_say_where_held_out_views_are_scored_and_hide_nothing_else():
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[10:20] = True
    views = views_of(capture(40, 40, lambda: mask), ViewsSettings(split="train_2", mask="object"))
    assert views.masks[:2].all()
    assert torch.equal(views.masks[2], mask)
    assert views_of(capture(40, 40, lambda: mask), ViewsSettings(split="train_2")).masks.all()
    with pytest.raises(UserError, match=r"views.mask=object needs masks of the objects"):
        views_of(capture(40, 40), ViewsSettings(split="train_2", mask="object"))


def test_a_published_target_may_be_an_input():
    views = views_of(capture(40, 40), ViewsSettings(split="views:0,1:1,2"))
    assert views.is_target.tolist() == [False, False, True, True]


def test_a_frame_that_is_missing_is_named():
    photos = tuple(Photo("a", partial(torch.full, (8, 8, 3), number / 4), number=number) for number in (0, 1, 3, 4))
    scene = Capture("scene", photos)
    assert len(views_of(scene, ViewsSettings(split="views:0,3:4"))) == 3
    with pytest.raises(UserError, match="'scene' lacks frame 2, which its split needs"):
        views_of(scene, ViewsSettings(split="views:0,3:2"))


def test_the_protocols_are_in_the_docs():
    page = (Path(__file__).parents[3] / "docs" / "protocols.md").read_text()
    assert all(f"`{name}`" in page for name in NAMES)
