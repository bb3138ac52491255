"""Frames that would hurt, before they count: held against the photos' points and colours, and against their neighbours.

A frame that shows something else, or whose colours are off by region, is left out; one whose colours are shifted as a whole is
corrected; a region of a frame that is off loses its confidence. Where the photos' points are not seen nothing is known of a
frame, and nothing is done. What is fine stays as it is, bit by bit.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.confidence.agreement import expected, frame_agreement
from reconx_core.confidence.cameras import AGREES, UNLIKE, Placement
from reconx_core.confidence.clips import clips_of
from reconx_core.confidence.colours import IDENTITY, Cells, ColourMap, apart, cells_of, enough, fit_colours, shift_of
from reconx_core.types import Frames, Pointmaps, Views

TOLERATED = 0.025  # mean change of colour up to which a frame stays as it is
MOST_SHIFT = 0.25  # and up to which it is corrected
OFF = 0.15  # difference from the photos' colours above which a region is off
MOST_OFF = 0.25  # share of a frame's regions above which all of it is
SURE = 0.3  # confidence from which a generated pixel counts as seen
CONTRADICTED = 0.25  # share of sure pixels, relative to the lesser of its neighbours, below which a frame stands alone
TINTED = "its colours are far from the photos'"
PATCHY = "its colours differ from the photos' by region"
ALONE = "its neighbours show something else"


@dataclass(frozen=True)
class Verdict:
    """What the photos say of a frame."""

    agreement: float | None = None  # median correlation with the photos' points; None: too few are seen
    shift: float | None = None  # mean change of colour that brings it to the photos'; None: too little is seen to tell
    colours: ColourMap = IDENTITY  # to apply
    off: float | None = None  # share of what is seen that is off after it
    trust: Float[Tensor, "y x"] | None = None  # of its regions: 0 where they are off; None: all 1
    against: str = ""  # why the frame is to be left out; empty if it is not


def judge_frames(inputs: Views, frames: Frames, pointmaps: Pointmaps, placement: Placement) -> tuple[Frames, Placement]:
    """The frames in the photos' colours, without those that would hurt, and ``placement`` with a list of what was found.

    The list, ``judged``, has an entry for each frame that still was there. Warns with one sentence if frames are left out.
    """
    index = (~frames.is_photo).nonzero()[:, 0]
    if len(index) == 0:
        return frames, placement
    beside = expected(inputs, pointmaps, frames.images[index], frames.cameras[index])
    agreement = frame_agreement(beside).tolist()
    verdicts = [verdict(correlation, cells) for correlation, cells in zip(agreement, cells_of(beside))]
    judged = [entry(i, one) for i, one in zip(numbers(frames, placement), verdicts)]
    corrected = with_colours(frames, dict(zip(index.tolist(), verdicts)))
    reasons = {i: one.against for i, one in zip(index.tolist(), verdicts) if one.against}
    return leave_out(corrected, replace(placement, judged=judged), reasons)


def verdict(agreement: float, cells: Cells) -> Verdict:
    """What is to be done with a frame of that ``agreement`` (NaN: unknown) with the photos' points."""
    known = None if agreement != agreement else agreement
    against = UNLIKE if known is not None and known < AGREES else ""
    if against or not enough(cells):
        return Verdict(known, against=against)
    found = fit_colours(cells)
    shift = shift_of(cells, found)
    colours = found if shift > TOLERATED else IDENTITY
    bad = apart(cells, colours) > OFF
    off = float(bad.sum() / cells.counts.sum())
    against = TINTED if shift > MOST_SHIFT else PATCHY if off > MOST_OFF else ""
    return Verdict(known, shift, colours, off, (~bad).float() if off > 0 else None, against)


def entry(number: int, verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON; ``number`` counts the generated frames from 0."""
    changed = verdict.colours is not IDENTITY and not verdict.against
    colours = {"gain": verdict.colours.gain.tolist(), "offset": verdict.colours.offset.tolist()} if changed else {}
    found = {"agreement": verdict.agreement, "shift": verdict.shift, "off": verdict.off}
    return {"frame": number, "corrected": changed, **found, **colours}


def numbers(frames: Frames, placement: Placement) -> list[int]:
    """Which of the frames that were generated the remaining ones are, counted from 0."""
    gone = {int(i) for i in placement.left_out or {}}
    return [i for i in range(placement.frames) if i not in gone]


def with_colours(frames: Frames, verdicts: Mapping[int, Verdict]) -> Frames:
    """The frames corrected, and without confidence in regions that are off."""
    images, confidence = frames.images.clone(), frames.confidence.clone()
    for i, one in verdicts.items():
        if one.colours is not IDENTITY:
            images[i] = one.colours.apply(images[i]).clamp(0, 1)
        if one.trust is not None:
            confidence[i] *= F.interpolate(one.trust[None, None], images.shape[1:3], mode="nearest-exact")[0, 0]
    return replace(frames, images=images, confidence=confidence)


def leave_out(frames: Frames, placement: Placement, reasons: Mapping[int, str]) -> tuple[Frames, Placement]:
    """Frames and placement without frames, counted with the photos, for the reasons given; with a warning."""
    if not reasons:
        return frames, placement
    photos, number = int(frames.is_photo.sum()), numbers(frames, placement)
    left_out = {**(placement.left_out or {}), **{str(number[i - photos]): why for i, why in reasons.items()}}
    said = ", ".join(f"{count} because {_clause(why)}" for why, count in sorted(Counter(reasons.values()).items()))
    warnings.warn(f"{len(reasons)} of {placement.frames} generated frames are left out: {said}.", stacklevel=3)
    kept = torch.tensor([i for i in range(len(frames)) if i not in reasons])
    return frames.select(kept), replace(placement, left_out=dict(sorted(left_out.items(), key=lambda item: int(item[0]))))


def _clause(why: str) -> str:
    return f"it {why}" if why == UNLIKE else why


def confident_share(frames: Frames) -> Float[Tensor, " f"]:
    """Share of each frame's pixels that are sure enough to count as seen."""
    return (frames.confidence >= SURE).float().mean((1, 2))


def judge_by_neighbours(frames: Frames, placement: Placement) -> tuple[Frames, Placement]:
    """Without frames, whose confidence is estimated by now, of which far less is sure than of the frames before and after.

    These see nearly the same: what makes a surface hard to match does so in all of them.
    """
    share, reasons = confident_share(frames).tolist(), {}
    for clip in clips_of(frames):
        members = clip.frames.tolist()
        for before, frame, after in zip(members, members[1:], members[2:]):
            if share[frame] < CONTRADICTED * min(share[before], share[after]):
                reasons[frame] = ALONE
    photos = int(frames.is_photo.sum())
    sure = dict(zip(numbers(frames, placement), share[photos:]))
    judged = [{**one, "sure": sure.get(one["frame"])} for one in placement.judged or []]
    return leave_out(frames, replace(placement, judged=judged), reasons)
