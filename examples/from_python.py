"""Photos to Gaussians from Python: `python examples/from_python.py PHOTOS OUT [stage.key=value ...]`."""

import sys
from pathlib import Path

import reconx


def main(photos: str, out: Path, overrides: list[str]) -> None:
    settings = reconx.make_settings(overrides)
    views = reconx.load_photos(photos, settings)
    print(f"{len(views.inputs())} photos, {len(views.targets())} held out")

    scene = reconx.reconstruct(views, settings)
    for kind in ("scene.ply", "scene.spz"):
        print(f"{reconx.export(scene, out / kind):,} Gaussians in {out / kind}")

    pictures = reconx.render(scene.gaussians, scene.cameras)
    print(f"{len(pictures)} pictures of {pictures.shape[2]}x{pictures.shape[1]}")
    for name, value in reconx.score(scene, settings).summary.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
