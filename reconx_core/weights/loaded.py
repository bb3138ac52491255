"""Networks that stay loaded for the next scene, until another stage needs the memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import _lru_cache_wrapper, lru_cache, wraps
from typing import Any, TypeVar, cast

import torch

Network = TypeVar("Network")
_kept: list[tuple[str, _lru_cache_wrapper[Any]]] = []
# diffusers and transformers initialise networks without memory while they load one, for all threads of the process.
_loading = threading.RLock()


def keep_loaded(section: str) -> Callable[[Callable[..., Network]], _lru_cache_wrapper[Network]]:
    """For a function that loads a network of a section of the settings: the last one stays loaded until :func:`unload`.

    Threads load one at a time, and the same network once.
    """

    def keep(load: Callable[..., Network]) -> _lru_cache_wrapper[Network]:
        kept = lru_cache(maxsize=1)(load)
        _kept.append((section, kept))

        @wraps(load)
        def one_at_a_time(*given: Any, **named: Any) -> Network:
            with _loading:
                return kept(*given, **named)

        one_at_a_time.__dict__.update(cache_info=kept.cache_info, cache_clear=kept.cache_clear)
        return cast("_lru_cache_wrapper[Network]", one_at_a_time)

    return keep


def unload(section: str) -> bool:
    """Let go of all networks that are not of the section; whether there were any. One that is being used stays until then."""
    others = [kept for name, kept in _kept if name != section and kept.cache_info().currsize]
    for kept in others:
        kept.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()  # nothing where CUDA is not in use
    return bool(others)
