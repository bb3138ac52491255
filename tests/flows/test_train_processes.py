"""Two processes, started as a user starts them, train what one process does on batches of twice the size."""

import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from flows.train import resolve_train_settings, train
from reconx_core.errors import UserError
from reconx_core.training.processes import join_processes

pytestmark = pytest.mark.long

DATA = "[{path: 'procedural:hall?seed=1..2&views=2&targets=2&arc=8&width=64&height=64', frames: 4}]"
SMALL = ["frames=4", "size=64", "crop=[64, 64]", "warmup=0", "decay=false", "points=64", f"data={DATA}", "validation=[]"]
SMALL += ["learning_rate=1e-4", "sample_every=9", "checkpoint_every=1"]
# As for GPUs: with --cpu, accelerate starts one process alone.
LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]


def alone(folder, *changes):
    console = Console(file=io.StringIO())
    train(resolve_train_settings("tiny", [*SMALL, *changes]), folder, folder.parent / "store", console)


def together(folder, *changes):
    options = [word for change in (*SMALL, *changes) for word in ("-S", change)]
    where = ["-o", str(folder), "--store", str(folder.parent / "store")]
    command = [sys.executable, *LAUNCH, "-m", "flows.cli", "train", "tiny", *where, *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(server, tmp_path):
    """Both go on from the same checkpoint."""
    alone(tmp_path / "one", "batch=2", "steps=1")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    alone(tmp_path / "one", "batch=2", "steps=2")
    made = together(tmp_path / "two", "batch=1", "steps=2")
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stdout.count("The model is in") == 1, "one process speaks"
    last = [tmp_path / name / "checkpoints" / "000002" for name in ("one", "two")]
    a, b = (load_file(folder / "model.safetensors") for folder in last)
    assert a.keys() == b.keys()
    # Adam's first steps go by the sign of a gradient, and that of one which is all rounding may be either.
    differing = sum(int(((a[name] - b[name]).abs() > 1e-6).sum()) for name in a)
    assert differing < 1e-3 * sum(value.numel() for value in a.values())
    states = [torch.load(folder / "optimizer.bin", weights_only=False)["state"] for folder in last]
    assert {int(state["step"]) for state in states[1].values()} == {2}
    gradients, others = (torch.cat([state["exp_avg"].flatten() for state in states_of.values()]) for states_of in states)
    assert (gradients - others).abs().max() < 1e-3 * gradients.abs().max()
    progress = [json.loads((folder / "progress.json").read_text()) for folder in last]
    assert [one["clips_per_update"] for one in progress] == [2, 2]


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UserError, match="torchrun"):
        join_processes()
