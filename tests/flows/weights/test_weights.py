"""`reconx weights convert`: what is printed about a converted model."""

import io
import json
import sys

import pytest
import torch
from rich.console import Console
from upstream import file

from flows import cli
from flows.weights.convert import convert
from reconx_core.video.checkpoints.convert import schedule_buffers
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler


@pytest.fixture
def converted(tmp_path, monkeypatch):
    """Convert a small checkpoint without the keys that start with ``left_out``; returns what is printed."""
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))

    def run(name, left_out=(), out=None):
        path = file("pipeline_*.json")
        listed = json.loads(path.read_text())["state_dict"]
        buffers = schedule_buffers(ReconXScheduler())
        tensors = {k: buffers[k].float() if k in buffers else torch.zeros(v) for k, v in listed.items()}
        torch.save({"state_dict": {k: v for k, v in tensors.items() if not k.startswith(left_out)}}, tmp_path / name)
        printed = io.StringIO()
        convert(tmp_path / name, out, None, "float16", path, None, Console(file=printed))
        return printed.getvalue()

    return run


def test_licence_source_and_use_are_printed_golden(converted, tmp_path):
    printed = converted("ViewCrafter_25_512.ckpt")
    assert f"ViewCrafter, class 512, float16, in {tmp_path}/weights/viewcrafter_512\n" in printed
    assert "Licence: code Apache-2.0; weights tagged apache-2.0" in printed
    assert json.loads((tmp_path / "weights" / "viewcrafter_512" / "provenance.json").read_text())["sha256"] in printed
    assert "no tokenizer" in printed
    assert printed.endswith("-S video.backend=viewcrafter -S video.weights=viewcrafter_512\n")
    assert ReconXPipeline.from_pretrained(tmp_path / "weights" / "viewcrafter_512").vae.dtype == torch.float32


def test_a_pruned_checkpoint_asks_for_its_clip_golden(converted, tmp_path):
    printed = converted("dynamicrafter_512_interp_pruned.ckpt", ("cond_stage_model.", "embedder."), tmp_path / "a model")
    assert "lacks text_encoder, image_encoder, tokenizer; convert again with --clip" in printed
    assert printed.endswith(f"-S video.backend=reconx -S 'video.weights={tmp_path}/a model'\n")


def test_command_line_ends_a_mistake_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reconx", "weights", "convert", str(tmp_path / "interp.ckpt"), "--dtype", "float16"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"reconx: There is no file '{tmp_path}/interp.ckpt'; give a checkpoint")
    assert error.count("\n") == 1
