"""One Prefect server for all tests here, and a way to run the command line in this process with stand-in stages."""

import os
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import standins
from fork_server import fork_server
from mlflow_tables import migrate_once

from flows import cli
from flows.execution import ending


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their marks
def pytest_collection_modifyitems(items):
    for item in items:
        if "server" in item.fixturenames:
            item.add_marker(pytest.mark.long)


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running Prefect server, which PREFECT_API_URL names to everything started from here."""
    from prefect.context import refresh_global_settings_context

    from flows.execution.prefect_server import prefect_server

    before = os.environ.get("PREFECT_API_URL")
    with prefect_server(tmp_path_factory.mktemp("prefect")) as wait_for_server:
        wait_for_server()
        # Collected tests have imported Prefect by now; with the settings of then it would start a second server, of its own.
        refresh_global_settings_context()
        yield os.environ["PREFECT_API_URL"]
    if before is not None:
        os.environ["PREFECT_API_URL"] = before


@pytest.fixture(scope="session")
def forks(server, mlflow_tables, tmp_path_factory):
    """The socket of a fork server that has the stand-ins (see fork_server.py)."""
    with fork_server(tmp_path_factory.mktemp("forks"), mlflow_tables) as path:
        yield path


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory):
    return tmp_path_factory.mktemp("mlflow") / "tables.db"


@pytest.fixture(scope="session", autouse=True)
def migrated_once(mlflow_tables):
    with pytest.MonkeyPatch.context() as patch:
        migrate_once(mlflow_tables, patch.setattr)
        yield


@pytest.fixture
def reconx(server, monkeypatch, capsys):
    """Run the command line in this process: ``reconx("gc", "--store", path)``; returns its exit code and output."""

    monkeypatch.setattr(ending, "left_behind", lambda: False)  # else it would be the tests that are ended

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reconx", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Stand-ins instead of the stages; returns a function that lists the stages computed since it was last called."""
    log = tmp_path / "computed.log"
    monkeypatch.setenv("RECONX_TEST_LOG", str(log))
    standins.install(partial(monkeypatch.setattr, raising=False))

    def computed():
        stages = log.read_text().split() if log.exists() else []
        log.write_text("")
        return stages

    return computed


@pytest.fixture
def photos(tmp_path):
    """A folder for the stand-ins, which do not look at the pictures."""
    return standins.write_folder(tmp_path / "garden")
