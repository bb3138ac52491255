"""Networks that stay loaded for the next scene, until another stage needs the memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache
from typing import Any, TypeVar

import torch

Network = TypeVar("Network")
_kept: list[tuple[str, _lru_cache_wrapper[Any]]] = []


def keep_loaded(section: str) -> Callable[[Callable[..., Network]], _lru_cache_wrapper[Network]]:
    """For a function that loads a network of a section of the settings: the last one stays loaded until :func:`unload`."""

    def keep(load: Callable[..., Network]) -> _lru_cache_wrapper[Network]:
        kept = lru_cache(maxsize=1)(load)
        _kept.append((section, kept))
        return kept

    return keep


def unload(section: str) -> bool:
    """Let go of all networks that are not of the section; whether there were any. One that is being used stays until then."""
    others = [kept for name, kept in _kept if name != section and kept.cache_info().currsize]
    for kept in others:
        kept.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA is not in use
    return bool(others)
