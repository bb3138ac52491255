"""How a stage is tried: again after errors that pass by themselves, with other networks unloaded, and not for ever."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from typing import TypeVar

import torch

from flows.execution.ending import STAGE_THREAD
from reconx_core.errors import UserError
from reconx_core.reporting.numbers import format_duration
from reconx_core.weights.loaded import unload

RETRIES, PAUSE = 2, 10.0  # seconds before each
Result = TypeVar("Result")
# Of disks, network file systems and servers that are away for a moment; a full or read-only disk stays so.
_PASSING = {
    errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO, errno.ENETDOWN, errno.ENETUNREACH,
    errno.ENETRESET, errno.ECONNABORTED, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTDOWN, errno.EHOSTUNREACH,
}  # fmt: skip
# Whose networks a stage loads, and the settings that lower what it takes, the first the most faithful.
_SECTION = {"confidence": "pointcloud"}
_LOWER = {
    "pointcloud": "pointcloud.batch=1 or a smaller views.size",
    "video": "video.offload=true, video.vae_slice=2, video.batch_guidance=false or fewer condition.frames_per_pair",
    "confidence": "pointcloud.graph=window, pointcloud.batch=1 or fewer condition.frames_per_pair",
    "splats": "fewer splats.max_gaussians or a smaller views.size",
    "metrics": "fewer splats.max_gaussians or a smaller views.size",
}
_short: set[str] = set()  # stages that found too little memory beside the networks of others


class StageOverran(UserError):
    """The stage took longer than `--stage-timeout` allows."""


def passes_by_itself(error: BaseException) -> bool:
    """Whether the same may succeed in a moment: an error of the file system or the network, whatever it was turned into."""
    return any(isinstance(each, OSError) and _is_passing(each) for each in _causes(error))


def _is_passing(error: OSError) -> bool:
    return error.errno in _PASSING or (error.errno is None and isinstance(error, TimeoutError | ConnectionError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def with_memory(stage: str, work: Callable[[], Result]) -> Result:
    """The result of a stage's ``work``; where the GPU's memory is too small, once more without other stages' networks.

    From then on these are unloaded before the stage begins.

    Raises:
        UserError: it is too small nevertheless; with the settings that lower what the stage takes.
    """
    section = _SECTION.get(stage, stage)
    if stage in _short:
        unload(section)
    try:
        return work()
    except torch.cuda.OutOfMemoryError as error:
        said = str(error)
    # Outside of the except block, whose error keeps the tensors of the first attempt.
    if stage not in _short and unload(section):
        _short.add(stage)
        return with_memory(stage, work)
    raise _too_large(stage, said)


def _too_large(stage: str, said: str) -> UserError:
    tried = next((part for part in said.split(". ") if part.startswith("Tried to allocate")), "").strip(".")
    detail = f" ({tried[0].lower()}{tried[1:]})" if tried else ""
    lower = _LOWER.get(stage, "a smaller views.size")
    return UserError(f"{stage} needs more memory than the GPU has left{detail}; lower it by --vram GB, or by -S {lower}.")


def within(seconds: float | None, stage: str, work: Callable[[], Result]) -> Result:
    """The result of a stage's ``work``, if it comes within so many seconds; a thread cannot be ended and is left alone then.

    Raises:
        StageOverran: it does not.
    """
    if seconds is None:
        return work()
    outcome: Future[Result] = Future()
    context = copy_context()

    def run() -> None:
        try:
            outcome.set_result(context.run(work))
        except BaseException as error:  # raised again below
            outcome.set_exception(error)

    threading.Thread(target=run, name=f"{STAGE_THREAD}{stage}", daemon=True).start()
    try:
        return outcome.result(seconds)
    except TimeoutError:
        if outcome.done():
            raise
    raise StageOverran(f"{stage} took longer than {format_duration(seconds)}, which --stage-timeout allows.")
