"""The store: values are read back unchanged, writes are atomic, and every kind of damage is detected."""

import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass

import pytest
import torch
import zarr

from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.types import Cameras, Clip, Condition, Frames, Gaussians, PointCloud, Pointmaps, Tracks, Views, ViewScore

H, W = 40, 60


def cameras(n):
    return Cameras(torch.rand(n, 3, 3), torch.eye(4).repeat(n, 1, 1), W, H)


def colours(*shape):
    """Colours that 8 bits hold exactly."""
    return torch.randint(0, 256, shape) / 255


def cloud(n):
    return PointCloud(torch.randn(n, 3), colours(n, 3), torch.rand(n))


def tracks(n):
    return Tracks(torch.randint(0, 2, (n,)), torch.randint(0, 5, (n,)), torch.rand(n, 2))


def examples():
    torch.manual_seed(0)
    masks = torch.rand(3, H, W) > 0.5
    focal = torch.tensor([1.0, float("nan"), 3.0])
    is_target = torch.tensor([False, False, True])
    return {
        "views": Views(colours(3, H, W, 3), masks, ("a", "b c", "ü/d"), is_target, cameras(3), focal, "posed"),
        "unposed": Views(colours(3, H, W, 3), masks, ("a", "b", "c"), is_target, None, focal),
        "pointmaps": Pointmaps(torch.randn(2, H, W, 3), torch.rand(2, H, W), cameras(2), cloud(5)),
        "tracked": Pointmaps(torch.randn(2, H, W, 3), torch.rand(2, H, W), cameras(2), cloud(5), tracks=tracks(7)),
        "empty": Pointmaps(torch.randn(2, H, W, 3), torch.rand(2, H, W), cameras(2), cloud(0)),
        "condition": Condition(cameras(2), colours(2, H, W, 3), torch.zeros(2, H, W), torch.ones(2, 2).long(), torch.rand(2)),
        "frames": Frames(colours(2, H, W, 3), cameras(2), torch.rand(2, H, W), torch.tensor([True, False])),
        "gaussians": Gaussians(torch.randn(7, 3), torch.randn(7, 4), torch.randn(7, 3), torch.randn(7), torch.randn(7, 9, 3)),
        "cloud": cloud(100),
        "rows": (ViewScore("a", 1.5, 0.5, None, False, True), ViewScore("b", 2.5, 0.25, None, True, False)),
        "kept": torch.arange(4),
        "clip": clip(),
        "photos": Clip(colours(3, H, W, 3), cameras(3), second=1),
    }


def clip():
    """All that a training clip may hold, in numbers that half precision and 8 bits hold."""
    alone = colours(3, 2, H, W, 3), colours(3, 2, H, W)
    points = torch.randn(9, 3).half().float(), colours(9, 3)
    return Clip(colours(3, H, W, 3), cameras(3), colours(3, H, W, 3), colours(3, H, W), *alone, *points)


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype
        assert torch.equal(torch.nan_to_num(a.float(), -1.0), torch.nan_to_num(b.float(), -1.0))
    elif is_dataclass(a):
        assert type(a) is type(b)
        for field in fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    else:
        assert a == b


@pytest.fixture
def published(tmp_path):
    return store.publish(tmp_path, "views", "key", {"settings": {}}, examples(), {"seconds": 1.0})


def test_every_type_comes_back_as_it_was(tmp_path, published):
    for name, value in examples().items():
        assert_same(value, store.load(published.folder(tmp_path), name))


def test_training_clips_are_small_on_disk(tmp_path):
    store.save(tmp_path, "clip", clip())
    arrays = dict(zarr.open_group(tmp_path / "clip.zarr", mode="r").arrays())
    assert {str(array.dtype) for name, array in arrays.items()} == {"uint8", "float16"}
    assert arrays["points"].dtype == "float16"


def test_same_content_has_the_same_digest_whatever_the_key_and_the_measurements(tmp_path, published):
    again = store.publish(tmp_path, "video", "other", {"settings": {"x": 1}}, examples(), {"seconds": 2.0})
    assert again.digest == published.digest
    assert store.find(tmp_path, "views", "key") == published


@pytest.mark.parametrize(("side", "frames_a_chunk"), [(16, 3), (160, 1)])
def test_arrays_are_one_file_each(tmp_path, side, frames_a_chunk):
    """Of large ones a frame can be read by itself."""
    store.save(tmp_path, "x", torch.rand(3, side, side, 3))
    array = dict(zarr.open_group(tmp_path / "x.zarr", mode="r").arrays())["value"]
    assert array.chunks == (frames_a_chunk, side, side, 3)
    assert len([p for p in (tmp_path / "x.zarr" / "value" / "c").rglob("*") if p.is_file()]) == 1


def test_zarr_alone_sees_a_flipped_bit(tmp_path):
    """By the crc32c inside the array, independent of the manifest."""
    value = torch.randn(3, H, W, 3)
    store.save(tmp_path, "x", value)
    (shard,) = [p for p in (tmp_path / "x.zarr" / "value" / "c").rglob("*") if p.is_file()]
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    with pytest.raises(Exception, match=r"(?i)checksum|crc"):
        store.load(tmp_path, "x")


@pytest.mark.parametrize("damage", ["flipped", "missing", "surplus", "manifest", "no manifest"])
def test_damage_is_found(tmp_path, published, damage):
    folder = published.folder(tmp_path)
    victim = folder / "cloud.parquet"
    if damage == "flipped":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "missing":
        (folder / "views.zarr" / "images" / "c" / "0" / "0" / "0" / "0").unlink()
    elif damage == "surplus":
        (folder / "views.zarr" / "more").write_bytes(b"")
    elif damage == "manifest":
        (folder / store.MANIFEST).write_text((folder / store.MANIFEST).read_text()[:-30])
    else:
        (folder / store.MANIFEST).unlink()
    with pytest.raises(store.DamagedEntry):
        store.find(tmp_path, "views", "key")


def test_measurements_are_outside_of_what_is_checked(tmp_path, published):
    (published.folder(tmp_path) / store.MEASURED).write_text("{}")
    assert store.find(tmp_path, "views", "key") == published


def test_first_of_two_writers_wins(tmp_path):
    first = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"first"}, {})
    second = store.publish(tmp_path, "views", "key", {}, {"a.txt": b"second"}, {})
    assert second == first
    assert (first.folder(tmp_path) / "a.txt").read_bytes() == b"first"
    assert not list((tmp_path / ".tmp").iterdir())


def test_full_disk_is_one_sentence_and_loses_nothing(tmp_path, published, monkeypatch):
    def full(path):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="is full; free some space"):
        store.publish(tmp_path, "video", "k2", {}, {"a.txt": b"whole", "b.txt": full}, {})
    assert store.find(tmp_path, "video", "k2") is None
    assert store.find(tmp_path, "views", "key") == published
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.slow
def test_write_that_the_kernel_refuses_is_reported_the_same_way(tmp_path):
    """Without monkeypatching: a real file size limit, in a separate process."""
    code = f"""
import resource, torch
from pathlib import Path
from reconx_core.cache import store
from reconx_core.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.publish(Path({str(tmp_path)!r}), "views", "key", {{}}, {{"x": torch.randn(100, 100, 100)}}, {{}})
except UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert "is full; free some space" in done.stdout, done.stderr
    assert store.find(tmp_path, "views", "key") is None
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a tiny file system")
def test_really_full_file_system(tmp_path):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        kept = store.publish(tmp_path, "views", "small", {}, {"x": torch.randn(100)}, {})
        with pytest.raises(UserError, match="is full"):
            store.publish(tmp_path, "views", "large", {}, {"x": torch.randn(100, 100, 100)}, {})
        assert store.find(tmp_path, "views", "small") == kept
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_abandoned_temporary_folders_are_cleared_but_not_those_of_the_living(tmp_path):
    mine = store._temporary(tmp_path)
    mine.mkdir(parents=True)
    dead = mine.with_name(mine.name.replace(str(os.getpid()), str(unused_pid())))
    dead.mkdir()
    assert store.clear_abandoned(tmp_path) == 1
    assert (mine.exists(), dead.exists()) == (True, False)


def test_temporary_folders_of_other_machines_are_left_alone_until_nobody_can_be_writing(tmp_path, monkeypatch):
    monkeypatch.setattr(store.socket, "gethostname", lambda: "gpu")
    host, dead = store._machine(), unused_pid()  # of a machine whose name begins like another's
    names = [f"{host}-{dead}-{dead}-0123456789ab", f"{host}-node-{dead}-0123456789ab", f"{host}.4026532000-{dead}-0123456789ab"]
    folders = [tmp_path / ".tmp" / name for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    os.utime(folders[0], (0, 0))
    assert store.clear_abandoned(tmp_path) == 0
    assert store.clear_abandoned(tmp_path, unwatched=3600) == 1
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_key_depends_on_every_part():
    base = {"stage": "views", "settings": {"a": 1}, "parents": {}}
    keys = {store.artifact_key(**base)} | {
        store.artifact_key(**{**base, **change})
        for change in ({"stage": "video"}, {"settings": {"a": 2}}, {"parents": {"p": "d"}})
    }
    assert len(keys) == 4
    assert store.artifact_key(**base) == store.artifact_key(**json.loads(json.dumps(base)))


def unused_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
