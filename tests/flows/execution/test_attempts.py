"""How a stage is tried: errors that pass by themselves, a GPU that is too small, and a time limit."""

import errno
import threading
import time
from collections import Counter

import pytest
import torch
from standins import write_folder

from flows.execution import attempts
from flows.execution import flow as pipeline
from flows.execution.attempts import StageOverran, passes_by_itself, with_memory, within
from flows.execution.ending import left_behind
from reconx_core import splats, views
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk
from reconx_core.weights import loaded

FULL = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.6 GiB.")


@pytest.fixture
def networks(monkeypatch):
    """No networks are kept at first; returns a function that makes one that is."""
    monkeypatch.setattr(loaded, "_kept", [])
    monkeypatch.setattr(attempts, "_short", set())

    def keep(section):
        load = loaded.keep_loaded(section)(lambda name: [name])
        load("weights")
        return load

    return keep


def explained(number):
    try:
        raise explain_disk(OSError(number, "x"), "out") from OSError(number, "x")
    except UserError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EIO, "x"), True),
        (OSError(errno.ESTALE, "x"), True),
        (TimeoutError("the server"), True),
        (ConnectionResetError(), True),
        (explained(errno.EIO), True),
        (explained(errno.ENOSPC), False),
        (OSError(errno.ENOENT, "x"), False),
        (PermissionError(errno.EACCES, "x"), False),
        (UserError("Take another photo."), False),
        (ZeroDivisionError(), False),
        (StageOverran("too long"), False),
    ],
)
def test_what_passes_by_itself(error, expected):
    assert passes_by_itself(error) is expected


def failing(times, error, whole, calls):
    def run(*arguments):
        calls.append(threading.current_thread().name)
        if len(calls) <= times:
            raise error
        return whole(*arguments)

    return run


def test_a_read_error_is_tried_again_and_a_users_mistake_is_not(reconx, tiny, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.run_stage, "retry_delay_seconds", 0)
    reading, wrong = [], []
    monkeypatch.setattr(
        views, "views_with_depth", failing(2, OSError(errno.EIO, "Input/output error"), views.views_with_depth, reading)
    )
    monkeypatch.setattr(splats, "fit_splats", failing(1, UserError("This is wrong."), splats.fit_splats, wrong))
    outcome = reconx("evaluate", photos, "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert (outcome.code, len(reading), len(wrong)) == (1, 3, 1)
    assert outcome.out.count("views of garden is tried again in 10 s: OSError: [Errno 5] Input/output error") == 2
    assert outcome.out.count("This is wrong.") == 1


def test_it_is_given_up_after_three_times(reconx, tiny, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.run_stage, "retry_delay_seconds", 0)
    calls = []
    monkeypatch.setattr(
        views, "views_with_depth", failing(9, OSError(errno.ESTALE, "Stale file handle"), views.views_with_depth, calls)
    )
    outcome = reconx("evaluate", photos, "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert (outcome.code, len(calls)) == (1, 3)
    assert outcome.out.count("garden failed in views: OSError: [Errno 116] Stale file handle") == 1


def test_other_networks_are_unloaded_for_a_stage_that_needs_their_memory(networks):
    video, geometry = networks("video"), networks("pointcloud")
    calls = []

    def work():
        calls.append((video.cache_info().currsize, geometry.cache_info().currsize))
        if video.cache_info().currsize:
            raise FULL
        return "frames"

    assert with_memory("confidence", work) == "frames"
    video("weights")
    assert with_memory("confidence", work) == "frames"
    assert calls == [(1, 1), (0, 1), (0, 1)], "its own network stays, and from the second time on nothing is tried in vain"


@pytest.mark.parametrize("stage", ["video", "splats", "views"])
def test_a_gpu_that_is_too_small_is_one_sentence_with_a_setting_that_helps(networks, stage):
    networks("pointcloud")
    calls = []

    def work():
        calls.append(1)
        raise FULL

    with pytest.raises(UserError, match=r"tried to allocate 2.00 GiB\); lower it by --vram GB, or by -S ") as raised:
        with_memory(stage, work)
    assert str(raised.value).startswith(f"{stage} needs more memory than the GPU has left")
    assert {"video": "video.offload=true", "splats": "splats.max_gaussians", "views": "views.size"}[stage] in str(raised.value)
    assert len(calls) == 2


def test_the_settings_that_lower_memory_exist():
    import re

    from reconx_core.settings import Settings

    for name in re.findall(r"(\w+)\.(\w+)", " ".join(attempts._LOWER.values())):
        assert name[1] in type(getattr(Settings(), name[0])).model_fields, name


def test_within_its_time_a_stage_is_what_it_is():
    def fail():
        raise TimeoutError("the stage's own")

    assert within(5.0, "views", lambda: "frames") == "frames"
    with pytest.raises(TimeoutError, match="own"):
        within(5.0, "views", fail)
    with pytest.raises(StageOverran, match=r"views took longer than 0\.1 s, which --stage-timeout allows"):
        within(0.1, "views", lambda: time.sleep(2))
    assert left_behind()


def test_a_stage_that_takes_too_long_fails_and_the_other_scenes_go_on(reconx, tiny, tmp_path, monkeypatch):
    for name in ("attic", "den"):
        write_folder(tmp_path / "data" / name)
    whole, done, calls = splats.fit_splats, threading.Event(), []

    def slow(*arguments):
        calls.append(1)
        if len(calls) == 1:
            done.wait(60)
        return whole(*arguments)

    monkeypatch.setattr(splats, "fit_splats", slow)
    limited = lambda seconds, stage, work: within(seconds if stage == "splats" else None, stage, work)  # noqa: E731
    monkeypatch.setattr(pipeline, "within", limited)  # on a busy machine any stage may take three seconds
    command = ("evaluate", tmp_path / "data", "-o", tmp_path / "out", "--store", tmp_path / "store")
    outcome = reconx(*command, "--stage-timeout", "3s")
    done.set()
    assert outcome.code == 1
    assert outcome.out.count("attic failed in splats: splats took longer than 3.0 s, which --stage-timeout allows.") == 1
    assert "den failed" not in outcome.out
    assert (tmp_path / "out" / "den" / "scene.ply").exists()
    assert Counter(tiny())["metrics"] == 1
