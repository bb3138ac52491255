"""The processes that `accelerate launch` starts: who of them does what is done once."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from reconx_core.errors import UserError

Result = TypeVar("Result")

# The others wait for what the main process does alone: making clips, which may take days, and sample grids.
PATIENCE = timedelta(days=30)


def join_processes() -> PartialState:
    """This process among those that train together; the only one where nothing has started several.

    Raises:
        UserError: `accelerate launch --cpu` was asked for several processes, of which it starts one.
    """
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and "LOCAL_RANK" not in os.environ:
        raise UserError(
            "With --cpu, accelerate launch starts one process, however many it is told; use `torchrun --nproc_per_node N -m "
            "flows.cli train ...` on CPUs."
        )
    # Without a GPU, accelerate would take the processes that torchrun starts for independent ones.
    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def share(work: Callable[[], Result]) -> Result:
    """The result of ``work`` on every process; only the main one does it, and the others wait."""
    state = join_processes()
    results: list[Any] = [work() if state.is_main_process else None]
    if state.num_processes > 1:
        broadcast_object_list(results)
    return results[0]
