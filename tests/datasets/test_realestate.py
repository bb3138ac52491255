import json
from pathlib import Path

import numpy as np
import pytest
import torch

from reconx_core.datasets import detect, files_of, read, realestate, scene_names
from reconx_core.errors import UserError
from reconx_core.io.images import ImageError, encode, read_image, write_png
from reconx_core.io.json_files import read_json
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

HEIGHT, WIDTH = 24, 32


def read_index(file):
    return realestate.published_splits(read_json(file), file)


def row(i):
    """A camera that is turned by a quarter about y and stands at x = i."""
    rotation = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    pose = torch.cat([rotation, -rotation @ torch.tensor([[float(i)], [0], [0]])], 1)
    return torch.cat([torch.tensor([0.5, 0.9, 0.5, 0.4, 0, 0]), pose.reshape(-1)])


def jpeg(grey, height=HEIGHT, width=WIDTH):
    return torch.from_numpy(np.frombuffer(encode(torch.full((height, width, 3), grey), "JPEG"), dtype=np.uint8).copy())


def example(key, frames=4, **size):
    return {
        "key": key,
        "url": "https://www.youtube.com/watch?v=x",
        "timestamps": torch.arange(frames),
        "cameras": torch.stack([row(i) for i in range(frames)]),
        "images": [jpeg(i / 10, **size) for i in range(frames)],
    }


def write_split(folder, chunks):
    folder.mkdir(parents=True)
    for number, examples in enumerate(chunks):
        torch.save(examples, folder / f"{number:06d}.torch")
    index = {e["key"]: f"{number:06d}.torch" for number, examples in enumerate(chunks) for e in examples}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def split(tmp_path):
    chunks = [[example("b1"), example("a2", frames=3, height=36, width=64)], [example("c3")]]
    return write_split(tmp_path / "re10k" / "test", chunks)


def write_frames(folder, camera_file, times=(100, 200, 300), missing=()):
    camera_file.parent.mkdir(parents=True, exist_ok=True)
    lines = [" ".join([str(t), *(f"{x:.9f}" for x in row(i).tolist())]) for i, t in enumerate(times)]
    camera_file.write_text("\n".join(["https://www.youtube.com/watch?v=x", *lines, ""]))
    folder.mkdir(parents=True, exist_ok=True)
    for i, time in enumerate(times):
        if time not in missing:
            write_png(folder / f"{time}.png", torch.full((HEIGHT, WIDTH, 3), i / 10))


def test_scenes_of_chunks_are_listed_and_read(split):
    names = scene_names(split)
    assert names == [("b1", split / "b1"), ("a2", split / "a2"), ("c3", split / "c3")]
    assert {detect(path).name for _, path in names} == {"realestate10k"}
    capture = read(split / "b1")
    assert (capture.name, [p.name for p in capture.photos]) == ("b1", [f"frame_0000{i}" for i in range(4)])
    photo = capture.photos[3]
    torch.testing.assert_close(photo.intrinsics, torch.tensor([[16.0, 0, 16], [0, 21.6, 9.6], [0, 0, 1]]))
    assert photo.cam_to_world[:3, 3].tolist() == [3, 0, 0]
    assert photo.cam_to_world[:3, 2].tolist() == [-1, 0, 0]  # looks along -x
    assert photo.load().shape == (HEIGHT, WIDTH, 3)
    assert float(photo.load().mean()) == pytest.approx(0.3, abs=0.01)


def test_sizes_may_differ_between_scenes(split):
    photo = read(split / "a2").photos[0]
    assert (photo.size, photo.load().shape) == ((36, 64), (36, 64, 3))
    assert photo.intrinsics[0, 0] == 32


def test_a_scene_of_a_chunk_goes_through_the_views_stage(split):
    views = load_views(split / "b1", ViewsSettings())
    assert (views.protocol, views.images.shape) == ("posed", (4, HEIGHT, WIDTH, 3))


@pytest.mark.parametrize("damage", ["missing", "cut", "empty"])
def test_chunks_that_are_not_whole_are_named_and_their_scenes_left_out(split, damage):
    chunk = split / "000000.torch"
    if damage == "missing":
        chunk.unlink()
    else:
        chunk.write_bytes(chunk.read_bytes()[: 3000 if damage == "cut" else 0])
    with pytest.warns(UserWarning, match=r"1 of 2 chunks.*000000\.torch"):
        assert scene_names(split) == [("c3", split / "c3")]
    with pytest.raises(UserError, match=r"000000\.torch"):
        read(split / "b1")


def test_no_chunk_at_all(split):
    for chunk in split.glob("*.torch"):
        chunk.unlink()
    with pytest.raises(UserError, match=r"None of the 2 chunks.*000000\.torch, 000001\.torch"):
        scene_names(split)


def test_a_chunk_that_was_filled_from_both_ends(split):
    chunk = split / "000000.torch"
    data = chunk.read_bytes()
    chunk.write_bytes(bytes(len(data) // 2) + data[len(data) // 2 :])
    with pytest.raises(UserError, match=r"000000\.torch"):
        read(split / "b1")


def test_folders_of_many_scenes_are_no_scene(split):
    with pytest.raises(UserError, match="holds the splits test; name one of them"):
        scene_names(split.parent)
    with pytest.raises(UserError, match=r"holds 3 scenes; name one of them, such as .*b1"):
        read(split)
    with pytest.raises(UserError, match="There is no"):
        read(split / "unknown")


@pytest.mark.parametrize("text", [None, "{", "[]", '{"b1": 3}', r'{"b1": "\u0000.torch"}', r'{"\ud800": "000000.torch"}'])
def test_chunks_need_a_good_index(split, text):
    (split / "index.json").unlink()
    if text is not None:
        (split / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        scene_names(split)


def broken_examples():
    good = example("k")
    yield "cameras", good | {"cameras": good["cameras"][:3]}
    yield "cameras", {key: value for key, value in good.items() if key != "images"}
    yield "18 finite numbers", good | {"cameras": good["cameras"][:, :16]}
    yield "18 finite numbers", good | {"cameras": good["cameras"] * torch.nan}
    yield "no rotation", good | {"cameras": good["cameras"] * 0}
    yield "no frames", good | {"cameras": good["cameras"][:0], "images": []}
    yield "no scene 'k'", good | {"key": "other"}
    yield "Cannot read the chunk", {"images": []}


@pytest.mark.parametrize(("message", "wrong"), list(broken_examples()))
def test_malformed_examples_are_explained(tmp_path, message, wrong):
    split = write_split(tmp_path / "train", [[example("k")]])
    torch.save([wrong], split / "000000.torch")
    with pytest.raises(UserError, match=message):
        read(split / "k")


def test_a_damaged_picture_costs_only_itself(tmp_path):
    damaged = example("k")
    damaged["images"][0] = torch.zeros(50, dtype=torch.uint8)
    damaged["images"][2] = damaged["images"][2][:400]
    split = write_split(tmp_path / "train", [[damaged]])
    for i in (0, 2):
        with pytest.raises(ImageError, match=f"frame_0000{i} of 'k'"):
            read(split / "k").photos[i].load()
    with pytest.warns(UserWarning, match="left out"):
        views = load_views(split / "k", ViewsSettings())
    assert (views.names, views.protocol) == (("frame_00001", "frame_00003"), "posed")


def test_a_chunk_that_is_fetched_again_is_read_again(split):
    assert len(read(split / "c3").photos) == 4
    torch.save([example("c3", frames=5)], split / "000001.torch")
    assert len(read(split / "c3").photos) == 5


def test_files_of_a_scene_in_a_chunk_are_the_chunk_under_the_scenes_name(split):
    assert files_of(split / "b1") == {"000000.torch/b1": split / "000000.torch"}
    assert files_of(split / "a2") == {"000000.torch/a2": split / "000000.torch"}
    assert files_of(split / "unknown") == {}


@pytest.mark.parametrize("layout", ["beside", "cameras and frames"])
def test_camera_files_beside_frames(tmp_path, layout):
    frames, cameras = (tmp_path, tmp_path) if layout == "beside" else (tmp_path / "frames", tmp_path / "cameras")
    write_frames(frames / "k1", cameras / "k1.txt")
    write_frames(frames / "k2", cameras / "k2.txt", times=(9, 10, 11, 12), missing=(10,))
    assert scene_names(tmp_path) == [("k1", frames / "k1"), ("k2", frames / "k2")]
    assert detect(frames / "k1").name == "realestate10k"
    assert sorted(files_of(frames / "k1")) == ["100.png", "200.png", "300.png", "k1.txt"]
    photos = read(frames / "k1").photos
    assert [p.name for p in photos] == ["100", "200", "300"]
    torch.testing.assert_close(photos[1].intrinsics, torch.tensor([[16.0, 0, 16], [0, 21.6, 9.6], [0, 0, 1]]))
    with pytest.warns(UserWarning, match="1 of 4 frames.*such as 10"):
        photos = read(frames / "k2").photos
    assert [p.name for p in photos] == ["9", "11", "12"]
    assert [p.cam_to_world[0, 3].item() for p in photos] == [0, 2, 3]
    assert torch.equal(photos[1].load(), read_image(frames / "k2" / "11.png"))


def test_a_text_scene_in_the_current_folder(tmp_path, monkeypatch):
    write_frames(tmp_path / "k1", tmp_path / "k1.txt")
    monkeypatch.chdir(tmp_path / "k1")
    assert read(Path()).name == "k1"


def test_broken_camera_files(tmp_path):
    write_frames(tmp_path / "k", tmp_path / "k.txt", missing=(100, 200, 300))
    with pytest.raises(UserError, match="has no frames"):
        read(tmp_path / "k")
    write_frames(tmp_path / "k", tmp_path / "k.txt")
    text = (tmp_path / "k.txt").read_text()
    (tmp_path / "k.txt").write_text(text[:-30])
    with pytest.raises(UserError, match=r"k\.txt should hold"):
        read(tmp_path / "k")


def test_notes_beside_photos_are_no_cameras(tmp_path):
    write_png(tmp_path / "place" / "a.png", torch.zeros(8, 8, 3))
    (tmp_path / "place.txt").write_text("https://example.org is where\nI was")
    assert detect(tmp_path / "place").name == "photos"


def test_an_index_of_pixelsplat_becomes_splits(tmp_path):
    entries = {
        "a": {"context": [58, 133], "target": [84, 102, 133], "overlap": 0.4},
        "b": None,
        "c": [{"context": [9, 2], "target": [3]}],
        "d": [],
    }
    (tmp_path / "index.json").write_text(json.dumps(entries))
    assert read_index(tmp_path / "index.json") == {"a": ((58, 133), (84, 102, 133)), "c": ((9, 2), (3,))}


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}', '{"a": {"context": [1]}}', '{"a": {"context": ["x"], "target": []}}',
                                  '{"a": [{"context": [1], "target": [2]}, {"context": [1], "target": [3]}]}'])  # fmt: skip
def test_other_indices_are_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json"):
        read_index(tmp_path / "index.json")


def test_published_indices(real_data):
    folder = real_data / "eval_index"
    index = read_index(folder / "pixelsplat_re10k.json")
    assert index["5aca87f95a9412c6"] == ((58, 133), (84, 102, 129))
    assert all(len(split.inputs) == 2 and len(split.targets) == 3 for split in index.values())
    assert len(read_index(folder / "mvsplat360_dl3dv_ctx_5v.json")) == 140
