"""`reconx table`: published figures as printed, ours beside them, every cell of ours led back to its run."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flows.evaluation.ablation import load_ablation
from flows.evaluation.paper_tables import add_runs, method_label, set_names, table
from flows.evaluation.published import load_published
from flows.evaluation.table_formats import CSV_COLUMNS, latex, to_csv, to_latex, to_markdown
from flows.execution.run import resolve_settings
from flows.runs.mlflow_client import make_client, open_experiment
from flows.runs.records import Run
from reconx_core.errors import UserError

NAMES = ("easy", "hard", "cross", "multiview", "ablation")
EASY = {"name": "easy-re10k", "title": "RealEstate10K, easy", "table": "easy", "set": "RealEstate10K", "views": 2}
MIP = {"name": "mip", "title": "Mip-NeRF 360", "table": "multiview", "set": "Mip-NeRF 360"}


def scene(psnr=20.0, lpips=0.25, **changes):
    views = [{"view": name, "is_target": name == "t"} for name in "abct"]
    summary = {"psnr": psnr, "ssim": 0.5, "lpips": lpips}
    done = {"error": None, "protocol": "posed", "split": "index", "size": [256, 256], "summary": summary, "views": views}
    return done | changes


def record(scenes, overrides=(), preset=None, **keys):
    settings = resolve_settings(preset, list(overrides)).model_dump(mode="json")
    return {"title": "night", "settings": settings, "facts": {"git revision": "abc123"}, "scenes": scenes} | keys


def made(name, *runs):
    """The table with runs given as (record, MLflow id)."""
    return add_runs(load_published(name), [tracked(about, run) for about, run in runs])


def tracked(about, run, label=""):
    return Run(about, Path("runs") / str(run), ("sqlite:///mlflow.db", run) if run else None, label)


def write(folder, about, run=None):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(about))
    if run:
        (folder / "mlflow.json").write_text(json.dumps({"uri": "sqlite:///mlflow.db", "run": run, "scenes": {}}))
    return folder


def lines(text):
    return list(csv.DictReader(io.StringIO(text)))


def of_ours(text):
    return [line for line in lines(text) if line["published"] == "false"]


def quiet():
    return Console(file=io.StringIO(), width=100)


# --- the published figures


@pytest.mark.parametrize("name", NAMES)
def test_published_figures_alone_are_complete(name):
    text = to_csv(load_published(name))
    assert tuple(lines(text)[0]) == CSV_COLUMNS
    assert len(text.splitlines()) - 1 == {"easy": 18, "hard": 12, "cross": 12, "multiview": 90, "ablation": 21}[name]
    assert {line["published"] for line in lines(text)} == {"true"}
    assert all(re.fullmatch(r"arXiv 2408\.16767v4, Table (I|II|III|IV|V)", line["source"]) for line in lines(text))


@pytest.mark.parametrize(
    ("name", "where", "values"),
    [
        ("easy", ("RealEstate10K", 2, "ReconX", ""), (28.31, 0.912, 0.088)),
        ("easy", ("ACID", 2, "pixelSplat", ""), (28.14, 0.839, 0.150)),
        ("hard", ("ACID", 2, "ReconX", ""), (24.53, 0.847, 0.083)),
        ("cross", ("DTU", 2, "MVSplat", ""), (13.94, 0.473, 0.385)),
        ("multiview", ("Tanks and Temples", 9, "ReconX", ""), (18.38, 0.556, 0.355)),
        ("multiview", ("Mip-NeRF 360, ReconFusion splits", 6, "CAT3D", ""), (17.72, 0.425, 0.482)),
        ("ablation", ("RealEstate10K", 2, "ReconX", "no-stereo"), (27.11, 0.908, 0.113)),
    ],
)
def test_published_figures_are_as_printed(name, where, values):
    found = {(e.set, e.views, e.label, e.row): tuple(e.scores.values()) for e in load_published(name).entries}
    assert found[where] == values


def test_published_ablation_has_a_figure_for_every_row():
    assert [entry.row for entry in load_published("ablation").entries] == [row.name for row in load_ablation()]


# --- what stands in a cell of ours


def test_mean_over_scenes_and_spread_over_seeds():
    # Each scene's seeds are 2 dB apart, and scenes draw independently; that the scenes differ by far more must not count.
    seeds = lambda *psnr: {str(i): {"psnr": p, "ssim": 0.5, "lpips": 0.25} for i, p in enumerate(psnr)}  # noqa: E731
    spread = {"psnr": 2**0.5, "ssim": 0.0, "lpips": 0.0}
    scenes = {"u": scene(12, seeds=seeds(11.0, 13.0), spread=spread), "v": scene(32, seeds=seeds(33.0, 31.0), spread=spread)}
    ours = of_ours(to_csv(made("easy", (record(scenes, protocol=EASY, seeds=[0, 1]), "r1"))))
    psnr = ours[0]
    assert (psnr["score"], float(psnr["value"]), float(psnr["spread"])) == ("psnr", 22.0, pytest.approx(1.0))
    assert (psnr["scenes"], psnr["seeds"], psnr["protocol"], psnr["mlflow_run"]) == ("2", "0 1", "easy-re10k", "r1")
    assert "22.00 ± 1.00" in to_markdown(made("easy", (record(scenes, protocol=EASY, seeds=[0, 1]), "r1")))


def test_one_seed_has_no_spread():
    shown = made("easy", (record({"u": scene(12), "v": scene(32)}, protocol=EASY), "r1"))
    assert {line["spread"] for line in of_ours(to_csv(shown))} == {""}
    assert "±" not in to_markdown(shown)


def test_missing_lpips_is_an_empty_cell_and_one_sentence():
    scenes = {"u": scene(lpips=None), "v": scene()}
    shown = made("easy", (record(scenes, protocol=EASY), "r1"))
    assert [line["value"] for line in of_ours(to_csv(shown))] == ["20.0", "0.5", ""]
    assert "| default | 20.00†[^1] | 0.500†[^1] |  |" in to_markdown(shown)
    assert sum("LPIPS weights" in remark for remark in shown.remarks) == 1


def test_few_of_many_scenes_do_not_look_like_the_tables_number():
    shown = made("easy", (record({"u": scene(), "v": scene(), "w": scene()}, protocol=EASY), "r1"))
    assert "20.00†" in to_markdown(shown)
    assert r"20.00$^\dagger$" in to_latex(shown)
    assert "only 3 of the 7,289 scenes" in to_markdown(shown)


def test_all_scenes_bear_no_mark():
    shown = made("easy", (record({str(i): scene() for i in range(7289)}, protocol=EASY), "r1"))
    assert shown.entries[-1].scenes == 7289
    assert "†" not in to_markdown(shown)


def test_where_the_paper_does_not_say_how_many_scenes_neither_do_we():
    shown = made("multiview", (record({"bonsai": scene()}, protocol=MIP | {"views": 3}), "r1"))
    assert "1 scene; the paper does not say over how many" in to_markdown(shown)
    assert "20.00†" in to_markdown(shown)


def test_failed_scenes_are_named_and_do_not_count():
    lost = {"error": "The photos do not overlap.", "failed_stage": "pointcloud", "summary": {}}
    unposed = scene(summary={"photo_psnr": 30.0})
    shown = made("easy", (record({"u": scene(20), "v": lost, "w": unposed}, dataset="my set"), "r1"))
    assert [line["value"] for line in of_ours(to_csv(shown))] == ["20.0", "0.5", "0.25"]
    assert "u (" not in to_markdown(shown)
    for expected in (
        "2 of the run's 3 scenes",
        "v (failed in pointcloud: The photos do not overlap.)",
        "w (no held-out views)",
    ):
        assert expected in to_markdown(shown), expected


def test_run_without_a_finished_scene_has_empty_cells():
    shown = made("easy", (record({"u": {"error": "lost", "summary": {}}}, protocol=EASY), "r1"))
    assert {line["value"] for line in of_ours(to_csv(shown))} == {""}
    assert "no scene was scored" in to_latex(shown)


def test_run_of_an_older_version_stands_under_its_own_title():
    shown = made("cross", (record({"u": scene()}), None))
    entry = shown.entries[-1]
    assert (entry.set, entry.views, entry.protocol, entry.seeds) == ("night", 3, "posed", (0,))
    assert entry.whole


@pytest.mark.parametrize(
    ("sets", "names"),
    [
        (["/data/posed/fern"], ["fern"]),
        (["/data/posed", "/data/posefree"], ["posed", "posefree"]),
        (["/a/scans/x", "/b/scans/x", "/b/scans/y"], ["a/scans/x", "b/scans/x", "b/scans/y"]),
        (["posed", "/data/posed", "."], ["posed", "data/posed", "."]),
        (["/data/DTU", "DTU"], ["data/DTU", "DTU"]),  # the published set, under a protocol, beside a folder of that name
        (["procedural:room?seed=0..9", "/data/posed"], ["procedural:room?seed=0..9", "posed"]),
        (["/x"], ["x"]),
    ],
)
def test_sets_are_called_by_the_end_of_their_path_that_tells_them_apart(sets, names):
    assert list(set_names(sets, {"DTU"}).values()) == names


def test_remarks_and_cells_call_a_set_by_its_name():
    failed = {"error": "no photos", "failed_stage": "views", "summary": {}}
    text = to_markdown(made("multiview", (record({"u": scene(), "v": failed}, dataset="/a/long/way/to/posed"), "r")))
    assert "default on posed, 3 views: 1 of the run's 2 scenes not in the mean" in text
    assert "/a/long/way" not in text


# --- rows


def test_label_is_the_nearest_preset_and_what_differs():
    label = lambda preset, *changes: method_label(resolve_settings(preset, list(changes)).model_dump(mode="json"))  # noqa: E731
    assert label("default") == "default"
    assert label("paper", "views.size=256", "seed=3") == "paper"
    assert label("default", "splats.steps=500", "video.backend=none") == "default, video.backend=none, splats.steps=500"


def test_one_method_over_several_columns_is_one_row():
    runs = [(record({"u": scene(18 + n)}, protocol=MIP | {"views": n}), f"r{n}") for n in (3, 9)]
    row = next(line for line in to_markdown(made("multiview", *runs)).splitlines() if line.startswith("| default"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[4] == "21.00†[^1]"
    assert cells[10] == "27.00†[^2]"
    assert cells[1] == ""


def test_two_runs_for_one_cell_need_names(tmp_path):
    for name, psnr in (("a", 20), ("b", 21)):
        write(tmp_path / name, record({"u": scene(psnr)}, protocol=EASY))
    with pytest.raises(UserError, match="Two of the runs are for one cell"):
        table("easy", [str(tmp_path / "a"), str(tmp_path / "b")], tmp_path / "out", quiet())
    table("easy", [f"before={tmp_path / 'a'}", f"after={tmp_path / 'b'}"], tmp_path / "out", quiet())
    ours = of_ours((tmp_path / "out/easy.csv").read_text())
    assert [(line["method"], line["value"]) for line in ours if line["score"] == "psnr"] == [
        ("before", "20.0"),
        ("after", "21.0"),
    ]


def test_run_of_another_table_is_refused():
    with pytest.raises(UserError, match="see 'reconx table easy'"):
        made("hard", (record({"u": scene()}, protocol=EASY), "r1"))
    with pytest.raises(UserError, match="no row of an ablation"):
        made("ablation", (record({"u": scene()}, protocol=EASY), "r1"))


def test_ablation_is_seven_rows_with_ticks_in_the_papers_order(tmp_path):
    for number, row in enumerate(reversed(load_ablation())):
        about = record({"u": scene(20 + number)}, row.overrides, dataset="rooms", row=row.name)
        write(tmp_path / "abl" / row.name, about, f"id-{row.name}")
    table("ablation", [str(tmp_path / "abl")], tmp_path / "out", quiet())
    ours = [line for line in of_ours((tmp_path / "out/ablation.csv").read_text()) if line["score"] == "psnr"]
    assert [line["row"] for line in ours] == [row.name for row in load_ablation()]
    assert {line["method"] for line in ours} == {"default"}
    assert [line["mlflow_run"] for line in ours] == [f"id-{row.name}" for row in load_ablation()]
    text = (tmp_path / "out/ablation.md").read_text()
    assert "| default | no-stereo | ✓ | ✓ | – | ✓ | ✓ | 23.00[^4] |" in text
    assert "| ReconX (published) | baseline | – | – | ✓ | – | – | 17.34 |" in text


# --- formats


@pytest.fixture
def busy():
    """A table with everything in it: several sets, seeds, failures, and names that LaTeX and Markdown take for their own."""
    seeds = {"0": {"psnr": 20.0, "ssim": 0.5, "lpips": 0.2}, "1": {"psnr": 21.0, "ssim": 0.6, "lpips": 0.3}}
    scenes = {"u_1": scene(20.5, seeds=seeds), "50%": {"error": "A & B | C", "failed_stage": "video", "summary": {}}}
    runs = [
        tracked(record(scenes, protocol=MIP | {"views": 2}, seeds=[0, 1]), "run-a"),
        tracked(record(scenes, ["splats.lpips_weight=0.1"], protocol=MIP | {"views": 9}), "run-b"),
        tracked(record({"u": scene()}, dataset="data/my_set#1|2"), "run-c", "[ours] & theirs"),
    ]
    return add_runs(load_published("multiview"), runs)


def rows_of(text):
    """Cells of the rows of every tabular, multicolumns counted in full."""
    for spec, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in body.splitlines():
            if line.endswith(r"\\"):
                cells = re.split(r"(?<!\\)&", line)
                yield len(spec), len(cells) + sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d)\}", line))


@pytest.mark.parametrize("name", NAMES)
def test_latex_is_well_formed(name, busy):
    for text in (to_latex(load_published(name)), to_latex(busy)):
        code = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
        opened = []
        for what, environment in re.findall(r"\\(begin|end)\{(\w+)\}", code):
            assert what == "begin" or opened.pop() == environment
            opened += [environment] if what == "begin" else []
        assert opened == []
        bare = re.sub(r"\\[\\{}&%$#_]", "", code)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not set("%#_~|") & set(bare)
        counts = list(rows_of(text))
        assert counts
        assert all(columns == cells for columns, cells in counts)
        assert code.count(r"\toprule") == code.count(r"\midrule") == code.count(r"\bottomrule") > 0
        code.encode("ascii")


def test_latex_comment_before_a_row_names_its_runs(busy):
    text = to_latex(busy).splitlines()
    for run, starts in (("run-a", "default &"), ("run-b", "default, splats.lpips"), ("run-c", r"{[}ours{]} \& theirs &")):
        (number,) = [i for i, line in enumerate(text) if run in line]
        assert text[number].startswith("%")
        assert text[number + 1].startswith(starts)


def test_latex_escapes():
    assert latex(r"a_b & 50% {x} \ ~") == r"a\_b \& 50\% \{x\} \textbackslash{} \textasciitilde{}"


def test_markdown_footnotes_lead_to_the_runs(busy):
    text = to_markdown(busy)
    notes = dict(re.findall(r"^\[\^(\d)\]: run (\S+) \(", text, re.MULTILINE))
    assert sorted(notes.values()) == ["run-a", "run-b", "run-c"]
    assert all("git revision abc123" in line for line in text.splitlines() if re.match(r"\[\^\d\]:", line))
    for line in text.splitlines():
        marks = set(re.findall(r"\[\^(\d)\]", line)) if line.startswith("| ") else set()
        run = {"| default |": "run-a", "| default,": "run-b", "| [ours]": "run-c"}
        expected = {
            number for number, id in notes.items() for start, name in run.items() if line.startswith(start) and id == name
        }
        assert marks == expected, line


def test_markdown_tables_are_even(busy):
    for part in re.split(r"\n\n", to_markdown(busy)):
        if part.startswith("|"):
            counts = {len(re.findall(r"(?<!\\)\|", line)) for line in part.splitlines()}
            assert len(counts) == 1, part


# --- where runs come from


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """Log a record as `tracking` does: a parent with its tags and run.json; returns its id."""
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    client = make_client(uri)
    experiment = client.create_experiment("reconx", artifact_location=(tmp_path / "artifacts").as_uri())
    assert experiment == open_experiment(client, tmp_path, "reconx")

    def log(about, **tags):
        named = {f"reconx.{key}": value for key, value in tags.items()}
        run = client.create_run(experiment, run_name=about["title"], tags=named).info.run_id
        path = tmp_path / "run.json"
        path.write_text(json.dumps(about))
        client.log_artifact(run, str(path))
        client.create_run(experiment, run_name="u", tags={"mlflow.parentRunId": run, **named})
        client.set_terminated(run)
        return run

    return log


@pytest.mark.long
def test_newest_run_of_every_method_and_column_is_found_in_mlflow(mlflow, tmp_path):
    acid = EASY | {"set": "ACID"}
    mlflow(record({"u": scene(20)}, protocol=EASY), table="easy")
    new = mlflow(record({"u": scene(21)}, protocol=EASY), table="easy")
    other = mlflow(record({"u": scene(22)}, ["splats.steps=5"], protocol=EASY), table="easy")
    beside = mlflow(record({"u": scene(23)}, protocol=acid), table="easy")
    mlflow(record({"u": scene(24)}, protocol=MIP | {"views": 3}), table="multiview")
    mlflow(record({"u": scene(25)}, protocol=EASY, row="full"), table="easy", row="full")
    console = quiet()
    table("easy", [], tmp_path / "out", console)
    assert "left out" not in console.file.getvalue()
    ours = [line for line in of_ours((tmp_path / "out/easy.csv").read_text()) if line["score"] == "psnr"]
    assert {(line["mlflow_run"], line["set"], line["method"], line["value"]) for line in ours} == {
        (new, "RealEstate10K", "default", "21.0"),
        (other, "RealEstate10K", "default, splats.steps=5", "22.0"),
        (beside, "ACID", "default", "23.0"),
    }
    table("ablation", [], tmp_path / "out", quiet())
    assert {line["value"] for line in of_ours((tmp_path / "out/ablation.csv").read_text()) if line["score"] == "psnr"} == {
        "25.0"
    }


@pytest.mark.long
def test_run_is_named_by_its_name_or_id(mlflow, tmp_path):
    run = mlflow(record({"u": scene(20)}, protocol=EASY), table="easy")
    for name in ("night", run):
        table("easy", [f"mine={name}"], tmp_path / "out", quiet())
        assert {line["mlflow_run"] for line in of_ours((tmp_path / "out/easy.csv").read_text())} == {run}
    for name in ("u", "day"):  # a scene's run has no record of its own
        with pytest.raises(UserError, match=f"There is no run '{name}'"):
            table("easy", [name], tmp_path / "out", quiet())


@pytest.mark.long
def test_run_whose_record_is_lost_is_told_and_left_out(mlflow, tmp_path):
    kept = mlflow(record({"u": scene(20)}, protocol=EASY), table="easy")
    lost = mlflow(record({"u": scene(21)}, protocol=EASY), table="easy")
    shutil.rmtree(tmp_path / "artifacts" / lost)
    console = quiet()
    table("easy", [], tmp_path / "out", console)
    assert f"Run {lost} is left out" in console.file.getvalue()
    assert {line["mlflow_run"] for line in of_ours((tmp_path / "out/easy.csv").read_text())} == {kept}


@pytest.mark.parametrize(("name", "how"), [("easy", "--protocol"), ("ablation", "--ablation")])
def test_without_runs_the_published_table_stands_alone(name, how, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    console = quiet()
    table(name, [], tmp_path / "out", console)
    assert "There are no runs of ours for this table yet" in console.file.getvalue()
    assert how in console.file.getvalue()
    assert of_ours((tmp_path / f"out/{name}.csv").read_text()) == []
    assert not (tmp_path / "runs").exists()  # looking for runs makes no database


def test_mlflow_that_cannot_be_read_is_a_clear_mistake(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "no-such-scheme://host")
    with pytest.raises(UserError, match="Cannot read the runs in MLflow at no-such-scheme://host"):
        table("easy", [], tmp_path / "out", quiet())


def test_command_prints_and_saves(reconx, tmp_path, monkeypatch):
    run = write(tmp_path / "night", record({"u": scene(20)}, protocol=EASY), "0123456789abcdef")
    outcome = reconx("table", "easy", run, "-o", tmp_path / "tables")
    assert outcome.code == 0
    for expected in ("20.00†", "01234567", "published", "only 1 of the 7,289 scenes", "Of ACID there are no runs of ours"):
        assert expected in outcome.out, expected
    assert outcome.out.index("01234567") < outcome.out.index("published")
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["easy.csv", "easy.md", "easy.tex"]
    outcome = reconx("table", "medium", "-o", tmp_path / "tables")
    assert outcome.code == 2
    assert "there are easy, hard, cross, multiview and ablation" in outcome.err
