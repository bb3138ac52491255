"""Textured rooms with objects, exact cameras and depth: ``procedural:room?seed=3&views=8``.

Light and shadow are baked into the textures, so all views agree on every colour. World: metres, y down, floor at y = 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.datasets.capture import Capture, Photo, Split, pinhole
from reconx_core.datasets.procedural_spec import Spec, parse, scene_name
from reconx_core.datasets.raycast import Scene, build_scene, render
from reconx_core.datasets.solids import Solid, is_blocked, on_surface
from reconx_core.datasets.textures import (
    MATERIALS,
    Material,
    add_posters,
    bricks,
    choose,
    colour,
    marble,
    planks,
    plaster,
    tiles,
    tint,
    uniform,
)
from reconx_core.geometry.transforms import rigid
from reconx_core.seeds import generator


def read(path: Path | str) -> Capture:
    """Inputs along an arc with ``targets`` held-out views in each gap; pixels are rendered when a photo is loaded."""
    spec = parse(path)
    step = spec.targets + 1
    count = (spec.views - 1) * step + 1
    if spec.arc * (spec.views - 1) > whole_turn(count):
        less = whole_turn(count) / (spec.views - 1)
        message = f"{spec.views} views {spec.arc:g} degrees apart go round more than once; they are {less:.3g} degrees apart"
        warnings.warn(f"'{path}': {message}, once round.", stacklevel=2)
    poses = arc_cameras(count, spec)
    photos = tuple(_photo(spec, pose, f"view_{i:03d}") for i, pose in enumerate(poses))
    inputs = tuple(range(0, len(photos), step))
    split = Split(inputs, tuple(i for i in range(len(photos)) if i % step))
    return Capture(scene_name(path), photos, {"between": split}, "between")


def arc_cameras(count: int, spec: Spec) -> Float[Tensor, "count 4 4"]:
    """Cameras on an arc around the middle of the room, moving slightly up and down like a hand-held camera."""
    rng = generator(spec.seed, "procedural", "cameras")
    total = math.radians(min(spec.arc * (spec.views - 1), whole_turn(count)))
    middle, radius, height = uniform(rng, -0.4, 0.4), uniform(rng, 1.9, 2.15), uniform(rng, 1.2, 1.5)
    angle = middle + torch.linspace(-total / 2, total / 2, count)
    sway = 0.08 * torch.sin(3 * angle + uniform(rng, 0, 6))
    eyes = torch.stack([radius * angle.sin(), sway - height, -radius * angle.cos()], -1)
    return look_at(eyes, torch.tensor([0.0, -0.75, 0.25]))


def whole_turn(count: int) -> float:
    """Degrees from the first to the last of so many cameras that go all the way round, evenly."""
    return 360 * (1 - 1 / count)


def look_at(eyes: Float[Tensor, "n 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "n 4 4"]:
    """OpenCV cameras at ``eyes`` that look at ``target`` with the horizon level (world y is down)."""
    forward = F.normalize(target - eyes, dim=-1)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).expand_as(forward), forward), dim=-1)
    return rigid(torch.stack([right, torch.linalg.cross(forward, right), forward], -1), eyes)


@lru_cache(maxsize=4)
def build(name: str, seed: int) -> Scene:
    """The scene's solids with baked textures; the same for the same name and seed."""
    rng = generator(seed, "procedural", name)
    solids = tuple(ROOMS[name](rng))
    light = [(uniform(rng, -1.5, 1.5), -solids[0].half[1] * 2 + 0.25, uniform(rng, -1.5, 1.5)) for _ in range(2)]
    styles = [(choose(rng, MATERIALS), colour(rng, 0.45)) for _ in solids]
    lightmaps = _lightmaps(solids, torch.tensor(light))
    places = [(s, f) for s in range(len(solids)) for f in range(6)]
    faces = [_bake(solids[s], f, styles[s], lit, rng) for (s, f), lit in zip(places, lightmaps)]
    return build_scene(solids, faces)


def furnished_room(rng: torch.Generator) -> Iterator[Solid]:
    """A table with objects on it, a cabinet by the wall, boxes and balls on the floor."""
    room = Solid("room", (0, -1.35, 0), (uniform(rng, 2.5, 3.0), 1.35, uniform(rng, 2.6, 3.0)))
    yield room
    yaw, top = uniform(rng, -0.5, 0.5), uniform(rng, 0.6, 0.75)
    yield Solid("box", (0, -top, 0.2), (0.65, 0.03, 0.4), yaw)
    for x, z in ((-0.58, -0.33), (0.58, -0.33), (-0.58, 0.33), (0.58, 0.33)):
        leg = Solid.turn(torch.tensor([[x, 0.0, z]]), yaw)[0].tolist()
        yield Solid("box", (leg[0], -(top - 0.03) / 2, 0.2 + leg[2]), (0.03, (top - 0.03) / 2, 0.03), yaw)
    for offset in (-0.42, 0.0, 0.42):
        x, _, z = Solid.turn(torch.tensor([[offset, 0.0, uniform(rng, -0.15, 0.15)]]), yaw)[0].tolist()
        yield _random_object(rng, (x, -top - 0.03, 0.2 + z), uniform(rng, 0.09, 0.16))
    cabinet = (uniform(rng, 0.4, 0.7), uniform(rng, 0.5, 0.9), 0.22)
    yield Solid("box", (uniform(rng, -1.2, 1.2), -cabinet[1], room.half[2] - 0.25), cabinet)
    for angle in (0.6, 1.5, 2.6):
        bearing = angle + uniform(rng, -0.25, 0.25)
        yield _random_object(rng, (1.4 * math.cos(bearing), 0.0, 0.3 + 1.2 * math.sin(bearing)), uniform(rng, 0.2, 0.32))


def bare_room(rng: torch.Generator) -> Iterator[Solid]:
    """A few large objects in an empty room: the easiest scene for stereo."""
    yield Solid("room", (0, -1.35, 0), (uniform(rng, 2.5, 3.0), 1.35, uniform(rng, 2.6, 3.0)))
    for angle in (0.3, 1.3, 2.3, 3.1):
        bearing, distance = angle + uniform(rng, -0.2, 0.2), uniform(rng, 0.7, 1.2)
        yield _random_object(
            rng, (distance * math.cos(bearing), 0.0, 0.3 + distance * math.sin(bearing)), uniform(rng, 0.25, 0.45)
        )


_OBJECT_KINDS: tuple[Literal["box", "ball", "cylinder"], ...] = ("box", "ball", "cylinder")
ROOMS = {"room": furnished_room, "hall": bare_room}


def _random_object(rng: torch.Generator, foot: tuple[float, float, float], size: float) -> Solid:
    """A box, ball or cylinder that stands on the point ``foot``."""
    kind = choose(rng, _OBJECT_KINDS)
    height = size if kind == "ball" else size * uniform(rng, 0.8, 1.6)
    width = size * uniform(rng, 0.7, 1.1) if kind == "box" else size
    return Solid(kind, (foot[0], foot[1] - height, foot[2]), (width, height, size), uniform(rng, 0, 3))


def _photo(spec: Spec, pose: Float[Tensor, "4 4"], name: str) -> Photo:
    focal = 0.5 * spec.width / math.tan(math.radians(spec.fov) / 2)
    intrinsics = pinhole(focal, focal, spec.width / 2, spec.height / 2)
    render_photo = partial(_render, spec, intrinsics, pose)
    return Photo(
        name, lambda: render_photo()[0], intrinsics=intrinsics, size=(spec.height, spec.width), cam_to_world=pose,
        load_depth=lambda: render_photo()[1],
    )  # fmt: skip


def _render(spec: Spec, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    return render(build(spec.scene, spec.seed), intrinsics, pose, spec.height, spec.width)


def _bake(
    solid: Solid, face: int, style: tuple[Material, Tensor], lightmap: Float[Tensor, "s s"], rng: torch.Generator
) -> Float[Tensor, "t t 3"]:
    """One face's texture times the light that falls on it."""
    extent = solid.extent(face)
    if solid.kind == "room":
        albedo = _wall(rng, face, extent)
    else:
        material, hue = style
        albedo = tint(material(rng, 256 if max(extent) > 0.2 else 128, extent), hue)
    light = F.interpolate(lightmap[None, None], albedo.shape[:2], mode="bilinear")[0, 0]
    return (albedo * light[..., None]).clamp(0, 1)


def _wall(rng: torch.Generator, face: int, extent: tuple[float, float]) -> Float[Tensor, "t t 3"]:
    """Floor (+y), ceiling (-y), or a wall with posters."""
    materials = {2: (planks, tiles), 3: (plaster, marble)}.get(face, (bricks, plaster, marble, tiles))
    texture = tint(choose(rng, materials)(rng, 1024, extent), colour(rng, 0.45))
    return texture if face in (2, 3) else add_posters(texture, extent, rng, 4)


def _lightmaps(solids: tuple[Solid, ...], lights: Float[Tensor, "l 3"], side: int = 24) -> Float[Tensor, "faces s s"]:
    """Of every face of every solid: ambient light plus lamps with soft shadows (each lamp is eight points)."""
    centres = [_texel_centres(solid, face, side) for solid in solids for face in range(6)]
    points, normals = (torch.cat(part) for part in zip(*centres))
    corners = 0.2 * torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-0.5, 0.5) for z in (-1.0, 1)])
    lamps = (lights[:, None] + corners).view(-1, 3)
    towards = lamps[:, None] - points
    distance = towards.norm(dim=-1)
    lambert = ((towards * normals).sum(-1) / distance).clamp(min=0)
    origin = (points + 2e-3 * normals).expand_as(towards)
    lit = lambert > 0  # what faces away from a lamp needs no ray
    lit[lit.clone()] = ~is_blocked(solids[1:], origin[lit], towards[lit])
    glow = (lambert * lit / (0.6 + 0.12 * distance**2)).sum(0) / len(corners)
    return (0.55 + 0.65 * glow).view(-1, side, side)


def _texel_centres(solid: Solid, face: int, side: int) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """World points and normals of a face's ``side`` x ``side`` texels."""
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    local = on_surface(solid.kind, face, torch.stack([u, v], -1).view(-1, 2))
    return solid.to_world(local), solid.normal(local)
