"""The mesh of a scene whose Gaussians lie exactly on known surfaces."""

import io
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from exact_scene import room, room_depth, room_pointmaps, shoot
from export_scene import some_cameras, some_gaussians, some_points
from rich.console import Console
from scipy.spatial import cKDTree

from flows.export import mesh as export_mesh
from reconx_core.errors import UserError
from reconx_core.export import write_cameras
from reconx_core.export.formats import write_gaussians
from reconx_core.export.gltf import read_glb
from reconx_core.export.mesh import Mesh, extract_mesh, mesh_bytes, render_depths
from reconx_core.export.prune import cameras_of_scene
from reconx_core.geometry.transforms import project, unproject
from reconx_core.splats.initial import gaussians_from_points
from reconx_core.types import Gaussians, Views

trimesh = pytest.importorskip("trimesh", reason="trimesh is not installed")
DETAIL = 96


@lru_cache(maxsize=1)
def exact_gaussians() -> Gaussians:
    """A small opaque one at every pixel of the photos."""
    photos, maps = room().inputs(), room_pointmaps()
    size = room_depth() / photos.cameras.intrinsics[0, 0, 0] * 0.3
    points, colours = maps.points_world.reshape(-1, 3), photos.images.reshape(-1, 3)
    return gaussians_from_points(points, colours, size.flatten(), torch.full((len(points),), 0.95), 0)


@lru_cache(maxsize=1)
def room_mesh() -> Mesh:
    return extract_mesh(exact_gaussians(), cameras_of_scene(room().inputs().cameras, 6), DETAIL)


def cell() -> float:
    return float((room_mesh().vertices.max(0).values - room_mesh().vertices.min(0).values).max()) / DETAIL


def to_true_depth(points: torch.Tensor) -> torch.Tensor:
    """Distance along the axis of the camera in which it is least, to what that sees there; infinite where no camera does."""
    cameras, depth = room().inputs().cameras, room_depth()
    pixels, z = project(points, cameras.intrinsics, cameras.world_to_cam)
    inside = (pixels >= 0).all(-1) & (pixels < torch.tensor([160, 120])).all(-1) & (z > 0)
    grid = (pixels / torch.tensor([160, 120]) * 2 - 1)[:, None]
    seen = 1 / F.grid_sample(1 / depth[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]
    return torch.where(inside, (z - seen).abs(), torch.inf).min(0).values


def test_the_mesh_lies_on_the_true_surfaces():
    """Its vertices, by the true depth where they are seen; and vertices, where the photos see a surface."""
    mesh, cameras = room_mesh(), room().inputs().cameras
    off = to_true_depth(mesh.vertices)
    assert off.isfinite().float().mean() > 0.95
    assert off[off.isfinite()].quantile(0.5) < 0.2 * cell()
    assert off[off.isfinite()].quantile(0.9) < cell()
    true = unproject(room_depth(), cameras).reshape(-1, 3)
    missed, _ = cKDTree(mesh.vertices.numpy()).query(true[::7].numpy())
    assert (torch.from_numpy(missed) < 2 * cell()).float().mean() > 0.85


def test_faces_look_at_the_cameras():
    mesh, position = room_mesh(), room().inputs().cameras.cam_to_world[0, :3, 3]
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    outward = torch.linalg.cross(b - a, c - a)
    assert ((outward * (position - a)).sum(-1) > 0).float().mean() > 0.9


def test_vertices_have_the_colours_of_the_photos():
    mesh, photos = room_mesh(), room().inputs()
    pixels, z = project(mesh.vertices, photos.cameras.intrinsics[0], photos.cameras.world_to_cam[0])
    inside = (pixels >= 0).all(-1) & (pixels < torch.tensor([160, 120])).all(-1) & (z > 0)
    x, y = pixels[inside].long().unbind(-1)
    visible = (z[inside] / room_depth()[0, y, x] - 1).abs() < 0.03
    error = (mesh.colours[inside][visible] - photos.images[0, y[visible], x[visible]]).abs().mean(-1)
    assert error.median() < 0.05


@pytest.mark.parametrize("ending", [".ply", ".glb"])
def test_trimesh_opens_it(ending):
    mesh = room_mesh()
    data = mesh_bytes(mesh, ending)
    assert data == mesh_bytes(mesh, ending)
    opened = trimesh.load(io.BytesIO(data), file_type=ending[1:], process=False, force="mesh")
    axes = torch.tensor([-1, -1, 1]) if ending == ".glb" else 1
    torch.testing.assert_close(torch.tensor(opened.vertices).float(), mesh.vertices * axes)
    assert torch.equal(torch.tensor(opened.faces), mesh.faces)
    if ending == ".ply":
        assert torch.equal(torch.tensor(opened.visual.vertex_colors[:, :3].copy()), (mesh.colours * 255).round().byte())
    else:
        content, _ = read_glb(data)
        assert content["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}


def test_depth_between_two_surfaces_is_not_believed():
    seen = render_depths(exact_gaussians(), room().inputs().cameras)
    true = shoot(room().inputs().cameras)[1]
    sure = seen.confidence > 0.5
    assert sure.float().mean() > 0.7
    assert ((seen.depth / true - 1).abs()[sure] < 0.03).float().mean() > 0.97


def test_thin_scenes_and_empty_views_are_a_sentence():
    scene = some_gaussians(0)
    fog = Gaussians(scene.means, scene.quats, scene.log_scales, torch.full((400,), -6.0), scene.sh)
    with pytest.raises(UserError, match="No surface is seen in the scene"):
        extract_mesh(fog, some_cameras(), 32)


def test_the_command_writes_it(tmp_path):
    photos = room().inputs()
    views = Views(photos.images, photos.masks, photos.names, photos.is_target, None, photos.focal_prior)
    write_cameras(tmp_path / "cameras", photos.cameras, views, some_points())
    write_gaussians(tmp_path / "scene.ply", exact_gaussians())
    console = Console(file=io.StringIO(), width=300)
    with pytest.raises(UserError, match=r"should end in \.ply or \.glb for a mesh"):
        export_mesh(tmp_path, tmp_path / "new" / "mesh.obj", console)
    assert not (tmp_path / "new").exists()
    export_mesh(tmp_path, tmp_path / "mesh.glb", console, detail=32)
    assert "triangles in" in console.file.getvalue()
    assert (tmp_path / "mesh.glb").read_bytes()[:4] == b"glTF"
    (tmp_path / "cameras" / "transforms.json").unlink()
    with pytest.raises(UserError, match="A mesh needs the scene's cameras"):
        export_mesh(tmp_path, tmp_path / "mesh.glb", console)
