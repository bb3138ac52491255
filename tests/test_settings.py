"""Settings from YAML and `-S`: text stays text where the setting is text, whatever YAML would make of it."""

import pytest

from flows.train import resolve_train_settings
from reconx_core.errors import UserError
from reconx_core.settings import flatten, load_settings, parse_settings
from reconx_core.training.settings import load_train_settings


@pytest.mark.parametrize(
    "text", ["no", "on", "yes", "007", "1.50", "1e3", "2024-01-31", "12:30", "null", "a: b", "[x", "*", "# 1", ""]
)
def test_text_is_taken_as_it_stands(text):
    settings = parse_settings({}, [f"video.prompt={text}", f"views.split={text}", f"pointcloud.weights={text}"])
    assert (settings.video.prompt, settings.views.split, settings.pointcloud.weights) == (text, text, text)


def test_text_may_be_quoted_as_in_yaml():
    assert parse_settings({}, ["video.prompt='no'"]).video.prompt == "no"
    assert parse_settings({}, ['video.prompt=" a room "']).video.prompt == " a room "


def test_choices_that_yaml_takes_for_booleans(tmp_path):
    assert resolve_train_settings("tiny", ["precision=no"]).precision == "no"
    (tmp_path / "mine.yaml").write_text("precision: no\nmodel: 0815\n")
    settings = load_train_settings(tmp_path / "mine.yaml", {})
    assert (settings.precision, settings.model) == ("no", "0815")


def test_files_are_read_alike(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "\ufeffseed: 3\nvideo: {prompt: off, structure: off}\nviews: {crop: [256, 320], split: 1_0}\n", encoding="utf-8"
    )
    settings = load_settings(file)
    assert (settings.seed, settings.video.prompt, settings.video.structure) == (3, "off", False)
    assert (settings.views.crop, settings.views.split) == ((256, 320), "1_0")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("views.crop=[64, 96]", (64, 96)),
        ("views.crop=null", None),
        ("splats.steps=1_000", 1000),
        ("splats.steps=010", 10),
        ("splats.l1_weight=1e-4", 1e-4),
        ("splats.fill=off", False),
        ("confidence.enabled=True", True),
        ("seed=5", 5),
    ],
)
def test_other_values_are_read_by_their_type(override, expected):
    assert flatten(parse_settings({}, [override]).model_dump())[override.partition("=")[0]] == expected


@pytest.mark.parametrize(
    "override", ["splats.steps=on", "splats.steps=1:30", "views.crop=[64", "splats.steps=", "splats.fill=maybe"]
)
def test_what_is_no_such_value_is_a_sentence(override):
    with pytest.raises(UserError, match=override.partition("=")[0].rpartition(".")[2]):
        parse_settings({}, [override])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("splats: 5", r"'splats' should be \{KEY: VALUE\}, with KEY one of backend, .*, but is '5'\.$"),
        ("seed: 1\na: b: c", r"Cannot read the settings in .*, line 2: mapping values are not allowed here\.$"),
        ("a: *b", r"line 1: found undefined alias 'b'\.$"),
        ("- x", "should hold sections of settings"),
    ],
)
def test_files_that_hold_something_else_are_one_sentence(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load_settings(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("views.crop=[1,2]", "'views.crop.0' should be at least 16"),
        ("views.crop=[-1,500]", "at least 16"),
        ("views.crop=5", r"'views.crop' should be two whole numbers, such as \[128, 256\], or null, but is '5'"),
        ("views.crop=[100,200,300]", "should be two whole numbers"),
        ("views.size=big", "'views.size' should be a whole number, but is 'big'"),
        ("condition.frames_beyond=x", "should be a whole number or null, but is 'x'"),
        ("condition.sway=inf", "finite number"),
        ("condition.sway=1e23", "at most 10"),
        ("splats.l1_weight=1e400", "finite number"),
        ("splats.frame_weight=nan", "finite number"),
        ("splats.l1_weight=1e23", "should be at most 1,000,000,000"),
        ("splats.steps=99999999999999999999999", r"'splats.steps' should be at most 1,000,000,000"),
        ("splats.lpips_crop=5", "'splats.lpips_crop' should be 0 or at least 32"),
    ],
)
def test_numbers_that_nothing_can_be_done_with(override, words):
    with pytest.raises(UserError, match=words):
        parse_settings({}, [override])


def test_a_seed_may_be_any():
    assert parse_settings({}, [f"seed={2**62}"]).seed == 2**62


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"splats:\n  steps: 5\n  steps: 7", "line 3: 'steps' is there twice"),
        (b"splats: 5\x00", "it is no YAML"),
        (3000 * b"[", "it is no YAML"),
    ],
    ids=["a key twice", "a null byte", "deeply nested"],
)
def test_files_that_are_no_settings(tmp_path, text, words):
    (tmp_path / "mine.yaml").write_bytes(text)
    with pytest.raises(UserError, match=words) as error:
        load_settings(tmp_path / "mine.yaml")
    assert "\n" not in str(error.value)
