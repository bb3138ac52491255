"""The script for Slurm (docs/reconx.sbatch), with a shell function in place of `srun`."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import standins
from standins import write_folder

from reconx_core.settings import STAGES, Settings
from tasks.execute import uses_gpu

SCRIPT = Path(__file__).parents[3] / "docs" / "reconx.sbatch"
# Is the command, as on the one node, and gets its signals; Slurm's options are checked.
# What it starts is asked directly, whatever proxy leads out of the cluster.
SRUN = (
    '() { [ "$no_proxy $NO_PROXY" = "127.0.0.1,.intern 127.0.0.1,.intern" ] || exit 8; '
    '[ "$1 $2" = "--ntasks-per-node=1 --export=ALL" ] || exit 9; shift 2; exec "$@"; }'
)


def test_the_shell_understands_it_and_so_does_sbatch():
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True).stderr == ""
    lines = SCRIPT.read_text().splitlines()
    options = [number for number, line in enumerate(lines) if line.startswith("#SBATCH ")]
    first_command = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[0] == "#!/bin/bash"
    assert options
    assert max(options) < first_command, "Slurm reads no further"


def test_outside_of_slurm_it_says_so(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_JOB_ID"}
    done = subprocess.run(["bash", SCRIPT, "data"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "submit this by sbatch" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow  # a scheduler and two workers of their own
def test_it_evaluates_with_a_worker_per_gpu_and_others_and_leaves_nothing_running(server, tmp_path):
    for name in ("attic", "den"):
        write_folder(tmp_path / "data" / name)
    log = tmp_path / "log"
    environment = {
        **os.environ, "no_proxy": ".intern", "http_proxy": "http://127.0.0.1:9",
        "SLURM_JOB_ID": "7", "SLURM_NNODES": "1", "GPUS": "1", "CPU_WORKERS": "1", "LEADER": "127.0.0.1",
        "BASH_FUNC_srun%%": SRUN, "PYTHON": sys.executable, "DASK": f"{sys.executable} -m dask",
        "RECONX": f"{sys.executable} {standins.__file__}", "RECONX_TEST_LOG": str(log), "CUDA_VISIBLE_DEVICES": "5",
        "DASK_DISTRIBUTED__WORKER__PRELOAD": f"['{standins.__file__}']", "RECONX_TEST_WORKER": "",
    }  # fmt: skip
    command = ["bash", SCRIPT, str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--store", str(tmp_path / "store")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "den" / "scene.ply").exists()
    assert Counter(log.read_text().split()) == dict.fromkeys(STAGES, 2)
    assert {uses_gpu(stage, Settings()) for stage in STAGES} == {True, False}
    assert not (tmp_path / ".reconx-7").exists()
    assert subprocess.run(["pgrep", "-f", str(tmp_path / ".reconx-7")], capture_output=True, text=True).stdout == ""
