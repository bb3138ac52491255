"""What runs cost, as tables and comparisons show it."""

import csv
import io

import pytest
from rich.console import Console
from small_runs import failed_record, record_scene

from flows.evaluation.ablation import load_ablation, switch_titles
from flows.evaluation.efficiency import cost_of_scenes, cost_rows
from flows.evaluation.published import Entry, PaperTable
from flows.evaluation.table_formats import print_table, to_csv, to_latex, to_markdown

SCENES = [
    record_scene(20, fps=30.0, megabytes=4.0),
    record_scene(
        22, fps=10.0, megabytes=6.0, costs=[{"stage": "splats", "seconds": 60.0, "peak_mib": 2048.0, "cached": False}]
    ),
    failed_record(),
]


def test_means_over_the_scenes_that_finished_and_the_peak_of_memory():
    cost = cost_of_scenes(SCENES)
    assert (cost["fps"], cost["megabytes"], cost["gaussians"], cost["peak_mib"]) == (20, 5, 10, 2048)
    assert (cost["splats.seconds"], cost["splats.peak_mib"], cost["pointcloud.seconds"]) == (50, 2048, 25)
    assert cost["seconds"] == 2 + 25 + 50 + 1
    assert "cuda_peak_mib" not in cost


def test_what_one_run_does_not_say_is_a_dash_and_what_none_says_no_row():
    bare = record_scene(20, costs=[])
    bare["summary"].pop("gaussians")
    rows = dict(cost_rows([cost_of_scenes(SCENES), cost_of_scenes([bare])]))
    assert rows["frames a second"] == ["20.0", "–"]
    assert rows["splats"] == ["50.0 s, 2.00 GiB", "–"]
    assert "peak GPU memory" not in rows
    assert cost_rows([cost_of_scenes([bare])]) == []


def test_tables_say_what_our_runs_cost():
    scores = {"psnr": 20.0, "ssim": 0.5, "lpips": None}
    published = Entry("theirs", "", "Rooms", 2, scores, "a paper", True, 3)
    ours = Entry("default", "", "Rooms", 2, scores, "runs/a", False, 2, cost=cost_of_scenes(SCENES))
    table = PaperTable("easy", "Rooms", (published, ours))
    section = to_markdown(table).split("## Cost of our runs")[1]
    assert "| default | Rooms | 2 views | 78.0 s | 2.00 GiB | 10 | 5.0 MB | 20.0 |" in section
    rows = {row["score"]: row["value"] for row in csv.DictReader(io.StringIO(to_csv(table))) if row["method"] == "default"}
    assert float(rows["fps"]) == pytest.approx(20)
    latex = to_latex(table).split("Cost of a scene of our runs")[1]
    assert r"default & Rooms & 2 views & 78.0 s & 2.00 GiB & 10 & 5.0 MB & 20.0 \\" in latex
    assert latex.count(r"\begin{tabular}{lllrrrrr}") == 1
    for write in (to_markdown, to_latex):
        assert "Cost" not in write(PaperTable("easy", "Rooms", (published,)))


def rows_of_ablation():
    scores = {"psnr": 20.0, "ssim": 0.5, "lpips": None}
    cost = cost_of_scenes(SCENES)
    switches = dict.fromkeys(switch_titles(), True)
    rows = [Entry("default", row.name, "Rooms", 2, scores, "runs/a", False, 2, switches, cost=cost) for row in load_ablation()]
    return PaperTable("ablation", "Rooms", tuple(rows))


def test_costs_of_an_ablation_say_of_which_row_they_are():
    section = to_markdown(rows_of_ablation()).split("## Cost of our runs")[1]
    assert "| default | no-stereo | Rooms | 2 views | 78.0 s |" in section
    assert r"default & no-stereo & Rooms & 2 views & 78.0 s &" in to_latex(rows_of_ablation())


@pytest.mark.parametrize("width", [40, 80, 200])
def test_costs_fit_the_screen_and_every_row_is_named(width):
    console = Console(file=io.StringIO(), width=width)
    print_table(rows_of_ablation(), console)
    text = console.file.getvalue().split("Cost of a scene")[1].split("V video diffusion")[0]
    assert max(map(len, text.splitlines())) <= width
    for row in load_ablation():
        assert row.name in text
    assert text.count("78.0 s") == 7
    assert "…" not in text
