"""The data that passes between stages.

Conventions everywhere: OpenCV camera axes (x right, y down, z forward), ``cam_to_world`` 4x4, intrinsics in pixels with
pixel centres at +0.5, colour float32 in [0, 1], quaternions wxyz, scales as log, opacities as logit, spherical harmonics
in the order of the INRIA PLY. Every image of a scene has one size; smaller photos are padded, and the padding is masked out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CameraProtocol = Literal["posed", "intrinsics", "unposed"]


def _expect(name: str, tensor: Tensor, shape: Sequence[int | None], dtype: torch.dtype = torch.float32) -> None:
    """Raise ValueError naming ``name`` and both shapes unless ``tensor`` has ``shape`` (None: any length) and ``dtype``."""
    wrong = tensor.ndim != len(shape) or any(s is not None and s != t for s, t in zip(shape, tensor.shape))
    if wrong or tensor.dtype != dtype:
        wanted = tuple("*" if s is None else s for s in shape)
        raise ValueError(f"{name}: expected {wanted} {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")


@dataclass(frozen=True)
class Cameras:
    """Pinhole cameras that share one image size."""

    intrinsics: Float[Tensor, "n 3 3"]
    cam_to_world: Float[Tensor, "n 4 4"]
    width: int
    height: int

    def __post_init__(self) -> None:
        n = len(self.intrinsics)
        _expect("Cameras.intrinsics", self.intrinsics, (n, 3, 3))
        _expect("Cameras.cam_to_world", self.cam_to_world, (n, 4, 4))

    def __len__(self) -> int:
        return len(self.intrinsics)

    def __getitem__(self, index: Tensor | slice | Sequence[int]) -> Cameras:
        return replace(self, intrinsics=self.intrinsics[index], cam_to_world=self.cam_to_world[index])

    @property
    def world_to_cam(self) -> Float[Tensor, "n 4 4"]:
        return torch.linalg.inv(self.cam_to_world)


@dataclass(frozen=True)
class Views:
    """A scene's photos after undistortion and resizing: the inputs and the held-out targets."""

    images: Float[Tensor, "n h w 3"]
    masks: Bool[Tensor, "n h w"]  # True where the pixel is a photo's and may be used
    names: tuple[str, ...]
    is_target: Bool[Tensor, " n"]
    cameras: Cameras | None  # as given by the dataset or the user; `protocol` says which part may be used
    focal_prior: Float[Tensor, " n"]  # pixels, from EXIF; NaN where unknown
    protocol: CameraProtocol = "unposed"

    def __post_init__(self) -> None:
        n, h, w = self.masks.shape
        _expect("Views.images", self.images, (n, h, w, 3))
        _expect("Views.masks", self.masks, (n, h, w), torch.bool)
        _expect("Views.is_target", self.is_target, (n,), torch.bool)
        _expect("Views.focal_prior", self.focal_prior, (n,))
        if len(self.names) != n:
            raise ValueError(f"Views.names: expected {n} names, got {len(self.names)}")
        if self.cameras is not None and (len(self.cameras), self.cameras.height, self.cameras.width) != (n, h, w):
            raise ValueError(f"Views.cameras: expected {n} of {w}x{h}, got {self.cameras}")
        if self.cameras is None and self.protocol != "unposed":
            raise ValueError(f"Views.protocol: {self.protocol} needs cameras, got None")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Tensor) -> Views:
        """The views at ``index`` (integer or boolean tensor)."""
        index = index.nonzero()[:, 0] if index.dtype == torch.bool else index
        return replace(
            self, images=self.images[index], masks=self.masks[index], names=tuple(self.names[i] for i in index.tolist()),
            is_target=self.is_target[index], cameras=None if self.cameras is None else self.cameras[index],
            focal_prior=self.focal_prior[index],
        )  # fmt: skip

    def inputs(self) -> Views:
        return self.select(~self.is_target)

    def targets(self) -> Views:
        return self.select(self.is_target)

    @property
    def given_cameras(self) -> Cameras | None:
        """Cameras that the reconstruction may use as they are, or None."""
        return self.cameras if self.protocol == "posed" else None

    @property
    def true_cameras(self) -> Cameras | None:
        """Cameras to score against; None where only intrinsics are known (their poses are NaN)."""
        return self.cameras if self.cameras is not None and bool(self.cameras.cam_to_world.isfinite().all()) else None

    @property
    def given_intrinsics(self) -> Float[Tensor, "n 3 3"] | None:
        """Intrinsics that the reconstruction may use as they are, or None."""
        return None if self.cameras is None or self.protocol == "unposed" else self.cameras.intrinsics


@dataclass(frozen=True)
class PointCloud:
    xyz: Float[Tensor, "n 3"]  # world
    rgb: Float[Tensor, "n 3"]
    confidence: Float[Tensor, " n"]  # [0, 1]

    def __post_init__(self) -> None:
        n = len(self.xyz)
        _expect("PointCloud.xyz", self.xyz, (n, 3))
        _expect("PointCloud.rgb", self.rgb, (n, 3))
        _expect("PointCloud.confidence", self.confidence, (n,))

    def __len__(self) -> int:
        return len(self.xyz)


@dataclass(frozen=True)
class Tracks:
    """Which view sees which point of a cloud, and at which pixel; an observation in each row."""

    view: Int[Tensor, " o"]
    point: Int[Tensor, " o"]
    xy: Float[Tensor, "o 2"]

    def __post_init__(self) -> None:
        n = len(self.view)
        _expect("Tracks.view", self.view, (n,), torch.int64)
        _expect("Tracks.point", self.point, (n,), torch.int64)
        _expect("Tracks.xy", self.xy, (n, 2))


@dataclass(frozen=True)
class Pointmaps:
    """Result of the `pointcloud` stage: for each input view its camera, and a world point and a confidence per pixel."""

    points_world: Float[Tensor, "n h w 3"]
    confidence: Float[Tensor, "n h w"]  # [0, 1]; 0 where masked out or unknown
    cameras: Cameras
    sparse: PointCloud  # triangulated feature points; empty where the backend has none
    camera_confidence: float | None = None  # [0, 1], of estimated cameras; None of known ones, or if nothing estimates it
    radial: Float[Tensor, " n"] | None = None  # k1 of lenses by which the photos have to be undistorted; None: by none
    tracks: Tracks | None = None  # of the points of `sparse`, in the undistorted photos; None: not known
    exposures: Float[Tensor, "n 3"] | None = None  # powers that bring the photos' colours to one light; None: they share it

    def __post_init__(self) -> None:
        n, h, w = len(self.cameras), self.cameras.height, self.cameras.width
        _expect("Pointmaps.points_world", self.points_world, (n, h, w, 3))
        _expect("Pointmaps.confidence", self.confidence, (n, h, w))


@dataclass(frozen=True)
class Condition:
    """Input of frame generation: each frame's camera, the point cloud rendered from it, and where points are visible."""

    cameras: Cameras
    renders: Float[Tensor, "f h w 3"]
    visibility: Float[Tensor, "f h w"]  # [0, 1]
    pair: Int[Tensor, "f 2"]  # indices of the two input views that the frame lies between, or beyond the second of which
    position: Float[Tensor, " f"]  # 0 at the first view of the pair, 1 at the second; above 1 beyond the second, below 0 never
    tokens: Float[Tensor, "t c"] = field(default_factory=lambda: torch.zeros(0, 0))  # structure tokens, eq. 10

    def __post_init__(self) -> None:
        n, h, w = len(self.cameras), self.cameras.height, self.cameras.width
        _expect("Condition.renders", self.renders, (n, h, w, 3))
        _expect("Condition.visibility", self.visibility, (n, h, w))
        _expect("Condition.pair", self.pair, (n, 2), torch.int64)
        _expect("Condition.position", self.position, (n,))
        _expect("Condition.tokens", self.tokens, (None, None))


@dataclass(frozen=True)
class Frames:
    """Everything the Gaussians are fitted to: the photos first, in the order of the input views, then the generated frames."""

    images: Float[Tensor, "f h w 3"]
    cameras: Cameras
    confidence: Float[Tensor, "f h w"]  # [0, 1]
    is_photo: Bool[Tensor, " f"]
    pair: Int[Tensor, "f 2"] | None = None  # as in `Condition`; of a photo its own index twice; None: unknown
    cameras_told: bool = True  # False: the generator was not told the frames' cameras, which then are a guess

    def __post_init__(self) -> None:
        n, h, w = len(self.cameras), self.cameras.height, self.cameras.width
        _expect("Frames.images", self.images, (n, h, w, 3))
        _expect("Frames.confidence", self.confidence, (n, h, w))
        _expect("Frames.is_photo", self.is_photo, (n,), torch.bool)
        if self.pair is not None:
            _expect("Frames.pair", self.pair, (n, 2), torch.int64)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, index: Int[Tensor, " k"]) -> Frames:
        """The frames at ``index``; ``pair`` keeps counting the photos of all frames."""
        return replace(
            self, images=self.images[index], cameras=self.cameras[index], confidence=self.confidence[index],
            is_photo=self.is_photo[index], pair=None if self.pair is None else self.pair[index],
        )  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """A real clip to train the video model on: the point cloud was made from its first frame and another one, its photos.

    What the model does not read is None. With points, the world is the frame of the first camera, and their median depth there
    is 1.
    """

    images: Float[Tensor, "f h w 3"]
    cameras: Cameras
    renders: Float[Tensor, "f h w 3"] | None = None  # the point cloud at every camera
    visibility: Float[Tensor, "f h w"] | None = None  # [0, 1]
    alone: Float[Tensor, "f 2 h w 3"] | None = None  # the points of each photo alone at every camera
    alone_visibility: Float[Tensor, "f 2 h w"] | None = None
    points: Float[Tensor, "p 3"] | None = None  # of the cloud
    colours: Float[Tensor, "p 3"] | None = None
    second: int | None = None  # the frame that is the second photo; None: the last
    fps: float | None = None  # frames a second of the video that it was taken from, over its step from frame to frame

    def __post_init__(self) -> None:
        n, h, w = len(self.cameras), self.cameras.height, self.cameras.width
        points = None if self.points is None else len(self.points)
        shapes: dict[str, tuple[int | None, ...]] = {
            "images": (n, h, w, 3), "renders": (n, h, w, 3), "visibility": (n, h, w), "alone": (n, 2, h, w, 3),
            "alone_visibility": (n, 2, h, w), "points": (points, 3), "colours": (points, 3),
        }  # fmt: skip
        for name, shape in shapes.items():
            if (value := getattr(self, name)) is not None:
                _expect(f"Clip.{name}", value, shape)
        if self.second is not None and not 0 < self.second < n:
            raise ValueError(f"Clip.second: expected a frame from 1 to {n - 1}, got {self.second}")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def ends(self) -> tuple[int, int]:
        """The frames that are the photos."""
        return 0, len(self) - 1 if self.second is None else self.second


@dataclass(frozen=True)
class Gaussians:
    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]  # wxyz, not necessarily normalised
    log_scales: Float[Tensor, "n 3"]
    logit_opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]  # k = (degree + 1)^2

    def __post_init__(self) -> None:
        n = len(self.means)
        _expect("Gaussians.means", self.means, (n, 3))
        _expect("Gaussians.quats", self.quats, (n, 4))
        _expect("Gaussians.log_scales", self.log_scales, (n, 3))
        _expect("Gaussians.logit_opacities", self.logit_opacities, (n,))
        _expect("Gaussians.sh", self.sh, (n, None, 3))
        if self.sh_degree not in (0, 1, 2, 3) or (self.sh_degree + 1) ** 2 != self.sh.shape[1]:
            raise ValueError(f"Gaussians.sh: expected 1, 4, 9 or 16 coefficients, got {tuple(self.sh.shape)}")

    def __len__(self) -> int:
        return len(self.means)

    @property
    def sh_degree(self) -> int:
        return int(self.sh.shape[1] ** 0.5) - 1

    def detach(self) -> Gaussians:
        return Gaussians(*(getattr(self, f.name).detach() for f in fields(self)))


@dataclass(frozen=True)
class ViewScore:
    """One row of the per-view table. A metric that could not be computed is None, never a number."""

    view: str
    psnr: float
    ssim: float
    lpips: float | None
    refined: bool  # the camera was refined against the frozen scene (`unposed` protocol)
    is_target: bool  # False: scored on an input photo
    lpips_alex: float | None = None  # that of AlexNet; ``lpips`` is that of VGG16


@dataclass(frozen=True)
class Scores:
    """A scene's scores. ``summary`` holds the means over held-out views (`psnr`, `ssim`, ...), over photos
    (`photo_psnr`, ...) and, for unposed runs with known ground truth, the pose errors."""

    views: tuple[ViewScore, ...]
    summary: dict[str, float | None]
    protocol: CameraProtocol


@dataclass(frozen=True)
class Located:
    """Cameras of frames, found among photos whose cameras are known, in the frame and units of the latter."""

    cam_to_world: Float[Tensor, "m 4 4"]  # the identity where none was found
    lost: tuple[str, ...]  # why a frame's camera was not found; empty where it was

    def __post_init__(self) -> None:
        _expect("Located.cam_to_world", self.cam_to_world, (len(self.lost), 4, 4))


class GeometryBackend(Protocol):
    """The geometry of views: pointmaps and cameras."""

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of the views that could be registered, and the indices of these views.

        ``fixed``: given cameras of all views or of the first ones. They are not optimised, and set the world frame and units.
        """

    def locate(
        self, photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator
    ) -> Located:
        """The cameras of ``frames`` that show the same place as ``photos``, whose pointmaps are ``known`` and held.

        The frames' intrinsics are given, in ``frames.cameras``. ``near``: cameras that they are near to, to start from.
        """


@dataclass(frozen=True)
class BackendInfo:
    """What `reconx backends` prints of a backend."""

    stage: str
    name: str
    summary: str
    weights: str = "none"  # the files that it needs, or "none"
    licence: str = "Apache-2.0"  # of code and weights together, whichever is stricter
    needs_gpu: bool = False
    cameras_told: bool = True  # of a video backend: whether it is told the frames' cameras; otherwise they have to be found
