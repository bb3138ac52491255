"""The orchestration, with stand-in stages: what runs, what does not run again, and what a failure leaves."""

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import standins
from fork_server import Started, run
from processes import alive, children, wait_until
from standins import artifact_bytes, write_folder

from reconx_core.io.files import write_json
from reconx_core.settings import STAGES

SCRIPT = Path(standins.__file__)


def test_second_run_computes_nothing_even_into_another_folder(reconx, tiny, photos, tmp_path):
    store = tmp_path / "store"
    assert reconx("reconstruct", photos, "-o", tmp_path / "a", "--store", store).code == 0
    assert tiny() == list(STAGES)
    outcome = reconx("reconstruct", photos, "-o", tmp_path / "b", "--store", store)
    assert (outcome.code, tiny()) == (0, [])
    assert (tmp_path / "a" / "scene.ply").read_bytes() == (tmp_path / "b" / "scene.ply").read_bytes()


def test_reconstruct_leaves_everything_it_names(reconx, tiny, photos, tmp_path):
    out = tmp_path / "out"
    outcome = reconx("reconstruct", photos, "-o", out, "--store", tmp_path / "store", "-S", "splats.steps=3")
    assert outcome.code == 0
    for name in (
        "scene.ply",
        "video.mp4",
        "report.html",
        "settings.yaml",
        "cameras/transforms.json",
        "cameras/sparse/0/cameras.bin",
    ):
        assert (out / name).stat().st_size > 0, name
    assert "steps: 3" in (out / "settings.yaml").read_text()
    assert "GiB" in outcome.out
    assert "PSNR" in outcome.out


def test_changed_setting_reruns_its_stage_and_what_follows(reconx, tiny, photos, tmp_path):
    command = ("reconstruct", photos, "-o", tmp_path / "out", "--store", tmp_path / "store")
    reconx(*command)
    tiny()
    assert reconx(*command, "-S", "splats.steps=3").code == 0
    assert tiny() == ["splats", "metrics"]


def test_stage_with_unchanged_output_stops_the_recomputation(reconx, tiny, photos, tmp_path):
    command = ("reconstruct", photos, "-o", tmp_path / "out", "--store", tmp_path / "store")
    reconx(*command)
    tiny()
    # The stand-in's frames do not depend on this setting, so what follows meets the same bytes.
    assert reconx(*command, "-S", "confidence.size=128").code == 0
    assert tiny() == ["confidence"]


def test_flipped_byte_is_found_and_only_that_entry_recomputed(reconx, tiny, photos, tmp_path):
    store = tmp_path / "store"
    command = ("reconstruct", photos, "-o", tmp_path / "out", "--store", store)
    reconx(*command)
    before = artifact_bytes(store)
    tiny()
    victim = max((store / "condition").glob("*/condition.zarr/renders/c/**/*"), key=lambda p: p.is_file() and p.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    outcome = reconx(*command)
    assert (outcome.code, tiny()) == (0, ["condition"])
    assert "damaged" in outcome.out or "changed since it was written" in " ".join(outcome.out.split())
    assert artifact_bytes(store) == before


def test_deleted_entry_runs_again_and_moved_store_still_hits(reconx, tiny, photos, tmp_path):
    store = tmp_path / "store"
    reconx("reconstruct", photos, "-o", tmp_path / "out", "--store", store)
    tiny()
    (entry,) = (store / "video").iterdir()
    for path in sorted(entry.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    entry.rmdir()
    moved = store.rename(tmp_path / "elsewhere")
    assert reconx("reconstruct", photos, "-o", tmp_path / "out", "--store", moved).code == 0
    assert tiny() == ["video"]


def test_a_dataset_of_which_nothing_can_be_used_made_nothing(reconx, tiny, tmp_path):
    for name in ("broken", "broken too"):
        write_folder(tmp_path / "data" / name)
    outcome = reconx("evaluate", tmp_path / "data", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert outcome.err.startswith("reconx: Nothing was made: none of the 2 scenes can be used")
    said = " ".join(outcome.out.split())
    assert said.count("broken too") == 1
    assert "Made in" not in said
    assert "broken too" in (tmp_path / "out" / "report.html").read_text()


def test_failed_scene_leaves_the_others_running(reconx, tiny, tmp_path):
    for name in ("attic", "broken", "cellar"):
        write_folder(tmp_path / "data" / name)
    out = tmp_path / "runs" / "first"
    outcome = reconx("evaluate", tmp_path / "data", "-o", out, "--store", tmp_path / "store")
    assert outcome.code == 1
    assert "broken failed in views: This scene is broken; take another one." in " ".join(outcome.out.split())
    record = json.loads((out / "run.json").read_text())
    assert [scene["error"] for scene in record["scenes"].values()] == [None, "This scene is broken; take another one.", None]
    assert (out / "attic" / "scene.ply").exists()
    assert (out / "cellar" / "scene.ply").exists()
    assert "broken" in (out / "report.html").read_text()
    whole = ("evaluate", tmp_path / "data", "--scenes", "attic,cellar")
    calm = reconx(*whole, "-o", tmp_path / "runs" / "calm", "--store", tmp_path / "calm")
    assert calm.code == 0
    assert artifact_bytes(tmp_path / "store") == artifact_bytes(tmp_path / "calm")


def test_steps_that_runs_share_are_done_once(reconx, tiny, tmp_path):
    for name in ("attic", "broken", "cellar"):
        write_folder(tmp_path / "data" / name)
    outcome = reconx("evaluate", tmp_path / "data", "--seeds", "2", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 1
    assert Counter(tiny()) == dict.fromkeys(STAGES, 4) | {"views": 3}


def test_user_error_of_the_only_scene_is_one_sentence_and_code_2(reconx, tiny, tmp_path):
    folder = write_folder(tmp_path / "broken")
    outcome = reconx("reconstruct", folder, "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert (outcome.code, outcome.err) == (2, "reconx: This scene is broken; take another one.\n")


def test_kill_9_repeats_at_most_the_interrupted_task(forks, tiny, photos, tmp_path):
    """A real process, killed within a stage: the next run goes on there, and the bytes are those of an undisturbed run."""
    log = tmp_path / "killed.log"
    environment = {**os.environ, "RECONX_TEST_LOG": str(log)}
    command = ["reconstruct", photos, "-o", tmp_path / "out", "--store"]

    paused = {**environment, "RECONX_TEST_PAUSE": "confidence"}
    with open(os.devnull, "r+") as nothing:
        process = Started(forks, [*command, tmp_path / "killed"], paused, 3 * [nothing.fileno()])
    wait_until(lambda: log.exists() and "confidence" in log.read_text(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    log.write_text("")
    assert run(forks, *command, tmp_path / "killed", environment=environment).returncode == 0
    assert log.read_text().split() == ["confidence", "splats", "metrics"]
    assert run(forks, *command, tmp_path / "calm", environment=environment).returncode == 0
    assert artifact_bytes(tmp_path / "killed") == artifact_bytes(tmp_path / "calm")


@pytest.mark.slow  # twenty runs that are killed, and twenty that go on from there
@pytest.mark.timeout(1200)
def test_killed_at_any_moment_a_run_goes_on_to_the_same_end(forks, tmp_path):
    names, environment = ("attic", "cellar", "den", "hall", "kitchen", "loft"), {**os.environ}
    for name in names:
        standins.write_folder(tmp_path / "data" / name)

    def command(folder):
        return ["evaluate", tmp_path / "data", "-o", folder / "out", "--store", folder / "store"]

    def results(folder):
        records = json.loads((folder / "out" / "run.json").read_text())["scenes"]
        scenes = {name: (folder / "out" / name / "scene.ply").read_bytes() for name in names}
        return artifact_bytes(folder / "store"), scenes, {name: record["summary"] for name, record in records.items()}

    begin = time.monotonic()
    assert run(forks, *command(tmp_path / "calm"), environment=environment).returncode == 0
    lasts, undisturbed = time.monotonic() - begin, results(tmp_path / "calm")
    killed = 0
    for moment in random.Random(0).choices(range(1000), k=20):
        folder = tmp_path / "disturbed"
        with open(os.devnull, "r+") as nothing:
            process = Started(forks, command(folder), environment, 3 * [nothing.fileno()])
        time.sleep(lasts * moment / 1000)
        if process.poll() is None:
            process.kill()
            killed += 1
        else:
            lasts *= 0.8  # the machine is less busy than it was
        process.wait()
        again = run(forks, *command(folder), environment=environment)
        assert again.returncode == 0, (moment, again.stdout + again.stderr)
        assert results(folder) == undisturbed, moment
        assert not any((folder / "store" / ".tmp").iterdir()), moment
        assert sorted(csv_names(folder / "out")) == sorted(names), moment
        shutil.rmtree(folder)
    assert killed >= 15


def csv_names(out):
    with open(out / "scores.csv", newline="") as file:
        return [row["scene"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_own_server_starts_without_a_home_and_ends_with_its_parent(tiny, photos, tmp_path):
    """No PREFECT_API_URL, no HOME: the run brings its own server, and kill -9 of the run takes it along."""
    log = tmp_path / "log"
    environment = {k: v for k, v in os.environ.items() if k not in ("PREFECT_API_URL", "HOME", "XDG_CACHE_HOME")}
    environment |= {"RECONX_TEST_LOG": str(log), "RECONX_TEST_PAUSE": "pointcloud", "HOME": ""}
    command = [
        sys.executable,
        str(SCRIPT),
        "reconstruct",
        str(photos),
        "-o",
        str(tmp_path / "out"),
        "--store",
        str(tmp_path / "s"),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    wait_until(lambda: log.exists() and "pointcloud" in log.read_text(), process)
    (server_pid,) = children(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not alive(server_pid))


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_at_once_although_a_thread_computes(number, code):
    """In a flow, too, and after the import of pycolmap: both have handlers of SIGTERM of their own."""
    script = f"""
import os, signal, threading, time
from rich.console import Console
from flows.execution.ending import sigterm_undisturbed, stop_at_once, take_back_signals
with stop_at_once(Console(), signal.{number.name}):
    take_back_signals()
    if {number == signal.SIGTERM}:
        signal.signal(signal.SIGTERM, lambda *_: print("Prefect"))
    with sigterm_undisturbed():
        threading.Thread(target=time.sleep, args=(600,)).start()
        os.kill(os.getpid(), signal.{number.name})
        time.sleep(600)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "\nreconx: interrupted; run the same command again to go on from here.\n"


@pytest.mark.long
@pytest.mark.parametrize(("end", "code"), [("raise SystemExit(1)", 1), ("raise SystemExit", 0), ("1 / 0", 1), ("pass", 0)])
def test_stage_that_is_left_behind_does_not_abort_the_end(end, code):
    """Its thread is in native code, from which it comes back while Python ends, or never (see test_attempts.py)."""
    script = f"""
import atexit, threading, time
from flows.execution.ending import STAGE_THREAD, leave_stages_behind
atexit.register(print, "closed")
print("written", end=" ")
threading.Thread(target=time.sleep, args=(60,), name=STAGE_THREAD + "splats", daemon=True).start()
try:
    {end}
except BaseException as error:
    leave_stages_behind(error)
leave_stages_behind(None)
print("not reached")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "written closed\n")
    assert ("ZeroDivisionError" in done.stderr) == (end == "1 / 0")


def test_where_prefect_and_the_store_fail_at_the_end_the_results_are_told(reconx, tiny, photos, tmp_path, monkeypatch):
    """As on a full disk, on which the server's database lies, too."""
    from httpx import Request, Response
    from prefect.exceptions import PrefectHTTPStatusError

    from flows.execution import flow as pipeline
    from flows.runs import registry

    class FailsAtItsEnd:
        def with_options(self, **options):
            def run():
                whole.with_options(**options)()
                monkeypatch.setattr(registry, "write_json", full)
                answer = Response(500, request=Request("POST", "http://127.0.0.1:4200/api/flow_runs"))
                raise PrefectHTTPStatusError("full", request=answer.request, response=answer)

            return run

    def full(path, content):
        raise OSError(errno.ENOSPC, "full")

    whole = pipeline.reconx
    monkeypatch.setattr(pipeline, "reconx", FailsAtItsEnd())
    for command in ("evaluate", "reconstruct"):
        outcome = reconx(command, photos, "-o", tmp_path / command, "--store", tmp_path / "store")
        monkeypatch.setattr(registry, "write_json", write_json)
        assert (outcome.code, outcome.err) == (0, "")
        printed = " ".join(outcome.out.split())
        assert "Prefect did not take the end of the run, whose results are complete" in printed
        assert f"The disk under {tmp_path / 'store'} is full" in printed
        assert "PSNR" in printed
        assert (tmp_path / command / "report.html").exists()


@pytest.mark.parametrize("name", ["default", "draft", "permissive", "paper"])
def test_presets_are_valid_settings(name):
    from flows.execution.run import resolve_settings

    assert resolve_settings(name, None).seed == 0


def test_results_that_are_still_to_be_written_are_told(server, tmp_path):
    """Where stages are quicker than the thread that lays results out, a run seemed to hang at its last scene."""
    import threading

    from flows.execution import flow as pipeline
    from flows.execution.hooks import Hooks
    from flows.execution.plan import ScenePlan
    from reconx_core.settings import Settings
    from tasks.execute import Monitor

    told, notes = threading.Event(), []

    class Listening(Monitor):
        def say(self, note):
            notes.append(note)
            told.set()

    plans = [ScenePlan(f"scene_{i:02d}", str(tmp_path / "nowhere"), Settings()) for i in range(25)]
    pipeline.run_scenes(plans, tmp_path, Listening(), hooks=Hooks(on_scene=lambda _: told.wait(30)))
    assert notes == ["All stages have ended; the results of 25 scenes are still being written."]
