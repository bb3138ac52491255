"""The public function: edge cases, threads, autograd bookkeeping, choice of the backend."""

import hashlib
import os
import subprocess
import sys
import threading

import pytest
import torch
from scenes import blobs, leaves, orbit, pull

from reconx_core.errors import UserError
from reconx_core.rasterize import BACKENDS, rasterize, resolve_backend
from reconx_core.types import Cameras, Gaussians


def optimise_step(gaussians, cameras):
    """Images and gradients, as bytes."""
    *fields, cam_to_world = parameters = leaves(gaussians, cameras)
    cameras = Cameras(cameras.intrinsics, cam_to_world, cameras.width, cameras.height)
    rendering = rasterize(Gaussians(*fields), cameras, backend="cpu")
    pull(rendering).backward()
    tensors = [*rendering, *(parameter.grad for parameter in parameters)]
    return b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)


def test_empty_scene_shows_the_background():
    *fields, _ = leaves(blobs(0), orbit(1, 20, 20))
    rendering = rasterize(Gaussians(*fields), orbit(2, 20, 17), backend="cpu", background=torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(rendering.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(2, 17, 20, 3))
    assert rendering.alpha.abs().max() == rendering.depth.abs().max() == 0
    pull(rendering).backward()
    assert fields[4].grad.shape == (0, 16, 3)


def test_gaussians_behind_or_beside_the_camera_are_not_drawn():
    behind, beside = blobs(50, 1), blobs(50, 1)
    behind.means[:, 2] *= -1
    beside.means[:, 0] += 100
    *fields, _ = leaves(
        Gaussians(*(torch.cat(pair) for pair in zip(vars(behind).values(), vars(beside).values()))), orbit(1, 9, 9)
    )
    rendering = rasterize(Gaussians(*fields), orbit(1, 40, 40), backend="cpu")
    assert rendering.alpha.max() == 0
    pull(rendering).backward()
    assert all(field.grad.abs().max() == 0 for field in fields)


def test_no_camera():
    rendering = rasterize(blobs(10), orbit(2, 20, 30)[:0], backend="cpu")
    assert rendering.rgb.shape == (0, 30, 20, 3)


def test_broken_gaussians_are_left_out():
    """NaN and infinity in any field neither crash nor spread into the image."""
    whole, broken = blobs(100, 0), blobs(100, 0)
    for i, value in enumerate((float("nan"), float("inf"), -float("inf"))):
        broken.means[i], broken.log_scales[10 + i], broken.quats[20 + i] = value, abs(value), value
    broken.quats[30] = 0
    keep = torch.tensor([i for i in range(100) if i not in (0, 1, 2, 10, 11, 12, 20, 21, 22, 30)])
    alone = Gaussians(*(field[keep] for field in vars(whole).values()))
    images = [rasterize(gaussians, orbit(1, 50, 40), backend="cpu").rgb for gaussians in (broken, alone)]
    assert torch.equal(*images)


def test_only_what_needs_a_gradient_gets_one():
    *fields, cam_to_world = leaves(blobs(50, 1), orbit(1, 20, 20))
    for field in fields:
        field.requires_grad_(False)
    cameras = Cameras(orbit(1, 20, 20).intrinsics, cam_to_world, 20, 20)
    rasterize(Gaussians(*fields), cameras, backend="cpu").rgb.sum().backward()
    assert cam_to_world.grad.abs().max() > 0
    assert fields[0].grad is None


def test_several_forward_passes_alive_at_once():
    gaussians, cameras = blobs(300, 1), orbit(3, 40, 30)
    alone = []
    for i in range(3):
        *fields, _ = leaves(gaussians, cameras)
        pull(rasterize(Gaussians(*fields), cameras[[i]], backend="cpu")).backward()
        alone.append([field.grad for field in fields])
    *fields, _ = leaves(gaussians, cameras)
    alive = [pull(rasterize(Gaussians(*fields), cameras[[i]], backend="cpu")) for i in range(3)]
    for i in (1, 2, 0):
        gradients = torch.autograd.grad(alive[i], fields)
        assert all(torch.equal(one, other) for one, other in zip(gradients, alone[i]))


def test_change_in_place_before_the_backward_pass_is_refused():
    *fields, _ = leaves(blobs(50, 1), orbit(1, 20, 20))
    loss = pull(rasterize(Gaussians(*fields), orbit(1, 20, 20), backend="cpu"))
    with torch.no_grad():
        fields[0] += 1
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_inputs_need_not_be_contiguous():
    gaussians, cameras = blobs(100, 1), orbit(1, 40, 30)
    strided = Gaussians(*(field.repeat_interleave(2, 0)[::2] for field in vars(gaussians).values()))
    assert torch.equal(rasterize(gaussians, cameras, backend="cpu").rgb, rasterize(strided, cameras, backend="cpu").rgb)


SCRIPT = """
import hashlib, numba
from scenes import blobs, orbit
from test_rasterize import optimise_step
for threads in range(1, 5):
    numba.set_num_threads(threads)
    print(hashlib.sha256(optimise_step(blobs(3000, 2), orbit(2, 100, 70))).hexdigest())
"""


def run_python(script, **environment):
    """A fresh interpreter that can import these tests."""
    path = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)


THREADS = """
import threading
results = []
def work():
    results.append([optimise_step(blobs(500, 1), orbit(1, 60, 60)) for _ in range(5)])
threads = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
print(len(results), len({step for steps in results for step in steps}))
"""

FORK = """
import os, sys
from reconx_core.errors import UserError
from reconx_core.rasterize import rasterize
sys.stdout.flush()
if os.fork() == 0:
    try:
        rasterize(blobs(10, 0), orbit(1, 20, 20), backend="cpu")
    except UserError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


def digest_of_a_step():
    return hashlib.sha256(optimise_step(blobs(3000, 2), orbit(2, 100, 70))).hexdigest()


@pytest.mark.long
def test_same_bits_for_any_number_of_threads_and_a_forked_child_is_refused():
    """Rather than hung; both in one process, for each takes seconds to start."""
    done = run_python(SCRIPT + FORK, NUMBA_NUM_THREADS="4")
    *digests, refusal = done.stdout.splitlines()
    assert digests == [digest_of_a_step()] * 4, done.stderr
    assert "'spawn'" in refusal


@pytest.mark.slow
def test_same_bits_in_the_process_that_compiles_the_kernels(tmp_path):
    """numba optimises a kernel once more for its cache; with fast-math that changed the rounding."""
    runs = [run_python(SCRIPT, NUMBA_NUM_THREADS="4", NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2)]
    assert len(set("".join(run.stdout for run in runs).split())) == 1, runs[0].stderr


@pytest.mark.long
def test_three_threads_take_turns_in_the_fallback_layer():
    """Which aborts the process where two threads enter kernels at once."""
    done = run_python(SCRIPT + THREADS, NUMBA_NUM_THREADS="4", NUMBA_THREADING_LAYER="workqueue")
    *digests, turns = done.stdout.splitlines()
    assert (done.returncode, turns) == (0, "3 1"), done.stderr
    assert digests == [digest_of_a_step()] * 4


@pytest.mark.long
def test_import_leaves_the_compiler_alone():
    done = run_python(
        "import sys, reconx_core.rasterize, reconx_core.losses.ssim; print('numba' in sys.modules, 'gsplat' in sys.modules)"
    )
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_degree_above_the_stored_is_refused():
    with pytest.raises(ValueError, match="sh_degree: expected 0 to 1, got 2"):
        rasterize(blobs(5, 1), orbit(1, 20, 20), backend="cpu", sh_degree=2)


def test_backends(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_backend("auto") == resolve_backend("cpu") == "cpu"
    with pytest.raises(UserError, match="needs a CUDA GPU"):
        resolve_backend("gsplat")
    with pytest.raises(UserError, match="no splats backend 'metal'; choose auto, cpu or gsplat"):
        resolve_backend("metal")
    assert all(info.stage == "splats" and info.name == name for name, info in BACKENDS.items())


def test_auto_takes_gsplat_where_it_can_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for found, wanted in ((object(), "gsplat"), (None, "cpu")):
        monkeypatch.setattr("importlib.util.find_spec", lambda name, found=found: found)
        assert resolve_backend("auto") == wanted
    with pytest.raises(UserError, match="needs gsplat"):
        resolve_backend("gsplat")


def test_worker_thread_gets_the_same_bits():
    """A worker thread's result is the main thread's."""
    results = []
    worker = threading.Thread(target=lambda: results.append(optimise_step(blobs(200, 1), orbit(1, 40, 40))))
    worker.start()
    worker.join()
    assert results == [optimise_step(blobs(200, 1), orbit(1, 40, 40))]
