"""What a cache key holds of libraries, rasteriser and device: all that the stage computes with, and nothing else."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from reconx_core.cache import code_version
from reconx_core.settings import STAGES, parse_settings
from reconx_core.video import BACKENDS as VIDEO
from tasks import execute, machine
from tasks.execute import PARENTS, _modules_of, environment_of, on_machine, unused_modules


@pytest.fixture
def settings():
    return parse_settings({"pointcloud": {"backend": "classical"}, "video": {"backend": "points"}})


@pytest.fixture
def keys(tmp_path, settings):
    """The environment of every stage, with settings changed as ``-S`` changes them."""

    def taken(*overrides):
        machine.versions.cache_clear()
        changed = parse_settings(settings.model_dump(), list(overrides))
        return {stage: environment_of(stage, changed, tmp_path) for stage in STAGES}

    yield taken
    machine.versions.cache_clear()


@pytest.fixture
def with_gpu(monkeypatch):
    """``with_gpu("12.6", gsplat=True)``: as if there were one, with or without gsplat."""

    def put(cuda, gsplat):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "cuda", cuda)
        found = object() if gsplat else None
        monkeypatch.setattr("reconx_core.rasterize.importlib.util.find_spec", lambda name: found)
        monkeypatch.setattr(machine, "installed", lambda name: "1.5.3" if name == "gsplat" else version(name))

    return put


def changed(before, after):
    return {stage for stage in before if before[stage] != after[stage]}


@pytest.mark.parametrize(
    ("library", "stages"),
    [
        ("torch", set(STAGES)),
        ("pillow", {"views", "pointcloud", "confidence", "metrics"}),
        ("pycolmap", {"views", "pointcloud", "confidence"}),
        ("numba", {"pointcloud", "condition", "confidence", "splats", "metrics"}),
        ("scikit-image", {"metrics"}),
        ("diffusers", set()),
        ("transformers", set()),
        ("safetensors", set()),
        ("pydantic", set()),
        ("zarr", set()),
    ],
)
def test_a_library_counts_for_the_stages_that_compute_with_it(keys, monkeypatch, library, stages):
    before = keys()
    monkeypatch.setattr(machine, "installed", lambda name: "99.0" if name == library else version(name))
    assert changed(before, keys()) == stages


def test_optional_libraries_count_where_the_settings_choose_them(keys, monkeypatch):
    monkeypatch.setattr("tasks.execute.weights_digests", lambda *_: {})
    networks = {"diffusers", "transformers"}
    assert not networks & set(keys()["video"]["libraries"])
    assert networks <= set(keys("video.backend=reconx-tiny")["video"]["libraries"])
    assert networks & set(keys("video.backend=wan-vace")["video"]["libraries"])


def test_a_path_files_content_counts_and_its_place_does_not(keys, tmp_path):
    """Nor do the libraries that read one, where there is none to read."""
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text("{}")
    two.write_text("{}")
    before = keys(f"condition.path={one}")
    assert changed(before, keys(f"condition.path={two}")) == set()
    assert changed(before, keys("condition.path=orbit")) == {"condition"}
    assert "pycolmap" in before["condition"]["libraries"]
    two.write_text("{ }")
    assert changed(before, keys(f"condition.path={two}")) == {"condition"}


def test_every_library_that_a_stage_reaches_has_a_version_or_is_known_not_to_compute():
    for stage in PARENTS:
        names = code_version.libraries(_modules_of(stage))
        counted = machine.versions(_modules_of(stage))
        assert len(counted) == len(names - machine._NOT_COMPUTING - machine._BY_RASTERIZER), stage


def test_modules_that_are_left_out_by_the_settings_are_there_to_be_left_out():
    """A backend that moves would count for all."""
    left_out = {name for backend in VIDEO for name in unused_modules("video", parse_settings({"video": {"backend": backend}}))}
    assert left_out == {f"reconx_core.video.backends.{name}" for name in ("learned", "wan_vace")}
    left_out |= set(unused_modules("condition", parse_settings({})))
    assert all(code_version._locate(name) is not None for name in left_out)


def test_a_rasteriser_that_fell_back_shares_no_key_with_gsplat(keys, with_gpu):
    """On one and the same GPU: it is the rasteriser that differs, not the device."""
    with_gpu("12.6", gsplat=False)
    fallen_back = keys()
    with_gpu("12.6", gsplat=True)
    resolved = keys()
    assert changed(fallen_back, resolved) == {"splats", "metrics"}
    assert (fallen_back["splats"]["rasterizer"], resolved["splats"]["rasterizer"]) == ("cpu", "gsplat 1.5.3")
    assert fallen_back["splats"]["device"] == resolved["splats"]["device"]
    assert changed(fallen_back, keys("splats.backend=cpu")) == {"splats", "metrics"}  # metrics resolves `auto`
    assert keys("splats.backend=gsplat")["splats"]["rasterizer"] == "gsplat 1.5.3"


def test_builds_of_pytorch_count_on_a_gpu_alone(keys, with_gpu, monkeypatch):
    monkeypatch.setattr(machine, "installed", lambda name: "2.12.0+cpu" if name == "torch" else version(name))
    before = keys()
    monkeypatch.setattr(machine, "installed", lambda name: "2.12.0+cu126" if name == "torch" else version(name))
    assert keys() == before
    with_gpu("12.6", gsplat=True)
    one = keys("video.backend=points")
    with_gpu("13.0", gsplat=True)
    assert changed(one, keys("video.backend=points")) == {"splats", "metrics"}
    assert (before["splats"]["device"], one["splats"]["device"]) == ("cpu", "cuda 12.6")


def test_a_library_that_is_upgraded_during_a_run_does_not_change_its_keys(keys, monkeypatch):
    machine.installed.cache_clear()
    before = keys()
    monkeypatch.setattr(machine, "version", lambda name: "99.0")
    assert keys() == before


def test_what_a_worker_on_another_machine_made_is_found(keys, with_gpu, tmp_path, settings):
    """By a head without a GPU: the traits of the machines that computed are left in the store."""
    head = keys()
    with_gpu("12.6", gsplat=True)
    worker = keys()
    machine.note_machine(tmp_path)
    machine.note_machine(tmp_path)
    (traits,) = machine.known_machines(tmp_path)
    assert {stage: on_machine(head[stage], stage, settings, traits) for stage in STAGES} == worker
    (note,) = (tmp_path / machine.MACHINES).iterdir()
    for content in (b"{", b"[1]", b"{}"):
        note.write_bytes(content)
        assert machine.known_machines(tmp_path) == []


def test_a_worker_with_other_versions_is_named():
    from flows.execution.dask_cluster import Preparation
    from reconx_core.errors import UserError

    here = execute.versions_of(["splats"])

    def prepared(versions):
        return Preparation("", Path(), {}, {"splats": "code"}, None, 0.0, versions)

    prepared(here).require_versions("tcp://a:1")
    with pytest.raises(UserError, match=rf"has numba {here['numba']} instead of 0\.1; .*install the same versions"):
        prepared(here | {"numba": "0.1"}).require_versions("tcp://a:1")
    with pytest.raises(UserError, match=r"has warp none instead of 1\.0"):
        prepared(here | {"warp": "1.0"}).require_versions("tcp://a:1")


@pytest.mark.long
def test_versions_are_read_without_importing_the_libraries():
    """A start must not pay for transformers to know its version."""
    code = """
import sys
from tasks.machine import machine
assert "transformers" in machine()
print([name for name in ("transformers", "diffusers", "skimage", "pycolmap") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"
