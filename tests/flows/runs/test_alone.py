"""Two runs into one folder: the second is refused, with locks or without, and one that was killed stands in nobody's way."""

import errno
import fcntl
import json
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flows.runs import alone
from flows.runs.alone import HOLDER, alone_in
from reconx_core.cache import lock
from reconx_core.errors import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(alone, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(alone, "WATCH_SECONDS", 0.5)
    monkeypatch.setattr(alone, "SETTLE_SECONDS", 0.3)


@pytest.fixture
def no_locks(monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def test_second_run_is_refused_and_the_first_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    with alone_in(out):
        with pytest.raises(UserError, match=r"Another run \(process \d+ on .*\) is writing into '.*out'"), alone_in(out):
            pass
        assert json.loads((out / HOLDER).read_text())["pid"] > 0, "the holder's file is as it was"
    assert not out.exists()
    (tmp_path / "kept").mkdir()
    with alone_in(tmp_path / "kept"):
        pass
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.usefixtures("no_locks")
def test_without_locks_the_second_sees_the_first_live(tmp_path):
    with alone_in(tmp_path), pytest.raises(UserError, match="Another run"), alone_in(tmp_path):
        pass


@pytest.mark.usefixtures("no_locks")
def test_without_locks_of_those_that_come_at_once_one_has_it(tmp_path):
    barrier = threading.Barrier(5)

    def come(_):
        barrier.wait()
        try:
            with alone_in(tmp_path):
                barrier.wait()
                return True
        except UserError:
            barrier.wait()
            return False

    # In one process they differ by their time only.
    with ThreadPoolExecutor(5) as pool:
        assert sum(pool.map(come, range(5))) == 1


@pytest.mark.parametrize("locks", [True, False])
def test_killed_run_does_not_stand_in_the_way(tmp_path, monkeypatch, locks):
    code = f"""
import os, sys, time
from pathlib import Path
from flows.runs import alone
alone.BEAT_SECONDS = 0.2
with alone.alone_in(Path({str(tmp_path)!r})):
    print("in", flush=True)
    time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    if not locks:
        monkeypatch.setattr(lock.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "no locks")))
    monkeypatch.setattr(alone, "WATCH_SECONDS", 2.0)  # the other touches it every 0.2 s
    with pytest.raises(UserError, match=f"process {process.pid}"), alone_in(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with alone_in(tmp_path):
        assert (tmp_path / HOLDER).exists()


def test_a_lock_that_holds_on_one_machine_only_is_not_trusted(tmp_path, monkeypatch):
    with alone_in(tmp_path):
        monkeypatch.setattr(alone.fcntl, "flock", lambda *_: None)
        monkeypatch.setattr(alone.socket, "gethostname", lambda: "another")
        with pytest.raises(UserError, match="Another run"), alone_in(tmp_path):
            pass


def test_a_file_that_was_removed_meanwhile_is_not_the_lock(tmp_path, monkeypatch):
    flock, calls = fcntl.flock, []

    def slow(file, mode):
        calls.append(1)
        if len(calls) == 1:  # the one before ends just now
            (tmp_path / HOLDER).unlink()
        flock(file, mode)

    monkeypatch.setattr(lock.fcntl, "flock", slow)
    with alone_in(tmp_path):
        assert len(calls) == 2
        assert (tmp_path / HOLDER).exists()
