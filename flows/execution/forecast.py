"""How long a run will still take: by how long its stages took, here or in earlier runs, and by how many photos of what size."""

from __future__ import annotations

import statistics
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reconx_core.cache.store import MEASURED
from reconx_core.io.checked import find_object
from tasks.graph import ORDER

# Seconds per stage of three 800x600 photos on two cores, until the store has measured its own.
_FIRST_GUESS = {
    "views": 1,
    "pointcloud": 13,
    "condition": 1,
    "video": 10,
    "confidence": 9,
    "join": 13,
    "splats": 27,
    "metrics": 6,
}
GROW_ALIKE = ("condition", "video", "confidence", "join")  # stages that go by the pace that `pointcloud` has shown
CLIP_GUESS = 3.0  # seconds of a training clip, which is no stage of a run
_RECENT = 5


class Size(NamedTuple):
    """What a scene's stages work on."""

    photos: int  # inputs
    pixels: int  # of each


USUAL = Size(3, 512 * 384)  # what the first guesses are of
# Powers with which a stage's time grows with the gaps between photos and with their pixels; measured with 2 to 12 of 512 px
# and 3 of 1,024 px. The rounds of an orbit have the frames of the orbit, however many photos there are.
GROWTH = {
    "views": (1.0, 1.0),
    "pointcloud": (1.0, 0.45),
    "condition": (1.0, 1.0),
    "video": (1.0, 1.2),
    "confidence": (1.0, 0.2),
    "join": (0.0, 0.5),
    "splats": (0.0, 0.6),
    "metrics": (0.5, 0.7),
}


def size_of(measured: Mapping[str, Any]) -> Size | None:
    """The size that a stage noted with its time; None in entries of earlier versions."""
    photos, pixels = measured.get("photos"), measured.get("pixels")
    return Size(int(photos), int(pixels)) if photos and pixels else None


def growth(stage: str, size: Size | None) -> float:
    """By how much longer a stage takes than for USUAL scenes."""
    if size is None or stage not in GROWTH:
        return 1.0
    by_gaps, by_pixels = GROWTH[stage]
    return (max(1, size.photos - 1) / (USUAL.photos - 1)) ** by_gaps * (size.pixels / USUAL.pixels) ** by_pixels


def mean_growth(stage: str, sizes: Sequence[Size]) -> float:
    """That of scenes of several sizes; 1 of none."""
    found = [growth(stage, size) for size in sizes]
    return sum(found) / len(found) if found else 1.0


class Forecast:
    """How long what is to do will take: from how long such stages took, how many ran side by side, and the time beside them."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        self.recent: dict[str, deque[float]] = {}  # seconds, of this run's
        self.expected = dict(expected)
        self.to_do: dict[str, set[str]] = {}  # stages by scene
        self.count: Counter[str] = Counter()  # of what is to do, by stage
        self.done = 0  # scenes
        self.ended = 0  # stages
        self.work = 0.0  # seconds that they took
        self.pace = 1.0  # seconds of this run's first `pointcloud` by those that were expected of its size
        self.began: float | None = None  # when the first stage started
        self.sizes: dict[str, Size] = {}  # by scene, as far as they are known
        self.grown: Counter[str] = Counter()  # sum of their growth, by stage

    @property
    def scenes(self) -> int:
        return len(self.to_do)

    def plan(self, stage: str, scene: str) -> None:
        self.to_do.setdefault(scene, set()).add(stage)
        self.count[stage] += 1

    def learn(self, scene: str, size: Size | None) -> None:
        """How large a scene is, which its first stage tells."""
        if size is None or scene in self.sizes:
            return
        self.sizes[scene] = size
        for stage in GROWTH:
            self.grown[stage] += growth(stage, size)  # type: ignore[assignment]

    def begin(self) -> None:
        self.began = self.began or time.monotonic()

    def end(self, stage: str, scene: str, seconds: float | None) -> bool:
        """A stage is done, in so many seconds if it was computed; False if that is no news."""
        stages = self.to_do.get(scene, set())
        if stage not in stages:
            return False
        stages.remove(stage)
        self.count[stage] -= 1
        self.ended += 1
        self.done += not stages
        if seconds is not None:
            self.work += seconds
            kind = _stage_of(stage)
            seconds /= growth(kind, self.sizes.get(scene))
            if kind == "pointcloud" and not self.recent.get(kind):
                self.pace = seconds / max(self.expected.get(kind, seconds), 0.01)
            self.recent.setdefault(kind, deque(maxlen=_RECENT)).append(seconds)
            self.expected[kind] = statistics.median(self.recent[kind])
        return True

    def expect(self, task: str) -> float:
        """Seconds that a task will take."""
        kind = _stage_of(task)
        paced = kind in GROW_ALIKE and kind not in self.recent
        grown = self.grown[kind] / len(self.sizes) if self.sizes and kind in GROWTH else 1.0
        return self.expected.get(kind, CLIP_GUESS) * (self.pace if paced else 1.0) * grown

    def give_up(self, scene: str) -> None:
        """Nothing more is done for the scene."""
        self.count.subtract(self.to_do.get(scene, ()))
        self.to_do[scene] = set()

    def left(self, running: Mapping[tuple[str, str], tuple[float, float]]) -> float:
        """Seconds until the end, as far as can be told. ``running``: (stage, scene) to start and share done."""
        now = time.monotonic()
        all_of_them = sum(count * self.expect(stage) for stage, count in self.count.items())
        for (stage, _), (start, share) in running.items():
            expected = self.expect(stage)
            all_of_them += _remaining(now - start, share, expected) - expected
        busy, elapsed = self.work + sum(now - start for start, _ in running.values()), now - (self.began or now)
        side, beside = busy / max(elapsed, 1.0), max(0.0, elapsed - busy) / max(self.ended, 1)
        return max(0.0, all_of_them) / max(side, 1.0) + beside * self.count.total()


def _stage_of(task: str) -> str:
    """Without the number of its round."""
    return task.partition(" ")[0]


def _remaining(elapsed: float, share: float, expected: float) -> float:
    """Seconds left of a stage: by its own progress where it reports any, else by how long such stages took."""
    return elapsed * (1 - share) / share if share > 0.02 else max(expected - elapsed, 0.1 * elapsed)


def expected_seconds(root: Path, sizes: Sequence[Size] = ()) -> dict[str, float]:
    """Per stage of scenes of these sizes, or of USUAL ones: the median of the store's most recent entries, or a first guess."""
    expected = {stage: float(seconds) for stage, seconds in _FIRST_GUESS.items()}
    for stage in ORDER:
        files = sorted((root / stage).glob(f"*/{MEASURED}"), key=lambda p: p.stat().st_mtime)[-_RECENT:]
        known = [measured for file in files if (measured := find_object(file)).get("seconds") is not None]
        if known:
            expected[stage] = statistics.median(measured["seconds"] / growth(stage, size_of(measured)) for measured in known)
    return {stage: seconds * mean_growth(stage, sizes) for stage, seconds in expected.items()}
