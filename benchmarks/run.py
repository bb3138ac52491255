"""All benchmarks that need no GPU, or those that are named: what ``make bench`` runs.

    python -m benchmarks.run [NAME...] [--list]

To change what one of them does, run it itself: each explains its options with --help.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = {
    "rasterize": (["benchmarks/rasterize.py"], "speed of the rasteriser and of the fused SSIM against plain torch"),
    "poses": (["benchmarks/poses.py"], "accuracy of cameras that are not given, on real photo sets"),
    "quality": (["-m", "benchmarks.quality"], "held-out views against image-based rendering, pose accuracy, cost"),
    "video_models": (
        ["-m", "benchmarks.video_models"],
        "no frames, renders and reconx-tiny, with and without confidence",
    ),
    "alignment": (["benchmarks/alignment.py"], "global alignment by number of views, and against a loop over the edges"),
    "overhead": (["-m", "benchmarks.overhead"], "what the orchestration costs beside the work: runs, tasks, memory"),
    "farthest_points": (["benchmarks/farthest_points.py"], "speed of farthest point sampling"),
    "full_size": (["-m", "benchmarks.full_size"], "time and memory of the full-size video network; needs a GPU"),
    "geometry_networks": (["-m", "benchmarks.geometry_networks"], "time and memory of DUSt3R, VGGT and DA3; needs a GPU"),
}
ON_REQUEST = ("full_size", "geometry_networks")


def run(name: str) -> int:
    """The benchmark's exit code; its tables go to the terminal as they come."""
    arguments, summary = BENCHMARKS[name]
    print(f"\n== {name}: {summary}", flush=True)
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; all but {', '.join(ON_REQUEST)} without any"
    )
    parser.add_argument("--list", action="store_true", help="only say which there are")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    if options.list:
        print("\n".join(f"{name:15s} {summary}" for name, (_, summary) in BENCHMARKS.items()))
        return 0
    codes = {name: run(name) for name in options.names or [n for n in BENCHMARKS if n not in ON_REQUEST]}
    failed = [name for name, code in codes.items() if code]
    if failed:
        print(f"Failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
