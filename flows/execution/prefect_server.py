"""The Prefect API server of one invocation: started early, beside the imports of torch, and gone with its parent.

Prefect's own ephemeral server outlives a killed parent and is slower to start. Where ``PREFECT_API_URL`` is set, that server
is used instead. This module must be imported before prefect, whose settings are read from the environment at import.
"""

from __future__ import annotations

import fcntl
import os
import runpy
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconx_core.errors import UserError

START_SECONDS = 120.0
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # the command line reports failures, in one sentence
    "DASK_LOGGING__DISTRIBUTED": "critical",  # read when Dask is imported
}


@contextmanager
def prefect_server(root: Path) -> Iterator[None]:
    """Prefect's environment, with its home inside the store ``root``, and a server on a free port that is starting up."""
    os.environ.update(ENVIRONMENT, PREFECT_HOME=str((root / ".prefect").resolve()))
    if os.environ.get("PREFECT_API_URL"):
        yield
        return
    os.makedirs(os.environ["PREFECT_HOME"], exist_ok=True)
    port = _free_port()
    # The write end of the child's stdin lives as long as this process, however it ends.
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.execution.prefect_server", str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    try:
        yield
    finally:
        del os.environ["PREFECT_API_URL"]
        child.kill()
        child.communicate()


def wait_for_server() -> None:
    """Return when the server named by ``PREFECT_API_URL`` answers.

    Raises:
        UserError: it does not within two minutes.
    """
    url, end = os.environ["PREFECT_API_URL"], time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if answers(url):
            return
        time.sleep(0.05)
    raise UserError(f"The Prefect server at {url} does not answer; unset PREFECT_API_URL or start it.")


def answers(url: str) -> bool:
    """Whether a Prefect server is there."""
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
        return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _serve(port: str) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    with open(Path(os.environ["PREFECT_HOME"]) / "start.lock", "w") as lock:
        # Two servers that create the database's tables at once fail; the kernel drops the lock with its process.
        fcntl.flock(lock, fcntl.LOCK_EX)
        threading.Thread(target=_unlock_when_up, args=(int(port), lock), daemon=True).start()
        sys.argv = ["prefect", "server", "start", "--no-services", "--no-ui", "--host", "127.0.0.1", "--port", port]
        runpy.run_module("prefect", run_name="__main__")


def _exit_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def _unlock_when_up(port: int, lock) -> None:
    os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    wait_for_server()
    fcntl.flock(lock, fcntl.LOCK_UN)


if __name__ == "__main__":
    _serve(sys.argv[1])
