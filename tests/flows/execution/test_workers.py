"""Who runs the stages: the options, GPUs that are counted by one function, and no more scenes on one than it has slots."""

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import standins
from standins import artifact_bytes, write_folder

from flows.execution import workers
from flows.execution.flow import Ready, Step
from flows.execution.plan import ScenePlan
from flows.execution.workers import Room, Workers, choose_workers, visible_gpus
from reconx_core import splats
from reconx_core.errors import UserError
from reconx_core.settings import STAGES, Settings
from tasks.execute import uses_gpu
from tasks.graph import Node

SCRIPT = Path(standins.__file__)


@pytest.fixture
def gpus(monkeypatch):
    return lambda *names: monkeypatch.setattr(workers, "visible_gpus", lambda: names)


def test_what_the_options_mean(gpus):
    gpus("0", "1", "2")
    assert choose_workers() == Workers()
    assert choose_workers(4) == Workers(4)
    assert choose_workers(gpus="all") == Workers(3, "local", ("0", "1", "2"))
    assert choose_workers(8, gpus="2", slots=2) == Workers(8, "local", ("0", "1"), 2)
    assert choose_workers(dask="local") == Workers(3, "local", ("0", "1", "2"))
    assert choose_workers(dask="tcp://head:8786", limit="30m") == Workers(1, "tcp://head:8786", limit=1800.0)
    gpus()
    assert choose_workers(dask="local") == Workers(1, "local")


@pytest.mark.parametrize(
    ("there", "options", "message"),
    [
        ((), {"gpus": "2"}, "--gpus 2: of GPUs that torch can use there is none here."),
        ((), {"gpus": "all"}, "--gpus all: of GPUs that torch can use there is none here."),
        (("0",), {"gpus": "2"}, "--gpus 2: of GPUs that torch can use there is only 1 here."),
        (("0",), {"gpus": "0"}, "'--gpus 0' should be a number"),
        (("0",), {"gpus": "many"}, "'--gpus many' should be a number"),
        (("0",), {"gpus": "1", "dask": "tcp://head:8786"}, "--gpus is for processes on this machine"),
        ((), {"dask": "foo"}, "'--dask foo' should be 'local', or a scheduler's address with its port"),
        ((), {"dask": "tcp://head"}, "'--dask tcp://head' should be 'local'"),
        ((), {"dask": "tcp://head:port"}, "'--dask tcp://head:port' should be 'local'"),
        ((), {"limit": "soon"}, "'--stage-timeout soon' should be a time"),
        ((), {"limit": "0m"}, "'--stage-timeout 0m' should be a time"),
    ],
)
def test_what_cannot_be_is_one_sentence(gpus, there, options, message):
    gpus(*there)
    with pytest.raises(UserError) as raised:
        choose_workers(**options)
    assert str(raised.value).startswith(message)


def test_gpus_that_are_not_there_end_the_command(reconx, tiny, photos, tmp_path, gpus):
    gpus()
    outcome = reconx("evaluate", photos, "-o", tmp_path / "out", "--store", tmp_path / "store", "--gpus", "2")
    assert (outcome.code, outcome.err) == (2, "reconx: --gpus 2: of GPUs that torch can use there is none here.\n")
    assert tiny() == []


@pytest.mark.parametrize(
    ("named", "count", "expected"),
    [(None, 2, ("0", "1")), ("3, GPU-8a", 2, ("3", "GPU-8a")), ("3,9", 1, ("3",)), ("", 0, ()), (None, 0, ())],
)
def test_gpus_are_named_as_cuda_names_them(monkeypatch, named, count, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == expected


def test_every_gpu_has_its_process_and_the_others_see_none(monkeypatch):
    from flows.execution import dask_cluster

    monkeypatch.setattr(dask_cluster, "SpecCluster", lambda workers, **_: workers)
    options = {name: spec["options"] for name, spec in dask_cluster._local(Workers(2, "local", ("4", "GPU-8a"), 3)).items()}
    assert list(options) == ["cpu-0", "cpu-1", "gpu-4", "gpu-GPU-8a"]
    for gpu in ("4", "GPU-8a"):
        about = options[f"gpu-{gpu}"]
        assert (about["env"], about["nthreads"], about["resources"]) == ({"CUDA_VISIBLE_DEVICES": gpu}, 3, {"GPU": 3})
    assert options["cpu-1"]["env"] == {"CUDA_VISIBLE_DEVICES": ""}
    assert (options["cpu-1"]["nthreads"], options["cpu-1"]["resources"]) == (1, {"CPU": 1})
    alone = dask_cluster._local(Workers(2, "local"))
    assert all("env" not in spec["options"] and "resources" not in spec["options"] for spec in alone.values())


@pytest.mark.parametrize(
    ("offered", "needs"),
    [
        ((), {"splats": None, "condition": None}),
        (("GPU",), {"splats": {"GPU": 1}, "condition": None}),
        (("GPU", "CPU"), {"splats": {"GPU": 1}, "condition": {"CPU": 1}}),
    ],
)
def test_stages_go_to_workers_that_declare_what_they_need(offered, needs):
    import dask

    from flows.execution.dask_cluster import Cluster, Messenger

    cluster = Cluster("tcp://head:8786", None, Messenger("topic"), frozenset(offered))
    for stage, expected in needs.items():
        with cluster.place(stage, Settings(), 12):
            assert dask.get_annotations().get("resources") == expected
            assert dask.get_annotations()["priority"] == -12


def test_dask_gets_little_more_than_its_workers_can_do_and_something_when_there_are_none():
    from flows.execution.dask_cluster import Cluster, Messenger

    here = [
        {"nthreads": 1, "resources": {"GPU": 1}},
        {"nthreads": 2, "resources": {"GPU": 2}},
        {"nthreads": 4, "resources": {}},
    ]
    info = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": dict(enumerate(here))})
    cluster = Cluster("tcp://head:8786", info, Messenger("topic"), frozenset({"GPU"}))
    assert cluster.room() == Room(gpu=6, others=14, together=20)
    here.clear()
    assert cluster.room() == Room(gpu=6, others=14, together=20), "it does not look all the time"
    cluster.looked -= 10
    assert cluster.room() == Room(gpu=1, others=1, together=2)


def test_workers_of_this_machine_that_do_not_come_back_end_the_run_and_others_are_waited_for():
    from flows.execution.dask_cluster import LOST_SECONDS, Cluster, Messenger

    here = {"tcp://127.0.0.1:5": {}}
    info = SimpleNamespace(scheduler_info=lambda n_workers: {"workers": here})
    cluster = Cluster("tcp://head:8786", info, Messenger("topic"), frozenset())
    cluster.seen -= LOST_SECONDS + 1
    cluster.require_workers(local=True)  # one is there
    here.clear()
    cluster.require_workers(local=True)  # not for long
    cluster.seen -= LOST_SECONDS + 1
    cluster.require_workers(local=False)
    cluster.seen -= LOST_SECONDS + 1
    with pytest.raises(UserError, match="do not start again; run the same command"):
        cluster.require_workers(local=True)


def steps(stage, *numbers):
    return [Step(f"{stage}{n}", Node(stage, 0, {}), ScenePlan(f"scene{n}", "", Settings()), {}, n) for n in numbers]


def test_earlier_scenes_first_and_a_slot_for_each_on_the_gpu():
    ready = Ready(lambda: Room(gpu=1, others=3, together=3))
    on_gpu, on_cpu = steps("splats", 0, 5), steps("views", 7, 3, 9)
    for step in (*on_cpu, *on_gpu):
        ready.add(step)
    taken = [ready.take() for _ in range(3)]
    assert [step.number for step in taken] == [0, 3, 7], "the second that uses the GPU waits"
    assert ready.take() is None
    ready.give_back(taken[0])
    assert ready.take().number == 5
    ready.give_back(taken[1])
    assert ready.take().number == 9
    ready.give_back(taken[2])
    assert ready.take() is None


@pytest.mark.parametrize(("slots", "expected"), [pytest.param(1, 1, marks=pytest.mark.slow), (2, 2)])
def test_threads_keep_to_the_slots_of_the_gpu(reconx, tiny, tmp_path, monkeypatch, slots, expected):
    """And run scenes side by side: with two slots, two are on the GPU at a time."""
    for name in ("attic", "cellar", "den"):
        write_folder(tmp_path / "data" / name)
    whole, lock, now, most = splats.fit_splats, threading.Lock(), [], []

    def count(*arguments):
        with lock:
            now.append(1)
            most.append(len(now))
        end = time.monotonic() + (10 if slots > 1 else 0.3)
        while time.monotonic() < end and max(most) < 2:
            time.sleep(0.02)
        with lock:
            now.pop()
        return whole(*arguments)

    monkeypatch.setattr(splats, "fit_splats", count)
    monkeypatch.setattr("flows.execution.flow.visible_gpus", lambda: ("0",))
    command = ("evaluate", tmp_path / "data", "-o", tmp_path / "out", "--store", tmp_path / "store")
    outcome = reconx(*command, "--workers", "3", "--gpu-slots", slots)
    assert outcome.code == 0, outcome.out
    assert max(most) == expected


@pytest.mark.slow  # three processes that import torch; what each of them is: above
def test_processes_of_two_gpus_and_one_without(server, tmp_path):
    for name in ("attic", "cellar", "den", "loft"):
        write_folder(tmp_path / "data" / name)
    log = tmp_path / "log"
    environment = {**os.environ, "RECONX_TEST_LOG": str(log), "RECONX_TEST_GPUS": "2"}
    command = [sys.executable, str(SCRIPT), "evaluate", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--store"]
    done = subprocess.run(
        [*command, str(tmp_path / "store"), "--gpus", "all", "--workers", "1"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    by_worker = Counter(tuple(line.split(":")) for line in log.read_text().split())
    on_gpu = {stage for stage in STAGES if uses_gpu(stage, Settings())}
    assert {stage for gpu, stage in by_worker if gpu != "gpu"} == on_gpu
    assert {stage for gpu, stage in by_worker if gpu == "gpu"} == set(STAGES) - on_gpu
    assert {gpu for gpu, _ in by_worker} == {"gpu", "gpu0", "gpu1"}
    del environment["RECONX_TEST_GPUS"]
    subprocess.run([*command, str(tmp_path / "calm")], env=environment, check=True, stdout=subprocess.DEVNULL)
    assert artifact_bytes(tmp_path / "store") == artifact_bytes(tmp_path / "calm")
