"""Textured rooms with objects, exact cameras and depth: ``procedural:room?seed=3&views=8``.

Every solid is a unit cube, ball or cylinder under a rotation about the vertical and a scaling. Its surface carries six square
textures, laid out as on a cube, into which light and shadow are baked; so all views agree on every point's colour.
World: metres, y down, the floor at y = 0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.datasets.capture import Capture, Photo, Split, pinhole
from reconx_core.datasets.textures import MATERIALS, bricks, hang, marble, planks, plaster, tiles, uniform
from reconx_core.errors import UserError
from reconx_core.geometry import camera_rays, rigid
from reconx_core.seeds import generator

PREFIX = "procedural:"
_NEAR = 1e-4


@dataclass(frozen=True)
class Spec:
    """What follows ``procedural:``. ``seed`` decides the scene, the rest how it is photographed."""

    scene: str = "room"
    seed: int = 0
    views: int = 3  # inputs along the arc
    targets: int = 1  # held-out views between two inputs
    arc: float = 12.0  # degrees from one input to the next
    width: int = 512
    height: int = 384
    fov: float = 65.0  # horizontal, degrees


@dataclass(frozen=True)
class Solid:
    """A unit solid (|x|, |y|, |z| <= 1) scaled by ``half``, turned by ``yaw`` and moved to ``centre``."""

    kind: Literal["room", "box", "ball", "cylinder"]
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0

    def to_local(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        return self.turn(points - points.new_tensor(self.centre), -self.yaw) / points.new_tensor(self.half)

    def to_world(self, local: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        return self.turn(local * local.new_tensor(self.half), self.yaw) + local.new_tensor(self.centre)

    @staticmethod
    def turn(vectors: Float[Tensor, "p 3"], yaw: float) -> Float[Tensor, "p 3"]:
        cos, sin = math.cos(yaw), math.sin(yaw)
        return vectors @ vectors.new_tensor([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]]).T

    def normal(self, local: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """Unit world normals, towards the free side."""
        cube = _one_hot_face(local, self.kind == "cylinder")
        if self.kind == "ball":
            cube = local
        elif self.kind == "cylinder":
            cube = torch.where(cube[:, 1:2] != 0, cube, local * local.new_tensor([1, 0, 1]))
        normal = F.normalize(self.turn(cube / local.new_tensor(self.half), self.yaw), dim=-1)
        return -normal if self.kind == "room" else normal


@dataclass(frozen=True)
class Scene:
    """Solids and the mip pyramids of their textures; face f of solid s is surface 6 s + f."""

    solids: tuple[Solid, ...]
    texels: Float[Tensor, "t 3"]
    offsets: Int[Tensor, "surfaces levels"]
    sides: Int[Tensor, " surfaces"]
    texel_metres: Float[Tensor, " surfaces"]


def is_spec(path: Path | str) -> bool:
    return str(path).startswith(PREFIX)


def parse(path: Path | str) -> Spec:
    """The spec of ``procedural:room?key=value&...``; raises UserError for a key or value that does not exist."""
    scene, _, query = str(path).removeprefix(PREFIX).partition("?")
    known = {f.name: type(f.default) for f in fields(Spec) if f.name != "scene"}
    values: dict[str, float | int] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UserError(f"'{path}': there is no '{key}'; the keys are {', '.join(known)}.")
        try:
            values[key] = known[key](text)
        except ValueError:
            raise UserError(f"'{path}': '{key}={text}' should be a number.") from None
    spec = replace(Spec(), scene=scene or "room", **values)  # type: ignore[arg-type]
    if spec.scene not in ROOMS:
        raise UserError(f"'{path}': there is no scene '{spec.scene}'; there are {', '.join(ROOMS)}.")
    if spec.views < 2 or spec.targets < 0 or min(spec.width, spec.height) < 16 or not 10 <= spec.fov <= 120:
        raise UserError(f"'{path}': needs views >= 2, targets >= 0, width and height >= 16 and fov from 10 to 120.")
    return spec


def expand(path: Path | str) -> list[Path]:
    """``seed=0..4`` is one scene for each seed."""
    found = re.search(r"seed=(\d+)\.\.(\d+)", str(path))
    if not found:
        return [Path(str(path))]
    first, last = map(int, found.groups())
    return [Path(str(path).replace(found[0], f"seed={seed}")) for seed in range(first, last + 1)]


def scene_name(path: Path | str) -> str:
    """A name for folders and tables, such as ``room_3``."""
    spec = parse(path)
    return f"{spec.scene}_{spec.seed}"


def read(path: Path | str) -> Capture:
    """Inputs along an arc with ``targets`` held-out views in each gap; pixels are rendered when a photo is loaded."""
    spec = parse(path)
    step = spec.targets + 1
    poses = arc_cameras((spec.views - 1) * step + 1, spec)
    photos = tuple(_photo(spec, pose, f"view_{i:03d}") for i, pose in enumerate(poses))
    inputs = tuple(range(0, len(photos), step))
    split = Split(inputs, tuple(i for i in range(len(photos)) if i % step))
    return Capture(scene_name(path), photos, {"between": split}, "between")


def arc_cameras(count: int, spec: Spec) -> Float[Tensor, "count 4 4"]:
    """Cameras on an arc around the middle of the room, swaying a little up and down as a hand does."""
    rng = generator(spec.seed, "procedural", "cameras")
    total = min(math.radians(spec.arc) * (spec.views - 1), math.radians(330))
    middle, radius, height = uniform(rng, -0.4, 0.4), uniform(rng, 1.9, 2.15), uniform(rng, 1.2, 1.5)
    angle = middle + torch.linspace(-total / 2, total / 2, count)
    sway = 0.08 * torch.sin(3 * angle + uniform(rng, 0, 6))
    eyes = torch.stack([radius * angle.sin(), sway - height, -radius * angle.cos()], -1)
    return look_at(eyes, torch.tensor([0.0, -0.75, 0.25]))


def look_at(eyes: Float[Tensor, "n 3"], target: Float[Tensor, " 3"]) -> Float[Tensor, "n 4 4"]:
    """OpenCV cameras at ``eyes`` that look at ``target`` with the horizon level (world y is down)."""
    forward = F.normalize(target - eyes, dim=-1)
    right = F.normalize(torch.linalg.cross(torch.tensor([0.0, 1.0, 0.0]).expand_as(forward), forward), dim=-1)
    return rigid(torch.stack([right, torch.linalg.cross(forward, right), forward], -1), eyes)


def render(
    scene: Scene, intrinsics: Float[Tensor, "3 3"], cam_to_world: Float[Tensor, "4 4"], height: int, width: int
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w"]]:
    """Picture and z-depth at pixel centres, by ray casting; pixels on the edge between two surfaces are supersampled."""
    rays = camera_rays(intrinsics, height, width).reshape(-1, 3)
    pixel = 1 / float(intrinsics[0, 0])  # a pixel's size at unit depth
    colour, depth, surface = trace(scene, cam_to_world, rays, pixel)
    edge = _edges(surface.view(height, width)).flatten().nonzero()[:, 0]
    offsets = [(x, y, 0.0) for x in (-0.375, -0.125, 0.125, 0.375) for y in (-0.375, -0.125, 0.125, 0.375)]
    inner = (
        rays[edge, None] + torch.tensor(offsets) / torch.stack([intrinsics[0, 0], intrinsics[1, 1], torch.tensor(1.0)])
    ).reshape(-1, 3)
    colour[edge] = trace(scene, cam_to_world, inner, pixel / 4)[0].view(-1, len(offsets), 3).mean(1)
    return colour.view(height, width, 3), depth.view(height, width)


def trace(
    scene: Scene, cam_to_world: Float[Tensor, "4 4"], rays: Float[Tensor, "p 3"], pixel: float
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, " p"], Int[Tensor, " p"]]:
    """Colour, ray parameter (z-depth where rays have z = 1) and surface of the first hit of camera-frame rays."""
    origin, direction = cam_to_world[:3, 3].expand_as(rays), rays @ cam_to_world[:3, :3].T
    depth, nearest = first_hit(scene.solids, origin, direction)
    surface, uv, cosine = torch.zeros_like(nearest), torch.zeros(len(rays), 2), torch.ones(len(rays))
    points = origin + depth[:, None] * direction
    for s, solid in enumerate(scene.solids):
        hit = (nearest == s).nonzero()[:, 0]
        local = solid.to_local(points[hit])
        face, uv[hit] = face_uv(local, solid.kind == "cylinder")
        surface[hit] = 6 * s + face
        cosine[hit] = (solid.normal(local) * F.normalize(direction[hit], dim=-1)).sum(-1).abs()
    footprint = depth * pixel * cosine.clamp(min=0.05).rsqrt()
    return sample(scene, surface, uv, footprint), depth, surface


def first_hit(
    solids: tuple[Solid, ...], origin: Float[Tensor, "p 3"], direction: Float[Tensor, "p 3"]
) -> tuple[Tensor, Tensor]:
    """Ray parameter and index of the nearest solid; inside a room every ray hits."""
    depth = torch.full((len(origin),), math.inf)
    nearest = torch.zeros(len(origin), dtype=torch.int64)
    for s, solid in enumerate(solids):
        o, d = solid.to_local(origin), Solid.turn(direction, -solid.yaw) / direction.new_tensor(solid.half)
        t = {"room": _exit_cube, "box": _enter_cube, "ball": _enter_ball, "cylinder": _enter_cylinder}[solid.kind](o, d)
        closer = t < depth
        depth, nearest = torch.where(closer, t, depth), torch.where(closer, s, nearest)
    return depth, nearest


def face_uv(local: Float[Tensor, "p 3"], cylinder: bool) -> tuple[Int[Tensor, " p"], Float[Tensor, "p 2"]]:
    """Face (0...5: +x -x +y -y +z -z) and coordinates in [-1, 1] of points on a unit solid, seen as on a cube."""
    axis = _one_hot_face(local, cylinder).abs().argmax(-1)
    major = local.gather(1, axis[:, None])
    others = torch.tensor([[2, 1], [0, 2], [0, 1]])[axis]
    uv = local.gather(1, others) / major.abs().clamp(min=1e-9)
    if cylinder:  # the height runs linearly along the side
        uv[:, 1] = torch.where(axis == 1, uv[:, 1], local[:, 1])
    return 2 * axis + (major[:, 0] < 0), uv.clamp(-1, 1)


def sample(
    scene: Scene, surface: Int[Tensor, " p"], uv: Float[Tensor, "p 2"], footprint: Float[Tensor, " p"]
) -> Float[Tensor, "p 3"]:
    """Trilinear texture lookup: the mip level is where a texel is as large as the pixel's footprint (metres)."""
    level = torch.log2(footprint / scene.texel_metres[surface]).clamp(0, scene.offsets.shape[1] - 1.001)
    level = torch.minimum(level, torch.log2(scene.sides[surface].float()) - 1.001)
    low = level.long()
    return torch.lerp(_bilinear(scene, surface, low, uv), _bilinear(scene, surface, low + 1, uv), (level - low)[:, None])


@lru_cache(maxsize=4)
def build(name: str, seed: int) -> Scene:
    """The scene's solids with baked textures; the same for the same name and seed."""
    rng = generator(seed, "procedural", name)
    solids = tuple(ROOMS[name](rng))
    light = [(uniform(rng, -1.5, 1.5), -solids[0].half[1] * 2 + 0.25, uniform(rng, -1.5, 1.5)) for _ in range(2)]
    surfaces = [_bake(solids, s, f, torch.tensor(light), rng) for s in range(len(solids)) for f in range(6)]
    texels, offsets, start = [], [], 0
    for surface in surfaces:
        pyramid = [surface]
        while len(pyramid[-1]) > 1:
            pyramid.append(F.avg_pool2d(pyramid[-1].permute(2, 0, 1), 2).permute(1, 2, 0))
        sizes = torch.tensor([0] + [len(p) ** 2 for p in pyramid]).cumsum(0)[:-1] + start
        offsets.append(F.pad(sizes, (0, 11 - len(sizes)), value=int(sizes[-1])))
        texels += [p.reshape(-1, 3) for p in pyramid]
        start += sum(len(p) ** 2 for p in pyramid)
    sides = torch.tensor([len(s) for s in surfaces])
    metres = torch.tensor([max(_extent(s, f)) for s in solids for f in range(6)]) / sides
    return Scene(solids, torch.cat(texels), torch.stack(offsets), sides, metres)


def furnished_room(rng: torch.Generator) -> Iterator[Solid]:
    """A table with things on it, a cabinet by the wall, boxes and balls on the floor."""
    room = Solid("room", (0, -1.35, 0), (uniform(rng, 2.5, 3.0), 1.35, uniform(rng, 2.6, 3.0)))
    yield room
    yaw, top = uniform(rng, -0.5, 0.5), uniform(rng, 0.6, 0.75)
    yield Solid("box", (0, -top, 0.2), (0.65, 0.03, 0.4), yaw)
    for x, z in ((-0.58, -0.33), (0.58, -0.33), (-0.58, 0.33), (0.58, 0.33)):
        leg = Solid.turn(torch.tensor([[x, 0.0, z]]), yaw)[0].tolist()
        yield Solid("box", (leg[0], -(top - 0.03) / 2, 0.2 + leg[2]), (0.03, (top - 0.03) / 2, 0.03), yaw)
    for place in (-0.42, 0.0, 0.42):
        x, _, z = Solid.turn(torch.tensor([[place, 0.0, uniform(rng, -0.15, 0.15)]]), yaw)[0].tolist()
        yield _thing(rng, (x, -top - 0.03, 0.2 + z), uniform(rng, 0.09, 0.16))
    cabinet = (uniform(rng, 0.4, 0.7), uniform(rng, 0.5, 0.9), 0.22)
    yield Solid("box", (uniform(rng, -1.2, 1.2), -cabinet[1], room.half[2] - 0.25), cabinet)
    for angle in (0.6, 1.5, 2.6):
        bearing = angle + uniform(rng, -0.25, 0.25)
        yield _thing(rng, (1.4 * math.cos(bearing), 0.0, 0.3 + 1.2 * math.sin(bearing)), uniform(rng, 0.2, 0.32))


def bare_room(rng: torch.Generator) -> Iterator[Solid]:
    """Few, large things between four walls: the easiest scene for stereo."""
    yield Solid("room", (0, -1.35, 0), (uniform(rng, 2.5, 3.0), 1.35, uniform(rng, 2.6, 3.0)))
    for angle in (0.3, 1.3, 2.3, 3.1):
        bearing, distance = angle + uniform(rng, -0.2, 0.2), uniform(rng, 0.7, 1.2)
        yield _thing(rng, (distance * math.cos(bearing), 0.0, 0.3 + distance * math.sin(bearing)), uniform(rng, 0.25, 0.45))


ROOMS = {"room": furnished_room, "hall": bare_room}


def _thing(rng: torch.Generator, foot: tuple[float, float, float], size: float) -> Solid:
    """A box, ball or cylinder that stands at ``foot``."""
    kind: Literal["box", "ball", "cylinder"] = ("box", "ball", "cylinder")[int(uniform(rng, 0, 2.999))]  # type: ignore[assignment]
    height = size if kind == "ball" else size * uniform(rng, 0.8, 1.6)
    width = size * uniform(rng, 0.7, 1.1) if kind == "box" else size
    return Solid(kind, (foot[0], foot[1] - height, foot[2]), (width, height, size), uniform(rng, 0, 3))


def _photo(spec: Spec, pose: Float[Tensor, "4 4"], name: str) -> Photo:
    focal = 0.5 * spec.width / math.tan(math.radians(spec.fov) / 2)
    intrinsics = pinhole(focal, focal, spec.width / 2, spec.height / 2)
    shoot = partial(_shoot, spec, intrinsics, pose)
    return Photo(
        name, lambda: shoot()[0], intrinsics=intrinsics, size=(spec.height, spec.width), cam_to_world=pose,
        load_depth=lambda: shoot()[1],
    )  # fmt: skip


def _shoot(spec: Spec, intrinsics: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
    return render(build(spec.scene, spec.seed), intrinsics, pose, spec.height, spec.width)


def _extent(solid: Solid, face: int) -> tuple[float, float]:
    x, y, z = (2 * half for half in solid.half)
    return ((z, y), (x, z), (x, y))[face // 2]


def _bake(solids: tuple[Solid, ...], index: int, face: int, lights: Tensor, rng: torch.Generator) -> Float[Tensor, "t t 3"]:
    """One face's texture times the light that falls on it."""
    solid = solids[index]
    extent = _extent(solid, face)
    if solid.kind == "room":
        # floor, ceiling, walls; only what is large enough to be looked at closely is worth 1024 texels
        material = {2: (planks, tiles), 3: (plaster, marble)}.get(face, (bricks, plaster, marble, tiles))
        albedo = material[int(uniform(rng, 0, len(material) - 0.001))](rng, 1024, extent)
        albedo = albedo if face in (2, 3) else hang(albedo, extent, rng, 4)
    else:
        albedo = MATERIALS[int(uniform(rng, 0, len(MATERIALS) - 0.001))](rng, 256 if max(extent) > 0.2 else 128, extent)
    light = F.interpolate(_lightmap(solids, index, face, lights)[None, None], albedo.shape[:2], mode="bilinear")[0, 0]
    return (albedo * light[..., None]).clamp(0, 1)


def _lightmap(
    solids: tuple[Solid, ...], index: int, face: int, lights: Float[Tensor, "l 3"], side: int = 32
) -> Float[Tensor, "s s"]:
    """Ambient light plus lamps with soft shadows (each lamp is eight points)."""
    steps = (torch.arange(side) + 0.5) / side * 2 - 1
    v, u = torch.meshgrid(steps, steps, indexing="ij")
    local = _on_surface(solids[index].kind, face, torch.stack([u, v], -1).view(-1, 2))
    points, normals = solids[index].to_world(local), solids[index].normal(local)
    corners = 0.2 * torch.tensor([[x, y, z] for x in (-1.0, 1) for y in (-0.5, 0.5) for z in (-1.0, 1)])
    lamps = (lights[:, None] + corners).view(-1, 3)
    towards = lamps[:, None] - points
    distance = towards.norm(dim=-1)
    lambert = ((towards * normals).sum(-1) / distance).clamp(min=0)
    origin = (points + 2e-3 * normals).expand_as(towards).reshape(-1, 3)
    blocked = (first_hit(solids[1:], origin, towards.reshape(-1, 3))[0] < 1).view_as(lambert)
    glow = (lambert * ~blocked / (0.6 + 0.12 * distance**2)).sum(0) / len(corners)
    return (0.45 + 0.55 * glow).view(side, side)


def _on_surface(kind: str, face: int, uv: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    """Inverse of :func:`face_uv`."""
    axis, sign = face // 2, 1.0 - 2.0 * (face % 2)
    order = ([2, 1], [0, 2], [0, 1])[axis]
    cube = torch.full((len(uv), 3), sign)
    cube[:, order] = uv
    if kind == "ball":
        return F.normalize(cube, dim=-1)
    if kind == "cylinder" and axis != 1:
        cube[:, [0, 2]] = F.normalize(cube[:, [0, 2]], dim=-1)
    return cube


def _one_hot_face(local: Float[Tensor, "p 3"], cylinder: bool) -> Float[Tensor, "p 3"]:
    """The cube's face that a point belongs to, as a signed unit vector."""
    size = local.abs()
    if cylinder:  # caps where |y| is 1, whatever x and z are
        cap = size[:, 1] > 1 - 1e-4
        size = torch.stack([size[:, 0], torch.where(cap, 2.0, 0.0), size[:, 2]], -1)
    axis = size.argmax(-1)
    return F.one_hot(axis, 3) * local.gather(1, axis[:, None]).sign()


def _slabs(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit of the cube |x|, |y|, |z| <= 1."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    a, b = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)


def _exit_cube(origin: Tensor, direction: Tensor) -> Tensor:
    return _slabs(origin, direction)[1]


def _enter_cube(origin: Tensor, direction: Tensor) -> Tensor:
    near, far = _slabs(origin, direction)
    return torch.where((near < far) & (near > _NEAR), near, math.inf)


def _enter_ball(origin: Tensor, direction: Tensor) -> Tensor:
    a, b, c = (direction**2).sum(-1), (origin * direction).sum(-1), (origin**2).sum(-1) - 1
    root = b * b - a * c
    t = (-b - root.clamp(min=0).sqrt()) / a
    return torch.where((root > 0) & (t > _NEAR), t, math.inf)


def _enter_cylinder(origin: Tensor, direction: Tensor) -> Tensor:
    flat_o, flat_d = origin[:, [0, 2]], direction[:, [0, 2]]
    side = _enter_ball(flat_o, flat_d)
    side = torch.where((origin[:, 1] + side * direction[:, 1]).abs() <= 1, side, math.inf)
    cap = (-direction[:, 1].sign() - origin[:, 1]) / torch.where(direction[:, 1].abs() < 1e-9, 1e-9, direction[:, 1])
    on_cap = ((flat_o + cap[:, None] * flat_d) ** 2).sum(-1) <= 1
    return torch.minimum(side, torch.where(on_cap & (cap > _NEAR), cap, math.inf))


def _edges(surface: Int[Tensor, "h w"]) -> Tensor:
    """Pixels with a neighbour on another surface."""
    padded = F.pad(surface[None, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1))[0, 0]


def _bilinear(scene: Scene, surface: Tensor, level: Tensor, uv: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    side = scene.sides[surface] >> level
    x, y = ((uv[:, i] + 1) / 2 * side - 0.5 for i in (0, 1))
    x, y = (torch.minimum(c.clamp(min=0), side - 1.0) for c in (x, y))
    left, top = x.long(), y.long()
    right, bottom = torch.minimum(left + 1, side - 1), torch.minimum(top + 1, side - 1)
    start = scene.offsets[surface, level]
    fetch = lambda row, column: scene.texels[start + row * side + column]  # noqa: E731
    wx, wy = (x - left)[:, None], (y - top)[:, None]
    return torch.lerp(
        torch.lerp(fetch(top, left), fetch(top, right), wx), torch.lerp(fetch(bottom, left), fetch(bottom, right), wx), wy
    )
