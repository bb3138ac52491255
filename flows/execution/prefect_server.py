"""The Prefect API server of one invocation: started early, beside the imports of torch, and gone with its parent.

Prefect's own ephemeral server outlives a killed parent and is slower to start. Where ``PREFECT_API_URL`` is set, that server
is used instead. This module must be imported before prefect, whose settings are read from the environment at import.
"""

from __future__ import annotations

import fcntl
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from http.client import HTTPException
from pathlib import Path

from flows.execution.prefect_tables import lay_tables
from flows.execution.reach import ask_local_servers_directly, by_proxy, is_local, no_socks_proxies, true_within
from reconx_core.cache.lock import has_locks, lock_file
from reconx_core.errors import UserError
from reconx_core.names import shown

START_SECONDS = 600.0  # for a server that we start: on a machine with ten times its work two minutes are not enough
LOG = "server.log"  # what our last server wrote
ANSWER_SECONDS = 5.0  # for one that is said to be there
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",  # none is used here, and it takes three seconds
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the command line reports failures, in one sentence
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",  # of events that no server takes any more at the end of a run
    "DASK_LOGGING__DISTRIBUTED": "critical",  # read when Dask is imported
}

_own: ContextVar[bool] = ContextVar("own", default=False)


def has_own_server() -> bool:
    """Whether this run's Prefect server serves it alone, and ends with it: nobody looks at it or limits anything there."""
    return _own.get()


@contextmanager
def prefect_server(root: Path) -> Iterator[Callable[[], None]]:
    """Prefect's environment, and a server on a free port that is starting up, unless ``PREFECT_API_URL`` names one.

    Yields a function that returns when the server answers; it raises UserError where the server ends first, or does not
    answer within ten minutes.

    Raises:
        UserError: ``PREFECT_API_URL`` names one, and it does not answer.
    """
    given = os.environ.get("PREFECT_API_URL")
    ask_local_servers_directly()
    with _direct(given), _home(root) as home:
        os.environ.update(ENVIRONMENT, PREFECT_HOME=str(home))
        if given:
            require_server(given)
        token = _own.set(not given)
        try:
            with nullcontext(lambda: None) if given else _own_server() as wait:
                yield wait
        finally:
            _own.reset(token)


def _direct(url: str | None) -> AbstractContextManager[None]:
    return no_socks_proxies() if url is None or is_local(url) else nullcontext()


@contextmanager
def _home(root: Path) -> Iterator[Path]:
    """A folder for Prefect's database: in the store, or elsewhere where that cannot be locked or its name is not UTF-8."""
    home = (root / ".prefect").resolve()
    if shown(str(home)) == str(home) and has_locks(root):
        yield home
        return
    with tempfile.TemporaryDirectory(prefix="reconx-prefect-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextmanager
def _own_server() -> Iterator[Callable[[], None]]:
    home, port = Path(os.environ["PREFECT_HOME"]), _free_port()
    home.mkdir(parents=True, exist_ok=True)
    # A file takes any amount; a pipe that nobody reads would hold the server up once it is full.
    with open(home / f"{LOG}.{port}", "w+", encoding="utf-8", errors="replace") as log:
        # The write end of the child's stdin lives as long as this process, however it ends.
        child = subprocess.Popen(
            [sys.executable, "-m", "flows.execution.prefect_server", str(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
        )
        os.environ["PREFECT_API_URL"] = url = f"http://127.0.0.1:{port}/api"
        try:
            yield lambda: _wait_until_up(child, url, Path(log.name))
        finally:
            del os.environ["PREFECT_API_URL"]
            child.kill()
            child.communicate()
            Path(log.name).replace(home / LOG)


def _wait_until_up(child: subprocess.Popen, url: str, log: Path) -> None:
    """Return when the child answers; raise UserError where it ends first, or does not within ten minutes."""
    wait_for_server(url, lambda: child.poll() is None)
    if child.poll() is not None:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {child.returncode}")
        raise UserError(f"Prefect's server ended as it started ({said}); all that it wrote is in {log.with_name(LOG)}.")


def require_server(url: str) -> None:
    """Return when the server that ``PREFECT_API_URL`` names answers.

    Raises:
        UserError: it does not within seconds.
    """
    if not true_within(ANSWER_SECONDS, lambda: _look_for(url)):
        at = f"{url}{by_proxy(url)}"
        raise UserError(f"No Prefect server answers at {at}, which PREFECT_API_URL names; start it or unset PREFECT_API_URL.")


def _look_for(url: str) -> bool:
    end = time.monotonic() + ANSWER_SECONDS
    while not (found := answers(url)) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def wait_for_server(url: str, lives: Callable[[], bool]) -> None:
    """Return when the server answers, or lives no more.

    Raises:
        UserError: it lives, and does not answer within ten minutes.
    """
    end = time.monotonic() + START_SECONDS
    while lives():
        if answers(url):
            return
        if time.monotonic() > end:
            raise UserError(f"The Prefect server at {url} does not answer after ten minutes; run the same command again.")
        time.sleep(0.05)


def answers(url: str) -> bool:
    """Whether a Prefect server is there."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=ANSWER_SECONDS) as reply:
            return json.loads(reply.read(1000)) is True  # other servers answer with a page of theirs
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)  # one behind a password, or Prefect's cloud: its client has the key
    except (OSError, ValueError, HTTPException):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(port: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with open(Path(os.environ["PREFECT_HOME"]) / "start.lock", "w") as lock:
        # Two servers that create the database's tables at once fail; the kernel drops the lock with its process.
        lock_file(lock, fcntl.LOCK_EX)
        lay_tables(Path(os.environ["PREFECT_HOME"]) / "prefect.db")
        threading.Thread(target=_unlock_when_up, args=(int(port), lock), daemon=True).start()
        sys.argv = ["prefect", "server", "start", "--no-services", "--no-ui", "--host", "127.0.0.1", "--port", port]
        runpy.run_module("prefect", run_name="__main__")


def _exit_with_parent() -> None:
    os.read(0, 1)  # not through sys.stdin, whose lock would make an early end of the main thread a fatal error
    os._exit(0)


def _unlock_when_up(port: int, lock) -> None:
    wait_for_server(f"http://127.0.0.1:{port}/api", lambda: True)
    lock_file(lock, fcntl.LOCK_UN)


if __name__ == "__main__":
    _serve(sys.argv[1])
