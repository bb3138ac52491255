"""The code version changes with what a stage does, and with nothing else."""

import ast
import hashlib
import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import pytest
import yaml

from reconx_core.cache.code_version import _skeleton, code_version, module_versions, reachable
from tasks.execute import PARENTS, _modules_of

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
ALL = set(PARENTS)


def skeleton(code):
    return _skeleton(ast.parse(code))


def test_comments_docstrings_and_formatting_do_not_count():
    plain = "def f(x):\n    return x + 1\n\nclass A:\n    y = 2\n"
    dressed = (
        '"""Module."""\ndef f(x):\n    """Adds."""\n    # one\n    return (\n        x+1\n    )\n\n'
        'class A:\n    """An A."""\n    y = 2\n'
    )
    assert skeleton(plain) == skeleton(dressed)
    assert skeleton("") == skeleton('"""Module."""')
    assert skeleton("class A:\n    pass") == skeleton('class A:\n    """An A."""')


@pytest.mark.parametrize(
    "other", ["def f(x):\n    return x + 2", "def f(y):\n    return y + 1", "def f(x=1):\n    return x + 1"]
)
def test_behaviour_counts(other):
    assert skeleton("def f(x):\n    return x + 1") != skeleton(other)


def test_a_string_that_is_no_docstring_counts():
    assert len({skeleton(f"x = {value}") for value in ("'a'", "'b'", "''", "None", "[]", "f''", "f'{y}'", "f'{y}a'")}) == 8


def test_a_skeleton_is_the_same_under_every_version_of_python():
    """The number was computed under 3.11.7, 3.12.1 and 3.13.0. Another one makes every store's entries unknown."""
    tree = ast.parse((HERE / "syntax.txt").read_text(encoding="utf-8"))
    digest = hashlib.sha256(_skeleton(tree).encode()).hexdigest()
    assert digest == "5627d688e4fe4b512979836852976692820b32a3f4b6c65f107430a7a5c27e08"


def test_the_sample_holds_every_kind_of_statement_expression_pattern_and_operator():
    with warnings.catch_warnings(action="ignore"):  # of names that Python is about to drop
        groups = (ast.stmt, ast.expr, ast.pattern, ast.operator, ast.unaryop, ast.boolop, ast.cmpop)
        kinds = {kind.__name__ for group in groups for kind in group.__subclasses__()}
    used = {type(node).__name__ for node in ast.walk(ast.parse((HERE / "syntax.txt").read_text(encoding="utf-8")))}
    assert kinds - used <= {"TypeAlias", "TemplateStr", "Interpolation"}  # newer than 3.11


@pytest.mark.parametrize("stage", PARENTS)
def test_a_stage_covers_these_modules_and_no_others(stage):
    """Where this fails, look whether the stage's result depends on the module, and edit covered.yaml if so."""
    listed = yaml.safe_load((HERE / "covered.yaml").read_text())[stage]
    places = {f"{folder}/{name}.py" for folder, names in listed.items() for name in names.split()}
    assert set(module_versions(*_modules_of(stage))) == places


def test_version_differs_between_stages():
    assert len({code_version(*_modules_of(stage)) for stage in PARENTS}) == len(PARENTS)


def test_late_imports_inside_functions_are_followed():
    assert "reconx_core.pointcloud.backends.vggt" in reachable(("reconx_core.pointcloud",))


def test_what_a_model_names_is_imported_by_its_pipeline():
    index = json.loads((ROOT / "reconx_core" / "video" / "reconx-tiny" / "model_index.json").read_text())
    named = {value[0] for value in index.values() if isinstance(value, list) and str(value[0]).startswith("reconx_core.")}
    assert named
    assert named <= reachable(_modules_of("video"))


# --- edits of a copy ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copy")
    for name in ("reconx_core", "tasks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "reconx-tiny"))
    return folder


@pytest.fixture(scope="module")
def before(copy):
    return versions_in(copy)


def versions_in(folder):
    """The code version of every stage, as the copy's own code takes it."""
    copied = load(folder)
    return {stage: copied.code_version(*_modules_of(stage)) for stage in PARENTS}


def load(folder):
    """The module code_version of a copy, with nothing read yet."""
    spec = importlib.util.spec_from_file_location("copied_code_version", folder / "reconx_core" / "cache" / "code_version.py")
    copied = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copied)
    return copied


@pytest.fixture
def edit(copy, before):
    """Edits a file of the copy and returns the stages whose code version changes; the edit is undone at the end."""
    kept = {}

    def edit(place, old, new):
        file = copy / "reconx_core" / place
        kept[file] = text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        after = versions_in(copy)
        return {stage for stage in PARENTS if after[stage] != before[stage]}

    yield edit
    for file, text in kept.items():
        file.write_text(text)


@pytest.mark.long
def test_a_copy_has_the_same_code_versions(before):
    assert before == {stage: code_version(*_modules_of(stage)) for stage in PARENTS}


@pytest.mark.long
def test_a_release_leaves_every_stage_as_it_is(edit):
    assert edit("version.py", '__version__ = "', '__version__ = "9.') == set()


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "old", "new", "changed"),
    [
        ("video/checkpoints/convert.py", "BUFFER_TOLERANCE = 1e-5", "BUFFER_TOLERANCE = 1e-4", set()),
        ("video/checkpoints/parts.py", '"timesteps": 1000', '"timesteps": 999', set()),
        ("video/checkpoints/verify.py", '"AutoencoderKL": "diffusers"', '"AutoencoderKL": "else"', set()),
        ("pointcloud/networks/convert.py", "non-commercial", "commercial", set()),
        ("pointcloud/networks/verify.py", "pixels", "px", set()),
        ("weights/writing.py", "free < needed", "free <= needed", set()),
        ("weights/records.py", "fetched.json", "record.json", set()),
        ("settings.py", "ge=64", "ge=32", set()),
        ("pointcloud/networks/checkpoints.py", "enc_blocks.", "blocks.", {"pointcloud", "confidence", "join", "clip"}),
        ("weights/files.py", '".pt"', '".bin"', {"pointcloud", "confidence", "join", "clip"}),
        ("losses/lpips.py", "SHIFT, SCALE = (-0.030", "SHIFT, SCALE = (-0.031", {"splats", "metrics"}),
        ("video/diffusion/unet.py", "return ", "return None and ", {"video"}),
        ("video/clip.py", "POINTS = 8192", "POINTS = 4096", {"video", "clip"}),
        ("seeds.py", ">> 1", ">> 2", ALL),
        ("__init__.py", "PASSIVE", "ACTIVE", ALL),
    ],
)
def test_an_edit_changes_the_stages_that_use_it_and_no_others(edit, place, old, new, changed):
    assert edit(place, old, new) == changed


@pytest.mark.long
def test_an_edit_of_a_docstring_or_a_comment_changes_nothing(edit):
    assert edit("types.py", '"""', '"""Else: ') == set()
    assert edit("io/images.py", "\nimport ", "\n# Else.\nimport ") == set()


# --- a small project ---------------------------------------------------------------------------------------------------


def test_of_a_package_that_is_only_passed_through_late_imports_do_not_count(tmp_path):
    project = {
        "__init__.py": "",
        "a/__init__.py": "from . import early\n\ndef f():\n    from reconx_core import late",
        "a/b.py": "",
        "a/early.py": "",
        "late.py": "",
        "passes.py": "from reconx_core.a.b import x",
        "uses.py": "from reconx_core.a import f",
        "uses_by_name.py": "import reconx_core.a.b",
        "cache/code_version.py": (ROOT / "reconx_core" / "cache" / "code_version.py").read_text(),
    }
    for place, text in project.items():
        file = tmp_path / "reconx_core" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def reached(module):
        found = load(tmp_path).reachable((f"reconx_core.{module}",)) - {"reconx_core", f"reconx_core.{module}"}
        return {name.removeprefix("reconx_core.") for name in found}

    assert reached("passes") == {"a", "a.b", "a.early"}
    assert reached("uses") == {"a", "a.early", "late"}
    assert reached("uses_by_name") == {"a", "a.b", "a.early", "late"}


@pytest.mark.parametrize("kept", [b"", b"{", b"null", b"[1]"])
def test_what_was_remembered_of_a_file_is_what_parsing_it_gives(monkeypatch, tmp_path, kept):
    from reconx_core.cache import code_version as module

    monkeypatch.setenv("HOME", str(tmp_path))
    parsed = module._parsed.__wrapped__("reconx_core.types")
    (entry,) = (tmp_path / ".cache" / "reconx" / "code").iterdir()
    assert module._parsed.__wrapped__("reconx_core.types") == parsed
    entry.write_bytes(kept)
    assert module._parsed.__wrapped__("reconx_core.types") == parsed
    monkeypatch.delenv("HOME")
    assert module._parsed.__wrapped__("reconx_core.types") == parsed
