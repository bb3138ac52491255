"""Mistakes on the command line are one line, told before anything heavy is loaded, and leave nothing behind."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows import cli
from flows.evaluate import results_folder
from reconx_core.errors import UserError
from reconx_core.io.files import as_it_was
from reconx_core.io.images import write_png


@pytest.fixture
def error_of(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reconx", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert (end.value.code, captured.out, captured.err.count("\n")) == (2, "", 1), captured
        return captured.err

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reconstruct"], "Missing argument 'PHOTOS...'; see: reconx reconstruct --help"),
        (["evaluate", "x", "--nope"], "No such option: --nope"),
        (["render", "x", "--frames", "many"], "'--frames': it should be a whole number; see: reconx render --help"),
        (["render", "x", "--frames", "0"], "it should be at least 1"),
        (["reconstruct", "x", "-S"], "Option '-S' requires an argument; see: reconx reconstruct --help"),
        (["statu"], "Did you mean 'status'"),
        (["weights", "fetchh"], "See: reconx weights --help"),
        (["reconstruct", "x", "-S", "views.crop=5"], "'views.crop' should be two whole numbers, such as [128, 256], or null"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(error_of, arguments, words):
    said = error_of(*arguments)
    assert said.startswith("reconx: ")
    assert words in said


def test_mistakes_are_told_before_anything_heavy_is_loaded(tmp_path):
    """In a process of its own, which says what it has imported."""
    write_png(tmp_path / "one" / "a.png", torch.zeros(12, 16, 3))
    (tmp_path / "empty").mkdir()
    for folder in ("attic", "cellar"):
        for name in "ab":
            write_png(tmp_path / "data" / folder / f"{name}.png", torch.zeros(12, 16, 3))
    wrong = {
        ("reconstruct", "empty"): "There are no photos in 'empty'",
        ("reconstruct", "one"): "holds a single photo; at least two photos",
        ("reconstruct", "one/a.png"): "is a single photo; give a folder of photos, several photos, or a video.",
        ("reconstruct", "one/a.png", "empty"): "'empty' is a folder, which goes alone",
        ("evaluate", "data", "--scenes", "atic"): "has no scene 'atic'; it has attic, cellar.",
    }
    code = (
        "import sys\nfrom flows import cli\nfor line in sys.stdin:\n    sys.argv = ['reconx', *line.split()]\n"
        "    try:\n        cli.main()\n    except SystemExit as end:\n        print(end.code)\n"
        "print([name for name in ('torch', 'scipy', 'prefect', 'mlflow') if name in sys.modules])"
    )
    lines = "".join(f"{' '.join(arguments)} -o new/out --store store\n" for arguments in wrong)
    root = str(Path(cli.__file__).parents[1])
    end = subprocess.run(
        [sys.executable, "-c", code], input=lines, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": root}
    )
    assert end.stdout == "2\n" * len(wrong) + "[]\n"
    assert all(sentence in said for sentence, said in zip(wrong.values(), end.stderr.splitlines(), strict=True)), end.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"one", "empty", "data"}


def spoil(folder, begun):
    with as_it_was(folder, ("request.json",)) as keep:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "request.json").write_text("after")
        if begun:
            keep()
        raise UserError("No.")


def test_a_folder_of_before_stays_as_it_was(tmp_path):
    (tmp_path / "request.json").write_text("before")
    for folder in (tmp_path, tmp_path / "new" / "deep"):
        with pytest.raises(UserError):
            spoil(folder, begun=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["request.json"]
    assert (tmp_path / "request.json").read_text() == "before"


def test_what_has_begun_is_kept(tmp_path):
    with pytest.raises(UserError):
        spoil(tmp_path / "new", begun=True)
    assert (tmp_path / "new" / "request.json").read_text() == "after"


def test_no_folder_of_runs_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError), results_folder(None, "data"):
        raise UserError("No.")
    assert not list(tmp_path.iterdir())
