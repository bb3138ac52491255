"""`evaluate --dask` with real worker processes, stand-in stages, and kill -9 of a worker and of the run."""

import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import standins
from distributed.comm import CommClosedError
from processes import alive, wait_until
from rich.console import Console
from standins import artifact_bytes, write_folder

from flows.execution import workers as crew
from flows.execution.plan import ScenePlan
from reconx_core.errors import UserError
from reconx_core.settings import STAGES, Settings

SCRIPT = Path(standins.__file__)
QUICK = ["pointcloud.planes=32", "pointcloud.stereo_size=128", "pointcloud.rounds=1", "condition.frames_per_pair=1"]
SCENES = ("attic", "broken", "cellar")


@dataclass
class Workers:
    """Of a scheduler of their own: two, one of which declares a GPU."""

    address: str
    log: Path  # a line per computed stage, after gpu: or cpu:
    victim: Path  # the pid of the first worker to reach `confidence`, which waits there

    def computed(self):
        lines = self.log.read_text().split() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines


@pytest.fixture(scope="module")
def workers(server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dask")
    log, victim, file = folder / "log", folder / "victim", folder / "scheduler.json"
    environment = {**os.environ, "RECONX_TEST_LOG": str(log), "RECONX_TEST_VICTIM": f"confidence:{victim}"}
    dask = [sys.executable, "-m", "dask"]
    where = [
        "--scheduler-file",
        str(file),
        "--preload",
        str(SCRIPT),
        "--nthreads",
        "1",
        "--no-dashboard",
        "--memory-limit",
        "0",
    ]
    where += ["--local-directory", str(folder)]
    commands = {
        "": [*dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file), "--no-dashboard"],
        "cpu:": [*dask, "worker", *where],
        "gpu:": [*dask, "worker", *where, "--resources", "GPU=1"],
    }
    with open(folder / "printed", "w") as printed:
        started = [
            subprocess.Popen(command, env={**environment, "RECONX_TEST_WORKER": name}, stdout=printed, stderr=printed)
            for name, command in commands.items()
        ]
    wait_until(file.exists, started[0])
    address = json.loads(file.read_text())["address"]
    wait_for_workers(address, 2)
    yield Workers(address, log, victim)
    for process in started:  # a nanny's worker ends with it
        process.kill()
        process.wait()


def wait_for_workers(address, count):
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(count, timeout=120)


@pytest.fixture
def data(tmp_path):
    for name in SCENES:
        write_folder(tmp_path / "data" / name)
    return tmp_path / "data"


def test_worker_killed_in_the_middle_and_a_broken_scene_cost_nothing_else(workers, reconx, tiny, data, tmp_path):
    """The artifacts are those of an undisturbed run in one process; only what the killed worker was at is done again."""
    killer = threading.Thread(target=kill_when_named, args=(workers.victim,))
    killer.start()
    outcome = reconx("evaluate", data, "-o", tmp_path / "out", "--store", tmp_path / "store", "--dask", workers.address)
    killer.join()
    printed = " ".join(outcome.out.split())
    assert (outcome.code, outcome.err) == (1, "")
    assert printed.count("broken failed in views: This scene is broken; take another one.") == 1  # at once
    assert "1 of 3 scenes failed (why is said above and in scores.csv): broken" in printed
    assert "is gone; what it was doing is done again" in printed
    lines = workers.computed()
    computed = Counter(line.partition(":")[2] for line in lines)
    # What failed is in no store: if it failed in the worker that was killed, it may have been tried again.
    assert computed.pop("views") in (3, 4)
    assert computed == dict.fromkeys(STAGES[1:], 2) | {"confidence": 3}
    assert tiny() == [], "the head computes nothing"
    on_cpu = {line.removeprefix("cpu:") for line in lines if line.startswith("cpu:")}
    assert not {"video", "splats", "metrics"} & on_cpu, "these use the GPU, which only one worker declares"
    # Which of the other stages it gets is the scheduler's choice, and differs from run to run.
    assert on_cpu, "the worker that declares no GPU works too"

    calm = reconx("evaluate", data, "-o", tmp_path / "calm", "--store", tmp_path / "calm-store")
    assert calm.code == 1
    assert artifact_bytes(tmp_path / "store") == artifact_bytes(tmp_path / "calm-store")
    assert list((tmp_path / "store" / ".tmp").iterdir()) == []
    for name in set(SCENES) - {"broken"}:
        assert (tmp_path / "out" / name / "scene.ply").read_bytes() == (tmp_path / "calm" / name / "scene.ply").read_bytes()


def test_a_dataset_of_which_nothing_can_be_used_is_a_mistake_there_too(workers, reconx, tiny, tmp_path):
    for name in ("broken_a", "broken_b"):
        write_folder(tmp_path / "data" / name)
    command = ["evaluate", tmp_path / "data", "--store", tmp_path / "store", "-o", tmp_path / "out"]
    remote = reconx(*command, "--dask", workers.address)
    assert remote.code == 2
    assert remote.err.startswith("reconx: Nothing was made: none of the 2 scenes can be used")
    here = reconx(*command)
    assert (here.code, here.err) == (remote.code, remote.err)
    workers.computed()


def kill_when_named(file):
    wait_until(lambda: file.exists() and file.read_text(), seconds=240)
    psutil.Process(int(file.read_text())).kill()


@pytest.mark.slow  # in threads: test_attempts.py
def test_worker_with_a_stage_that_takes_too_long_is_ended_and_the_other_scenes_go_on(workers, reconx, tiny, tmp_path):
    for name in ("attic", "stuck"):
        write_folder(tmp_path / "data" / name)
    workers.victim.touch()  # nobody waits to be killed
    before = processes(workers.address)
    command = ("evaluate", tmp_path / "data", "-o", tmp_path / "out", "--store", tmp_path / "store", "--dask", workers.address)
    outcome = reconx(*command, "--stage-timeout", "20s")
    printed = " ".join(outcome.out.split())
    assert (outcome.code, outcome.err) == (1, "")
    assert printed.count("stuck failed in views: views took longer than 20.0 s, which --stage-timeout allows.") == 1
    assert "is gone" not in printed, "it was ended, and is not missed"
    assert (tmp_path / "out" / "attic" / "scene.ply").exists()
    wait_for_workers(workers.address, 2)
    assert len(processes(workers.address) & before) == 1, "one of the two is another process now"
    assert Counter(line.partition(":")[2] for line in workers.computed()) == dict.fromkeys(STAGES, 1) | {"views": 2}


def processes(address):
    from distributed import Client

    with Client(address, set_as_default=False) as client:
        return set(client.run(os.getpid).values())


def test_training_clips_are_made_by_the_workers(workers, tiny, tmp_path):
    from flows.training.clips import Workshop, draw_clips, make_clips
    from reconx_core.training.settings import ClipSource, TrainSettings

    source = ClipSource(path="procedural:hall?seed=1..3&views=3&targets=1", frames=4)
    wanted, kept = draw_clips([source], TrainSettings(crop=(16, 16)), "frames"), []
    loaders = make_clips(wanted, Workshop(tmp_path / "store", tmp_path, Console(quiet=True), dask=workers.address), kept)
    assert len(loaders) == len({reference.key for reference in kept}) == 3
    assert [line.partition(":")[2] for line in workers.computed()] == ["views"] * 3
    assert tiny() == [], "the head computes nothing"
    assert all(loader().images.shape == (4, standins.HEIGHT, standins.WIDTH, 3) for loader in loaders)


@pytest.mark.slow
def test_killed_run_leaves_no_process_and_the_next_goes_on(workers, reconx, tiny, data, tmp_path):
    log, only = tmp_path / "log", ("--scenes", "attic,cellar")
    workers.victim.touch()  # of `workers` nobody waits to be killed
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}  # with a server of its own
    environment |= {"RECONX_TEST_LOG": str(log), "RECONX_TEST_PAUSE": "confidence"}
    command = [sys.executable, str(SCRIPT), "evaluate", str(data), *only, "-o", str(tmp_path / "out")]
    command += ["--store", str(tmp_path / "store"), "--dask", "local", "--workers", "2"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: log.exists() and log.read_text().split().count("confidence") == 2, process, seconds=240)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3, "a server and two workers"
    process.kill()
    process.wait()
    wait_until(lambda: not any(alive(child.pid) for child in children))

    again = reconx("evaluate", data, *only, "-o", tmp_path / "out", "--store", tmp_path / "store", "--dask", workers.address)
    assert again.code == 0, again.out + again.err
    computed = Counter(line.partition(":")[2] for line in workers.computed())
    assert computed == {"confidence": 2, "splats": 2, "metrics": 2}
    calm = reconx("evaluate", data, *only, "-o", tmp_path / "calm", "--store", tmp_path / "calm-store")
    assert calm.code == 0
    assert artifact_bytes(tmp_path / "store") == artifact_bytes(tmp_path / "calm-store")


@pytest.mark.slow  # processes that start twice
def test_a_worker_whose_nanny_has_given_up_is_replaced(monkeypatch):
    from distributed import Client

    from flows.execution import dask_cluster
    from flows.execution.workers import Workers

    monkeypatch.setattr(dask_cluster, "REVIVE_SECONDS", 2)
    with dask_cluster._local(Workers(1, "local")) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        crew, (nanny,) = dask_cluster.Crew(cluster), cluster.workers.values()
        crew.revive()
        assert not crew.dead
        first = nanny.process.pid
        cluster.sync(nanny.close)  # as it does where a process cannot be started again

        def works():
            crew.revive()
            return client.scheduler_info(n_workers=-1)["workers"]

        wait_until(works)
        assert cluster.workers["cpu-0"] is not nanny
        assert client.submit(os.getpid).result(30) not in (first, os.getpid())


@pytest.mark.slow
def test_models_stay_loaded_between_scenes(server, tmp_path):
    """The real stages up to the video, on two scenes in one worker process, which reads the video model once."""
    from distributed import Client, LocalCluster

    from flows.evaluate import find_scenes
    from flows.execution.run import resolve_settings, run_stages
    from flows.execution.workers import Workers
    from tasks.execute import stages_before

    settings, scenes = resolve_settings(None, QUICK), find_scenes("procedural:room?seed=0..1&views=3&width=192&height=144")
    plans = [ScenePlan(name, source, settings) for name, source in scenes]
    one = {"n_workers": 1, "threads_per_worker": 1, "memory_limit": 0, "dashboard_address": None}
    with LocalCluster(**one) as cluster, Client(cluster, set_as_default=False) as client:
        runs = run_stages(
            lambda: plans, tmp_path, Console(), stages=stages_before("video"), workers=Workers(dask=cluster.scheduler_address)
        )
        assert [run.error for run in runs] == [None, None]
        (uses,) = client.run(uses_of_the_video_model).values()
    assert uses == {"read": 1, "found in memory": 1}


def uses_of_the_video_model():
    from reconx_core.video.backends.learned import load_pipeline

    return {"read": load_pipeline.cache_info().misses, "found in memory": load_pipeline.cache_info().hits}


def test_no_scheduler_is_one_sentence(reconx, tiny, data, tmp_path, monkeypatch):
    monkeypatch.setattr(crew, "LISTEN_SECONDS", 0.5)
    outcome = reconx("evaluate", data, "-o", tmp_path / "out", "--store", tmp_path / "store", "--dask", "tcp://127.0.0.1:9")
    assert outcome.code == 2
    assert outcome.err.startswith("reconx: Nothing listens at tcp://127.0.0.1:9")
    assert outcome.err.count("\n") == 1
    assert tiny() == []
    assert not (tmp_path / "out").exists()


def test_what_speaks_no_dask_is_no_scheduler():
    """A client of Dask's would raise a MemoryError there, and be closed for half a minute."""
    from flows.execution.dask_cluster import _connect

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=lambda: listener.accept()[0].sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), daemon=True).start()
        before = time.monotonic()
        with pytest.raises(UserError, match=f"No Dask scheduler answers at tcp://127.0.0.1:{listener.getsockname()[1]} "):
            _connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    assert time.monotonic() - before < 10


def test_worker_that_dies_while_it_is_prepared_costs_another_try(monkeypatch):
    from flows.execution import dask_cluster as cluster

    answers = [CommClosedError("in <TCP>"), CommClosedError("in <TCP>"), None]

    def register(preparation):
        if (answer := answers.pop(0)) is not None:
            raise answer

    client = SimpleNamespace(register_plugin=register, wait_for_workers=lambda count, timeout: None)
    cluster._register(client, None)
    assert answers == []
    answers[:] = 4 * [CommClosedError("in <TCP>")]
    with pytest.raises(UserError, match="workers die while they are prepared"):
        cluster._register(client, None)


def test_workers_of_which_one_dies_while_they_start_are_started_again(monkeypatch):
    from flows.execution import dask_cluster as cluster

    answers = [RuntimeError("Nanny failed to start."), "started"]

    def start(**_):
        if isinstance(answer := answers.pop(0), Exception):
            raise answer
        return answer

    monkeypatch.setattr(cluster, "SpecCluster", start)
    assert cluster._local(crew.Workers(2, "local")) == "started"
    answers[:] = 4 * [RuntimeError("Nanny failed to start.")]
    answers[-1].__cause__ = OSError(24, "Too many open files")  # as Dask raises it
    with pytest.raises(UserError, match=r"do not start \(OSError: \[Errno 24\] Too many open files\)"):
        cluster._local(crew.Workers(2, "local"))


def test_dask_that_is_not_installed(reconx, data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    outcome = reconx("evaluate", data, "-o", tmp_path / "out", "--store", tmp_path / "store", "--dask", "local")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "pip install 'reconx[dask]'" in outcome.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token": Path("/nowhere/.tmp/token")}, "does not see the store /nowhere"),
        ({"environment": {"PREFECT_API_URL": "http://127.0.0.1:9/api"}}, "cannot reach the Prefect server"),
        ({"codes": {"splats": "another"}}, "has other code of splats"),
        ({"versions": {"torch": "0.1"}}, r"has torch \S+ instead of 0\.1"),
    ],
)
def test_worker_that_cannot_do_its_part_refuses(server, tmp_path, monkeypatch, change, message):
    from flows.execution import dask_cluster as cluster

    monkeypatch.setattr(cluster, "route_warnings", lambda say: None)
    monkeypatch.setenv("PREFECT_API_URL", server)  # so that what the worker sets here is undone
    monkeypatch.setattr(cluster, "send_events_to", lambda url: None)
    fit = {"token": tmp_path, "environment": {"PREFECT_API_URL": server}, "codes": cluster._codes(STAGES)}
    fit |= {"verified_from": 0.0, "versions": cluster.versions_of(STAGES)}
    worker, messenger = SimpleNamespace(address="tcp://10.0.0.7:40000"), cluster.Messenger("topic")
    cluster.Preparation("name", **fit, messenger=messenger).setup(worker)
    with pytest.raises(UserError, match=message):
        cluster.Preparation("name", **fit | change, messenger=messenger).setup(worker)


def test_process_with_other_code_looks_up_but_does_not_compute(tmp_path):
    from tasks.execute import Job, Monitor, execute

    job = Job("views", "attic", "procedural:room", "", Settings(), tmp_path, Monitor(), code="of the run")
    with pytest.raises(UserError, match="has other code of views than this run began with"):
        execute(job, {})


def test_lost_scheduler_ends_the_run_and_a_scene_that_failed_does_not():
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    from flows.execution.dask_cluster import Cluster, Messenger

    cluster = Cluster("tcp://10.0.0.1:8786", None, Messenger("topic"), frozenset())
    cluster.require_scheduler({"stage": "views"})
    cluster.require_scheduler(KilledWorker("run_stage", None, 3))
    with pytest.raises(UserError, match=r"tcp://10.0.0.1:8786 is gone; .* run the same command again"):
        cluster.require_scheduler(FutureCancelledError("run_stage", "scheduler-connection-lost"))


class Awkward(Exception):
    """One that pickle cannot make again."""

    def __init__(self, *, what):
        super().__init__(f"not {what}")


def test_settings_and_client_are_kept_from_task_to_task(server):
    """Prefect would read the one and connect the other anew, at 150 ms of CPU a task."""
    from uuid import uuid4

    import cloudpickle
    from prefect import get_client, task
    from prefect.context import SettingsContext, serialize_context

    from flows.execution.lean_tasks import run_kept

    @task
    def look(number):
        client = get_client(sync_client=True)
        assert client.api_healthcheck() is None
        return SettingsContext.get().settings, client, number

    come, seen = serialize_context(), {}
    # By number and without pickle, which neither of the two can go through.
    keep = look.with_options(name="keep", persist_result=False)
    for number, level in ((1, "INFO"), (2, "INFO"), (3, "ERROR")):
        come["settings_context"]["settings"].setdefault("logging", {})["level"] = level
        shared, own = cloudpickle.dumps(come), cloudpickle.dumps((keep, {"number": number}))
        seen[number] = run_kept(shared, own, uuid4()).result()
    assert [found[2] for found in seen.values()] == [1, 2, 3]
    assert seen[1][0] is seen[2][0]
    assert seen[1][1] is seen[2][1]
    assert seen[3][1] is not seen[1][1]
    assert (seen[3][0].logging.level, seen[3][0].api.url) == ("ERROR", server)


def test_little_is_sent_with_a_task(tmp_path):
    """What Prefect and cloudpickle cannot name they send in full: half of what a task cost the process that leads."""
    import cloudpickle

    from flows.execution import flow as pipeline

    records = pipeline.StoreRecords(root=str(tmp_path))
    stage_task = copy(pipeline.run_stage)
    stage_task.result_storage = records
    sent = cloudpickle.dumps((stage_task, pipeline.reconx))
    assert b"_make_function" not in sent
    assert len(sent) < 20_000


def test_error_that_cannot_travel_still_says_what_it_said(tmp_path, monkeypatch):
    from flows.execution import flow as pipeline
    from tasks.execute import Job, Monitor

    def fail(job, parents):
        raise Awkward(what="today")

    monkeypatch.setattr(pipeline, "execute", fail)
    job = Job("views", "attic", "procedural:room", "", Settings(), tmp_path, Monitor())
    with pytest.raises(Awkward):
        pipeline.run_stage.fn(job, {})
    with pytest.raises(pipeline.WorkerError) as raised:
        pipeline.run_stage.fn(job, {}, remote=True)
    assert raised.value.__context__ is None
    assert pipeline.describe_error(pickle.loads(pickle.dumps(raised.value))) == "Awkward: not today"


def test_task_whose_workers_all_died_is_its_scenes_error():
    from concurrent.futures import Future

    from flows.execution.flow import _outcome

    died = Future()
    died.set_exception(RuntimeError("all 4 workers died"))
    assert str(_outcome(SimpleNamespace(wrapped_future=died))) == "all 4 workers died"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {"video", "splats", "metrics"}),
        ({"pointcloud": {"backend": "dust3r"}}, {"pointcloud", "confidence", "video", "splats", "metrics"}),
        ({"pointcloud": {"backend": "da3"}}, {"pointcloud", "confidence", "video", "splats", "metrics"}),
        ({"video": {"backend": "none"}, "splats": {"backend": "cpu"}}, {"metrics"}),
    ],
)
def test_stages_that_use_a_gpu(change, expected):
    from tasks.execute import uses_gpu

    settings = Settings.model_validate(change)
    assert {stage for stage in STAGES if uses_gpu(stage, settings)} == expected
