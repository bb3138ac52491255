"""The digests of the scenes' sources, read ahead while the first scenes are computed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from tasks.execute import source_digest

BATCH = 64  # scenes at most whose digests are told, and used, together
Digests = dict[str, str | Exception]  # by source; the error where it cannot be read


@contextmanager
def read_ahead(
    sources: Iterable[str], root: Path, tell: Callable[[Digests], None] = lambda read: None
) -> Iterator[Callable[[str], str]]:
    """A function that waits for a source's digest; a thread reads them in their order, ever more at a time.

    ``tell`` hears of every batch before its digests are handed out, so that no scene starts before it is on record. Where it
    raises an error, so does the function.
    """
    waiting: dict[str, Future[str]] = {source: Future() for source in sources}
    stop = threading.Event()
    reader = threading.Thread(target=_read, args=(waiting, root, tell, stop), daemon=True)
    reader.start()
    try:
        yield lambda source: waiting[source].result()
    finally:
        stop.set()
        reader.join()


def _read(waiting: dict[str, Future[str]], root: Path, tell: Callable[[Digests], None], stop: threading.Event) -> None:
    for batch in _growing_batches(waiting):
        read = {source: _digest_or_error(source, root) for source in batch if not stop.is_set()}
        try:
            tell(read)
        except Exception as error:
            read = dict.fromkeys(batch, error)
        for source, outcome in read.items():
            if isinstance(outcome, Exception):
                waiting[source].set_exception(outcome)
            else:
                waiting[source].set_result(outcome)
        if stop.is_set():
            return


def _growing_batches(sources: Iterable[str]) -> Iterator[list[str]]:
    """The first scene waits for no other's photos; each batch costs a write of all that is known."""
    left, size = iter(sources), 1
    while batch := list(islice(left, size)):
        yield batch
        size = min(2 * size, BATCH)


def _digest_or_error(source: str, root: Path) -> str | Exception:
    try:
        return source_digest(source, root)
    except Exception as error:  # whatever is wrong with it, the scene's own task reports it
        return error
