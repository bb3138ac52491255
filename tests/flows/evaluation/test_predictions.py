"""Predictions of other programs are found in their own layouts, and every view gets its picture, or the lack is named."""

import zipfile
from pathlib import Path

import pytest
import torch

from flows.evaluation.foreign_scores import _compare_photos, pictures_of
from flows.evaluation.predictions import Prediction, find_predictions, match_views, opened, scene_places
from reconx_core.errors import UserError
from reconx_core.io.images import write_png
from reconx_core.types import Views

VIEWS = ("IMG_4026", "IMG_4034", "IMG_4042")
HEIGHT, WIDTH = 24, 32


def photo(seed):
    """Soft shapes that differ from view to view."""
    small = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bicubic")[0].permute(1, 2, 0).clamp(0, 1)


def targets():
    n = len(VIEWS)
    images, masks = torch.stack([photo(i) for i in range(n)]), torch.ones(n, HEIGHT, WIDTH, dtype=torch.bool)
    return Views(images, masks, VIEWS, torch.ones(n, dtype=torch.bool), None, torch.full((n,), float("nan")))


def fill(folder, names, pictures=None):
    for i, name in enumerate(names):
        write_png(folder / f"{name}.png", photo(i) if pictures is None else pictures[i])
    return folder


def matched(place):
    return [p.picture.stem for p in match_views(find_predictions(place), VIEWS, "Predictions of fern")]


def test_gsplats_pictures_are_halves_and_its_last_step_counts(tmp_path):
    for step in (6999, 29999):
        pictures = [torch.cat([photo(i), 1 - photo(i)], 1) for i in range(3)]
        fill(tmp_path / "renders", [f"val_step{step}_{i:04d}" for i in range(3)], pictures)
    fill(tmp_path / "renders", ["traj_0000"])
    found = find_predictions(tmp_path)
    assert "last is scored: step 29999" in found.note
    first, *_ = match_views(found, VIEWS, "x")
    assert first.picture.stem == "val_step29999_0000"
    render, truth = pictures_of(first, targets(), "x")
    assert (truth - photo(0)).abs().max() < 0.003
    assert (render - (1 - photo(0))).abs().max() < 0.003


def test_3dgs_and_nerfbaselines_and_plain_names(tmp_path):
    for part in ("renders", "gt"):
        fill(tmp_path / "3dgs/test/ours_7000" / part, ["00000", "00001", "00002"])
        fill(tmp_path / "3dgs/test/ours_30000" / part, ["00000", "00001", "00002"])
    fill(tmp_path / "nb/color/images", VIEWS)
    fill(tmp_path / "nb/gt-color/images", VIEWS)
    fill(tmp_path / "plain", VIEWS)
    found = find_predictions(tmp_path / "3dgs")
    assert {path.parent.name for path in found.truths.values()} == {"gt"}
    assert {path.parents[1].name for path in found.pictures.values()} == {"ours_30000"}
    assert matched(tmp_path / "3dgs") == ["00000", "00001", "00002"]
    assert matched(tmp_path / "nb") == matched(tmp_path / "plain") == list(VIEWS)
    with zipfile.ZipFile(tmp_path / "nb.zip", "w") as archive:
        for path in (tmp_path / "nb").rglob("*.png"):
            archive.write(path, path.relative_to(tmp_path))
    with opened(tmp_path / "nb.zip") as place:
        assert len(find_predictions(place).truths) == 3


def test_gaussians_where_there_are_no_pictures(tmp_path):
    for step in (7000, 30000):
        (tmp_path / f"point_cloud/iteration_{step}").mkdir(parents=True)
        (tmp_path / f"point_cloud/iteration_{step}/point_cloud.ply").write_bytes(b"")
    assert find_predictions(tmp_path).splats.parent.name == "iteration_30000"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no pictures and no Gaussians"):
        find_predictions(tmp_path / "empty")


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (VIEWS[1:], r"1 missing \(IMG_4026\); 3 views"),
        ((*VIEWS, "IMG_4043"), r"1 that are of no held-out view \(IMG_4043\)"),
        (("00000", "00001"), r"1 missing \(IMG_4042\)"),
        (("00001", "00002", "00003"), r"1 missing \(IMG_4026\) and 1 that are of no held-out view \(00003\)"),
    ],
)
def test_missing_and_extra_pictures_are_named(tmp_path, names, said):
    with pytest.raises(UserError, match=said):
        matched(fill(tmp_path, names))


def test_scenes_without_predictions_are_named(tmp_path):
    (tmp_path / "fern").mkdir()
    assert scene_places(tmp_path, ["fern"]) == {"fern": tmp_path / "fern"}
    assert scene_places(tmp_path / "fern", ["room"]) == {"room": tmp_path / "fern"}
    with pytest.raises(UserError, match="no folder of horns, room;"):
        scene_places(tmp_path, ["fern", "horns", "room"])


def test_another_size_is_refused(tmp_path):
    write_png(tmp_path / "a.png", torch.zeros(HEIGHT + 2, WIDTH, 3))
    with pytest.raises(UserError, match=r"a\.png is 32x26, and the held-out views are 32x24"):
        pictures_of(Prediction("a", tmp_path / "a.png", None), targets(), "Predictions of fern")


def test_own_photos_tell_another_order_and_another_scene(tmp_path):
    pictures = fill(tmp_path / "own", VIEWS)
    given = [Prediction(view, pictures / f"{view}.png", pictures / f"{view}.png") for view in VIEWS]
    noted: list[str] = []
    _compare_photos(given, targets(), "Predictions of fern", noted.append)
    assert not noted
    turned = [Prediction(p.view, p.picture, q.truth) for p, q in zip(given, [*given[1:], given[0]])]
    with pytest.raises(UserError, match="for IMG_4026 shows IMG_4034: another split, or another order"):
        _compare_photos(turned, targets(), "Predictions of fern", noted.append)
    other: Path = tmp_path / "other.png"
    write_png(other, (photo(0) * 0.2).clamp(0, 1))
    with pytest.raises(UserError, match="another"):
        _compare_photos([Prediction(VIEWS[0], other, other)], targets(), "Predictions of fern", noted.append)
