"""`--vram`: settings with which the stages fit into a card, by the table of measured and computed needs."""

import pytest
from rich.console import Console
from typer.testing import CliRunner

from flows import cli
from flows.doctor import describe_fit
from flows.execution.memory import SIZES, WAYS, apply_vram, choose_ways, fit_to_memory, need
from flows.execution.run import resolve_settings
from reconx_core.errors import UserError
from reconx_core.settings import flatten, parse_settings


def fitted(preset, vram, *overrides):
    return fit_to_memory(resolve_settings(preset, list(overrides)), vram, list(overrides))


@pytest.mark.parametrize(("stage", "backend"), WAYS)
def test_the_table_holds_settings_that_exist_and_each_way_needs_less_than_the_one_before(stage, backend):
    ways = WAYS[stage, backend]
    for way in ways:
        parse_settings({}, [f"{name}={value}" for name, value in way.settings.items()])
    peaks = [way.weights + way.activations for way in ways]
    assert peaks == sorted(peaks, reverse=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("preset", ["paper", "permissive"])
def test_what_is_chosen_fits(preset, size):
    settings, choices = fitted(preset, size)
    assert {choice.stage for choice in choices} >= {"video", "splats"}
    assert all(choice.need <= size - 0.5 for choice in choices)
    for choice in choices:
        for name, value in choice.way.settings.items():
            assert flatten(settings.model_dump())[name] == value


def test_a_large_card_changes_nothing_of_the_preset():
    assert fitted("paper", 48)[0] == resolve_settings("paper", None)


def test_a_small_card_gets_slower_settings_and_frames_are_matched_with_their_neighbours():
    small, middle = fitted("paper", 8)[0], fitted("paper", 12)[0]
    assert (small.video.batch_guidance, small.video.offload, small.pointcloud.graph) == (False, True, "window")
    assert (middle.video.batch_guidance, middle.video.offload, middle.pointcloud.graph) == (True, False, "window")
    assert fitted("paper", 24)[0].pointcloud.graph == "complete"


def test_a_graph_with_fewer_pairs_is_not_made_complete():
    settings, choices = fitted("paper", 48, "pointcloud.graph=auto")
    assert settings.pointcloud.graph == "auto"
    assert choices[2].need == pytest.approx(8.3)


def test_what_the_user_says_wins():
    overrides = ["video.offload=false", "pointcloud.graph = complete"]
    settings, _ = fitted("paper", 8, *overrides)
    assert (settings.video.offload, settings.pointcloud.graph) == (False, "complete")
    assert not settings.video.batch_guidance


def test_it_is_said(capsys):
    console = Console(width=200)
    settings = resolve_settings("paper", None)
    assert apply_vram(settings, None, [], console) == settings
    assert capsys.readouterr().out == ""
    apply_vram(settings, 8, ["video.offload=false"], console)
    said = capsys.readouterr().out
    assert "For 8 GB of GPU memory: pointcloud.batch=4, video.batch_guidance=False" in said
    assert "video by reconx: 6.7 GiB, computed" in said
    assert "as you say instead: video.offload" in said


def test_longer_clips_need_more_and_shorter_ones_leave_room_for_all_pairs():
    short = resolve_settings("paper", ["condition.frames_per_pair=14"])
    assert choose_ways(short, 8)[2].way.settings == {"pointcloud.graph": "complete"}
    long = resolve_settings("paper", ["condition.frames_per_pair=62"])
    way = WAYS["video", "reconx"][0]
    assert need("video", "reconx", way, long) == pytest.approx(4.8 + 2 * 5.3)
    exact = resolve_settings("paper", ["video.dtype=float32"])
    assert need("video", "reconx", way, exact) == pytest.approx(2 * (4.8 + 5.3))
    assert {c.stage: c.need for c in choose_ways(exact, 48)}["splats"] == pytest.approx(1.2 + 2 * 4.8 + 1.0)


def test_what_fits_in_no_way_is_a_sentence():
    with pytest.raises(UserError, match=r"video by reconx needs 7.2 GB of GPU memory at least, more than 6 GB"):
        fitted("paper", 6)


def test_the_stages_that_were_measured_in_one_process_add_up():
    """docs/networks.md: 11.3, 18.2 and 7.0 GiB with the networks of the stages before still loaded."""
    needs = {choice.stage: choice.need for choice in choose_ways(resolve_settings("paper", None), 48)}
    assert needs == pytest.approx({"pointcloud": 3.5, "video": 11.3, "confidence": 18.2, "splats": 7.0})


def test_a_run_without_a_gpu_has_nothing_to_choose():
    settings = parse_settings({}, ["pointcloud.backend=classical", "splats.backend=cpu"])
    assert fit_to_memory(settings, 8, []) == (settings, [])


def test_doctor_says_what_fits_into_the_card_or_which_card_it_takes():
    paper = resolve_settings("paper", None)
    assert describe_fit(paper, 23.6).startswith("fits: For 24 GB of GPU memory: pointcloud.batch=4")
    assert describe_fit(paper, 4.0).startswith("does not fit: video by reconx needs")
    none = describe_fit(paper, None)
    assert none == "peak 6.7 GiB with --vram 8, 11.3 GiB with --vram 12, 18.2 GiB with --vram 24, 18.2 GiB with --vram 48"
    long = resolve_settings("paper", ["condition.frames_per_pair=158"])
    assert "peak too much with --vram 8" in describe_fit(long, None)


def test_both_commands_take_it(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("flows.reconstruct.reconstruct", lambda source, out, settings, *rest: seen.append(settings))
    monkeypatch.setattr("flows.evaluate.evaluate", lambda request, *rest: bool(seen.append(request.settings)))
    options = ["-o", str(tmp_path / "out"), "--preset", "paper", "--vram", "8", "-S", "video.vae_slice=1"]
    for command in ("reconstruct", "evaluate"):
        outcome = CliRunner().invoke(cli.app, [command, str(tmp_path), *options])
        assert outcome.exit_code == 0, outcome.output
    assert [(settings.video.offload, settings.video.vae_slice) for settings in seen] == [(True, 1)] * 2
