"""A run's folder while the run goes on: what is there of a scene as soon as it is done, and `scores.csv` at every moment."""

import csv
import io
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fork_server import Started
from fork_server import run as run_forked
from processes import wait_until
from rich.console import Console
from standins import write_folder

from flows.execution.plan import ScenePlan, SceneRun
from flows.runs import growing
from flows.runs.growing import HEAD, RunFolder
from reconx_core import metrics
from reconx_core.errors import UserError
from reconx_core.settings import Settings


@pytest.fixture
def data(tmp_path):
    for name in ("attic", "broken", "cellar"):
        write_folder(tmp_path / "data" / name)
    return tmp_path / "data"


def lines_of(out):
    with (out / "scores.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_first_scene_is_whole_before_the_last_begins(reconx, tiny, data, tmp_path, monkeypatch):
    out, whole, seen = tmp_path / "out", metrics.score_scene, []
    calls = []

    def look_and_score(*arguments):
        calls.append(1)
        if len(calls) == 2:
            # The writer's thread may still be at it: the stage of the last scene waits for what must be there without its end.
            wait_until(lambda: len(lines_of(out)) == 2, seconds=30)
            seen.append((lines_of(out), json.loads((out / "attic" / "scene.json").read_text()), (out / "run.json").exists()))
        return whole(*arguments)

    monkeypatch.setattr(metrics, "score_scene", look_and_score)
    assert reconx("evaluate", data, "-o", out, "--store", tmp_path / "store").code == 1
    ((lines, record, ended),) = seen
    assert [(line["scene"], line["failed_stage"]) for line in lines] == [("attic", ""), ("broken", "views")]
    assert not ended
    for name in ("scene.ply", "scene.html", "video.mp4", "pictures", "cameras"):
        assert (out / "attic" / name).exists()
    final = json.loads((out / "run.json").read_text())["scenes"]["attic"]
    assert record == final
    assert float(lines[0]["psnr"]) == record["summary"]["psnr"]


@pytest.mark.slow
def test_scores_of_a_killed_run_are_those_of_an_undisturbed_one_after_it_went_on(forks, data, tmp_path):
    log, out = tmp_path / "log", tmp_path / "out"
    environment = {**os.environ, "RECONX_TEST_LOG": str(log), "RECONX_TEST_VICTIM": f"metrics:{tmp_path / 'victim'}"}
    command = ["evaluate", data, "--seeds", "2", "--store", tmp_path / "store", "-o"]
    with open(os.devnull, "r+") as nothing:
        process = Started(forks, [*command, out], environment, 3 * [nothing.fileno()])
    wait_until(lambda: (tmp_path / "victim").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert lines_of(out) == []  # whole, although there is nothing in it yet
    environment["RECONX_TEST_VICTIM"] = ""
    assert run_forked(forks, *command, out, environment=environment).returncode == 1
    assert run_forked(forks, *command, tmp_path / "calm", environment=environment).returncode == 1
    assert (out / "scores.csv").read_bytes() == (tmp_path / "calm" / "scores.csv").read_bytes()
    scenes = [(line["scene"], line["seed"], bool(line["psnr"]), line["error"]) for line in lines_of(out)]
    assert scenes == [
        *(("attic", seed, True, "") for seed in "01"),
        *(("broken", seed, False, "This scene is broken; take another one.") for seed in "01"),
        *(("cellar", seed, True, "") for seed in "01"),
    ]


def failed(name, seed=0, seeded=False):
    settings = Settings(seed=seed)
    return SceneRun(ScenePlan(name, "", settings, seeded=seeded), failed_stage="views", error=UserError("No [photos], sorry."))


def test_a_reader_never_sees_half_a_line_and_lines_are_in_the_order_of_the_plans(tmp_path):
    runs = [failed(f'scene_{number:03d}, the "odd"\nname') for number in range(60)]
    folder = RunFolder(tmp_path / "out", tmp_path / "store", [run.plan for run in runs])
    done = []

    def read():
        counts = []
        while not done:
            lines = lines_of(tmp_path / "out")
            assert all(None not in line.values() and None not in line for line in lines)
            assert [line["scene"] for line in lines] == sorted(line["scene"] for line in lines)
            counts.append(len(lines))
        return counts

    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read)
        for run in reversed(runs):
            folder.lay(run, pytest.fail)
        done.append(True)
        counts = reading.result()
    assert counts == sorted(counts)
    assert len(lines_of(tmp_path / "out")) == 60
    assert set(lines_of(tmp_path / "out")[0]) == set(HEAD)


def test_a_scene_is_told_of_once_when_all_its_seeds_are_done(tmp_path):
    runs, told = [failed(name, seed, True) for seed in (0, 1) for name in ("attic", "den")], []
    folder = RunFolder(
        tmp_path, tmp_path, [run.plan for run in runs], lambda name, record: told.append((name, len(record["seeds"])))
    )
    for run in runs:
        folder.lay(run, pytest.fail)
        folder.lay(run, pytest.fail)
    assert told == [("attic", 2), ("den", 2)]


def test_results_that_cannot_be_written_are_told_once_and_tried_again_at_the_end(tmp_path, monkeypatch):
    runs, said = [failed(name) for name in ("attic", "den", "loft")], []
    folder = RunFolder(tmp_path, tmp_path, [run.plan for run in runs])
    whole, full = growing.lay_scene, []

    def lay(run, *arguments):
        if run.name != "attic" and not full:
            raise UserError("The disk under X is full.")
        return whole(run, *arguments)

    monkeypatch.setattr(growing, "lay_scene", lay)
    for run in runs:
        folder.lay(run, said.append)
    assert said == ["The results of den could not be written, and are tried again at the end: The disk under X is full."]
    assert [line["scene"] for line in lines_of(tmp_path)] == ["attic"]
    with pytest.raises(UserError, match="is full"):
        folder.records(runs)
    full.append("no more")
    assert [record["error"] for record in folder.records(runs)] == ["No [photos], sorry."] * 3
    assert [line["scene"] for line in lines_of(tmp_path)] == ["attic", "den", "loft"]


def test_a_scene_costs_the_head_little_beyond_its_files_among_7289(tmp_path):
    runs = [failed(f"{number:016x}") for number in range(7289)]
    folder = RunFolder(tmp_path / "out", tmp_path, [run.plan for run in runs])
    for run in runs:  # as if all but a few were done
        folder.lines[run.name] = growing.csv_line([run.name, 0, "", "", *[0.123456789012345] * (len(HEAD) - 4)])
    start = time.process_time()
    for run in runs[:20]:
        folder.lay(run, pytest.fail)
    assert (time.process_time() - start) / 20 < 0.05


def test_table_of_thousands_of_scenes_is_short(tmp_path):
    from flows.evaluation.score_tables import print_made

    scene = {"error": None, "summary": {"psnr": 20.0}, "protocol": "posed", "split": "s", "size": [8, 8]}
    scenes = {f"s{i}": scene | {"summary": {"psnr": 10 + i / 1000}} for i in range(7000)}
    scenes |= {f"x{i}": {"error": "no", "failed_stage": "views", "summary": {}} for i in range(289)}
    with open(tmp_path / "printed", "w+") as file:
        print_made(Console(file=file, width=120), {"scenes": scenes, "settings": {"seed": 0}}, tmp_path, 5000.0, told=True)
        file.seek(0)
        printed = file.read()
    assert printed.count("\n") < 40
    for part in ("s0 ", "s3500", "s6999", "289 of 7289 scenes failed", "x0, x1", "and 281 more", "1 h 23 min"):
        assert part in printed, part


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_scores_of_several_seeds_are_whole_on_any_screen(width):
    """Columns that do not fit stand in a table below; no cell is cut or broken."""
    from flows.evaluation.score_tables import print_scores

    summary = {
        "psnr": 20.07,
        "ssim": 0.673,
        "photo_psnr": 30.1,
        "photo_ssim": 0.9,
        "rotation_error": 0.3,
        "gaussians": 100000.0,
    }
    scene = {"error": None, "summary": summary, "spread": summary, "protocol": "unposed", "split": "s", "size": [8, 8]}
    file = io.StringIO()
    print_scores(Console(file=file, width=width), {"scenes": {"fountain_p11": scene, "fox": scene}, "settings": {"seed": 0}})
    printed = file.getvalue()
    for cell in ("20.07 ± 20.07", "0.673 ± 0.673", "30.10 ± 30.10", "0.900 ± 0.900", "0.30 ± 0.30", "100,000", "photo PSNR dB"):
        assert cell in printed, (cell, printed)
    assert "…" not in printed
    assert max(map(len, printed.splitlines()[:-1])) <= max(width, 30)
    assert printed.count(" scene ") == {30: 6, 40: 5, 80: 2, 200: 1}[width]
