"""`reconx compare`: paired differences, intervals that mean something, refusal to compare what cannot be compared."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from small_runs import failed_record, record_scene, write_run

from flows.evaluation import comparison
from flows.evaluation.comparison import pair_up
from flows.runs.records import Run, read_run
from reconx_core.errors import UserError

DIGESTS = {"splats": "ab" * 32, "views": "cd" * 32}


def read(folder, letter="A"):
    return read_run(str(folder), letter)


def words(text):
    return " ".join(text.split())


def pair_of(tmp_path, first, second, **records):
    """A pair of runs with these scores per scene, psnr or whole scenes."""
    runs = []
    for letter, scenes in (("A", first), ("B", second)):
        whole = {name: scene if isinstance(scene, dict) else record_scene(scene) for name, scene in scenes.items()}
        runs.append(read(write_run(tmp_path / letter, whole, **records), letter))
    return pair_up(*runs)


def test_difference_interval_scenes_and_settings_are_told(tmp_path, reconx):
    a = write_run(tmp_path / "a", {name: record_scene(20 + i) for i, name in enumerate("uvw")})
    b = write_run(tmp_path / "b", {name: record_scene(21 + i) for i, name in enumerate("uvwx")}, {"steps": 500})
    outcome = reconx("compare", a, b)
    assert outcome.code == 0
    said = words(outcome.out)
    for expected in ("+1.000", "+1.000 … +1.000", "splats.steps: 1000 → 500", "Not in both runs: x", "paired over 3 scene(s)"):
        assert expected in said, expected
    assert "B is better: PSNR, Photo PSNR." in said
    assert "One seed in A and B" in said
    assert "LPIPS" not in outcome.out
    assert "splats 40.0 s, 0.88 GiB 40.0 s, 0.88 GiB" in words(outcome.out.replace("│", " "))


def test_the_bins_of_a_protocol_are_compared_each(tmp_path, reconx):
    protocol = {"name": "overlap-re10k", "bins": {"large": [0.55, 0.8], "small": [0.05, 0.3]}}
    scenes = {f"s{i}": ("small" if i < 3 else "large", 3.0 if i < 3 else 1.0) for i in range(7)}
    runs = [{s: {**record_scene(20 + k * gain), "bin": of} for s, (of, gain) in scenes.items()} for k in (0, 1)]
    folders = [write_run(tmp_path / name, run, protocol=protocol) for name, run in zip("ab", runs)]
    said = words(reconx("compare", *folders).out.replace("│", " "))
    assert "small 3 PSNR dB ↑ 20.00 23.00 +3.000 +3.000 … +3.000" in said
    assert "large 4 PSNR dB ↑ 20.00 21.00 +1.000 +1.000 … +1.000" in said
    assert said.index("small 3") < said.index("large 4")


def test_every_run_is_compared_with_the_first(tmp_path, reconx):
    folders = [write_run(tmp_path / f"r{k}", {name: record_scene(20 + k) for name in "uvw"}) for k in range(3)]
    said = words(reconx("compare", *folders).out)
    assert said.count("paired over 3 scene(s)") == 2
    for expected in ("B is better", "C is better", "+1.000 … +1.000", "+2.000 … +2.000"):
        assert expected in said, expected


def test_weights_code_and_revision_that_differ_are_told(tmp_path, reconx):
    scenes = {name: record_scene(20) for name in "uv"}
    known = {"code": DIGESTS, "weights": {"video": {"tiny.safetensors": "12" * 32}}, "facts": {"git revision": "ef" * 20}}
    a = write_run(tmp_path / "a", scenes, **known)
    b = write_run(
        tmp_path / "b", scenes, **known | {"code": DIGESTS | {"splats": "99" * 32}, "facts": {"git revision": "12" * 20}}
    )
    c = write_run(tmp_path / "c", scenes)
    said = words(reconx("compare", a, b).out)
    for expected in (
        "The settings are the same. The weights are the same.",
        "Stages whose code differs: splats: abababababab → 999999999999 Revision",
        "git revision: efefefefefef → 121212121212",
    ):
        assert expected in said, expected
    said = words(reconx("compare", a, c).out)
    assert "Weights not recorded in B. Code not recorded in B." in said


def test_versions_gpu_and_driver_that_differ_are_told(tmp_path, reconx):
    runs = [
        write_run(
            tmp_path / name, {"u": record_scene(20), "v": record_scene(20)}, facts={"torch": torch, "numba": "0.61"},
            machines={"gpu": gpu, "driver": driver},
        )
        for name, torch, gpu, driver in (("a", "2.11", "NVIDIA A100", "550.1"), ("b", "2.12", "NVIDIA H200", "560.2"))
    ]  # fmt: skip
    said = words(reconx("compare", *runs).out)
    for expected in ("torch: 2.11 → 2.12", "computed on, gpu: NVIDIA A100 → NVIDIA H200", "computed on, driver: 550.1 → 560.2"):
        assert expected in said, expected
    assert "numba" not in said


def test_failures_are_named_with_stage_and_error(tmp_path, reconx):
    a = write_run(tmp_path / "a", {"u": record_scene(20), "v": record_scene(20)})
    b = write_run(tmp_path / "b", {"u": record_scene(21), "v": failed_record("No [photos] left.")})
    assert "B: v failed in splats: No [photos] left." in words(reconx("compare", a, b).out)


def test_of_many_scenes_those_that_changed_most_are_listed(tmp_path, reconx):
    a = write_run(tmp_path / "a", {f"s{i:02d}": record_scene(20) for i in range(30)})
    b = write_run(tmp_path / "b", {f"s{i:02d}": record_scene(20 + (-1) ** i * i / 10) for i in range(30)})
    said = words(reconx("compare", a, b).out)
    assert "the 10 of 30 that changed most" in said
    assert said.index("s29") < said.index("s28") < said.index("s20")
    assert "s19" not in said


def test_difference_smaller_than_the_spread_over_seeds_is_said_to_be(tmp_path, reconx):
    scenes = {name: record_scene(20 + i, spread={"psnr": 0.6, "photo_psnr": 0.01}) for i, name in enumerate("uvw")}
    moved = {name: record_scene(20.2 + i, spread={"psnr": 0.8, "photo_psnr": 0.01}) for i, name in enumerate("uvw")}
    a, b = write_run(tmp_path / "a", scenes), write_run(tmp_path / "b", moved)
    (psnr,) = [d for d in pair_up(read(a), read(b, "B")).differences if d.key == "psnr"]
    # The mean of three scenes with deviation s has s / sqrt(3); the difference has both runs'.
    assert psnr.spread == pytest.approx(np.hypot(0.6, 0.8) / np.sqrt(3))
    said = words(reconx("compare", a, b).out)
    assert "Smaller than the spread over seeds: PSNR." in said
    assert "0.577" in said
    assert "1.000" in said  # of a single scene's difference
    assert "SSIM" in said
    assert "One seed" not in said


def test_verdict_knows_which_way_is_better(tmp_path):
    pair = pair_of(
        tmp_path,
        {n: record_scene(20 + i, summary={"psnr": 20.0 + i, "lpips": 0.5, "ssim": 0.5}) for i, n in enumerate("uvw")},
        {
            n: record_scene(20, summary={"psnr": 19.0 + i, "lpips": 0.4, "ssim": 0.5 + (i - 1) / 10})
            for i, n in enumerate("uvw")
        },
    )
    assert {d.key: comparison.verdict(d) for d in pair.differences} == {"psnr": "worse", "ssim": "open", "lpips": "better"}


def test_score_that_some_scenes_lack_is_left_out_and_named(tmp_path):
    without = record_scene(20) | {"summary": {"psnr": 20.0}}
    pair = pair_of(tmp_path, {"u": 20.0, "v": 20.0}, {"u": 21.0, "v": without})
    assert [d.key for d in pair.differences] == ["psnr"]
    assert pair.left_out == ["SSIM", "Photo PSNR"]
    assert any("SSIM, Photo PSNR" in sentence for sentence in comparison.sentences(pair))


def test_lpips_of_each_net_is_compared_with_its_like(tmp_path):
    both = {"u": record_scene(20, summary={"psnr": 20.0, "lpips": 0.5, "lpips_alex": 0.2})}
    one = {"u": record_scene(20, summary={"psnr": 20.0, "lpips": 0.5})}
    pair = pair_up(read(write_run(tmp_path / "a", both)), read(write_run(tmp_path / "b", one), "B"))
    assert [difference.key for difference in pair.differences] == ["psnr", "lpips"]
    assert pair.left_out == ["LPIPS Alex"]


def test_single_scene_has_no_interval(tmp_path):
    pair = pair_of(tmp_path, {"u": 20.0}, {"u": 21.0})
    assert pair.differences[0].bounds is None
    assert comparison.verdict(pair.differences[0]) == "open"
    assert any("single scene" in sentence for sentence in comparison.sentences(pair))


def test_two_scenes_have_no_interval_and_no_verdict(tmp_path):
    pair = pair_of(tmp_path, {"u": 20.0, "v": 20.0}, {"u": 21.0, "v": 21.0})
    said = " ".join(comparison.sentences(pair))
    assert "Two scenes say nothing about others: no interval, and no verdict." in said
    assert "better" not in said


def test_identical_runs_give_the_same_results(tmp_path):
    scenes = {name: 20.0 + i for i, name in enumerate("uvw")}
    assert comparison.sentences(pair_of(tmp_path / "same", scenes, scenes)) == [
        "A and B give the same results in all 3 scene(s)."
    ]
    assert "the same results" not in " ".join(comparison.sentences(pair_of(tmp_path, scenes, scenes | {"v": 21.0001})))


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = comparison.interval(rng.normal(0.5, 1.0, 40))
        covered += low <= 0.5 <= high
    assert 86 <= covered <= 100


def test_interval_of_few_scenes_is_as_narrow_as_the_output_says():
    rng = np.random.default_rng(1)
    bounds = [comparison.interval(rng.normal(0.0, 1.0, 3)) for _ in range(300)]
    assert 0.68 < np.mean([low <= 0 <= high for low, high in bounds]) < 0.78


def test_interval_of_thousands_of_scenes_is_that_of_a_normal_mean():
    differences = np.random.default_rng(2).normal(0.1, 1.0, 7000)
    low, high = comparison.interval(differences)
    half = 1.96 * differences.std() / np.sqrt(7000)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.05 * half)


def test_interval_is_the_same_every_time_and_absent_for_one_scene():
    differences = np.array([0.1, 0.5, -0.2, 0.7])
    assert comparison.interval(differences) == comparison.interval(differences)
    assert comparison.interval(np.array([0.1])) is None
    assert comparison.interval(np.array([0.1, 0.2])) is None


@pytest.mark.parametrize("change", [{"protocol": "unposed"}, {"split": "train_6"}, {"size": [512, 384]}])
def test_runs_on_other_terms_are_not_compared(tmp_path, change):
    with pytest.raises(UserError, match="cannot be compared"):
        pair_of(tmp_path, {"u": 20.0}, {"u": record_scene(21, **change)})


def test_failed_scenes_do_not_count(tmp_path):
    assert pair_of(tmp_path, {"u": 20.0, "v": 20.0}, {"u": 21.0, "v": failed_record()}).scenes == ["u"]


def test_runs_without_a_scene_or_score_in_common_are_refused(tmp_path):
    with pytest.raises(UserError, match="no finished scene in common"):
        pair_of(tmp_path / "1", {"u": 20.0}, {"v": 20.0})
    with pytest.raises(UserError, match="no score in common"):
        pair_of(tmp_path / "2", {"u": 20.0}, {"u": record_scene(20, summary={})})


def test_a_name_that_is_no_run_is_one_sentence(tmp_path, reconx, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    outcome = reconx("compare", "it's", "nothing")
    assert outcome.code == 2
    assert outcome.err.startswith("reconx: There is no run 'it's'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/no/such/place.db")
    assert "There is no run" in reconx("compare", "a", "b").err


def test_of_a_folder_of_runs_one_is_to_be_named(tmp_path):
    for row in ("full", "baseline"):
        write_run(tmp_path / "rows" / row, {"u": record_scene(20)})
    with pytest.raises(UserError, match=r"holds 2 run\(s\) \(baseline, full\); name one of them, such as .*/baseline\."):
        read(tmp_path / "rows")


@pytest.mark.parametrize("width", [40, 80])
def test_no_number_is_cut_in_a_narrow_terminal(tmp_path, reconx, monkeypatch, width):
    monkeypatch.setattr("flows.cli.console", Console(width=width, highlight=False, emoji=False))
    spread = {"psnr": 0.6, "photo_psnr": 0.01}
    runs = [write_run(tmp_path / r, {s: record_scene(20 + i, spread=spread) for s in "uvw"}) for i, r in enumerate("ab")]
    shown = reconx("compare", *runs).out
    assert "+1.000 … +1.000" in shown
    assert "…" not in shown.replace(" … ", "")
    assert ("  95 % interval  +1.000 … +1.000" in shown.splitlines()) == (width == 40)


def test_run_told_to_mlflow_knows_where(tmp_path):
    folder = write_run(tmp_path / "a", {"u": record_scene(20)})
    assert read(folder).tracked is None
    (folder / "mlflow.json").write_text(json.dumps({"uri": "sqlite:///x.db", "run": "0a", "scenes": {"u": "0b"}}))
    assert replace(read(folder), record={}) == Run({}, folder, ("sqlite:///x.db", "0a"), "A")


UNFINISHED = {"title": "t", "settings": {"seed": 0}, "scenes": {"u": {"error": None, "summary": {}}}}


@pytest.mark.parametrize(
    "content",
    [b'{"title": "a", ', b"\x80\xff\x00", b"", b"[1, 2]", b'{"scenes": 5}', b"{}", json.dumps(UNFINISHED).encode()],
    ids=["half-written", "binary", "empty", "list", "other", "nothing", "no-terms"],
)
def test_a_damaged_record_is_a_sentence(tmp_path, reconx, content):
    whole, damaged = (write_run(tmp_path / name, {"u": record_scene(20)}) for name in "ab")
    (damaged / "run.json").write_bytes(content)
    for command in (("compare", whole, damaged), ("table", "easy", damaged, "-o", tmp_path / "tables")):
        outcome = reconx(*command)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert f"'{damaged / 'run.json'}' is damaged" in outcome.err


def test_a_damaged_note_of_mlflow_is_a_sentence(tmp_path):
    folder = write_run(tmp_path / "a", {"u": record_scene(20)})
    for content in ("[1]", '{"uri": 5}', "{"):
        (folder / "mlflow.json").write_text(content)
        with pytest.raises(UserError, match=r"mlflow\.json' is damaged"):
            read(folder)
