"""Prefect's server: asked directly whatever the proxy, a sentence where nothing is, and a home that it can use."""

import errno
import fcntl
import http.server
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing
from pathlib import Path
from unittest.mock import ANY

import httpx
import pytest
import requests
import standins
from standins import write_folder

from flows.execution import prefect_server as servers
from flows.execution import prefect_tables
from flows.execution.reach import ask_local_servers_directly, by_proxy, no_socks_proxies
from reconx_core.errors import UserError


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """What is set here is set back."""
    for name in (
        "http_proxy",
        "HTTP_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
        "PREFECT_HOME",
        "PREFECT_API_URL",
    ):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(urllib.request, "_opener", None)  # has the proxies of its first use
    for name in servers.ENVIRONMENT:
        monkeypatch.setenv(name, servers.ENVIRONMENT[name])


@pytest.fixture
def health():
    """Address of a server that answers every request as Prefect's does that for its health, or with ``health.reply``."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.code)
            self.end_headers()
            self.wfile.write(server.reply)

        def log_message(self, *_): ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.code, server.reply, server.url = 200, b"true", f"http://127.0.0.1:{server.server_port}/api"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_proxy_is_not_asked_for_what_is_here(health, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert not servers.answers(health.url)
    monkeypatch.setenv("NO_PROXY", "intranet, .example.org")
    ask_local_servers_directly()
    assert servers.answers(health.url)
    assert httpx.get(health.url).json() is True
    assert os.environ["no_proxy"].split(",")[:2] == ["intranet", ".example.org"]


def test_socks_proxy_does_no_harm_while_the_server_is_here(health, monkeypatch):
    """And a server elsewhere, such as MLflow's, is still asked through the other proxy."""
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with no_socks_proxies():
        assert httpx.get(health.url).json() is True
        assert requests.utils.get_environ_proxies("http://mlflow.example.org") == {"http": "http://127.0.0.1:9", "no": ANY}
        assert requests.utils.get_environ_proxies(health.url) == {}
    assert os.environ["NO_PROXY"] == "localhost,127.0.0.1,::1"
    assert os.environ["ALL_PROXY"] == "socks5://127.0.0.1:9"


def test_no_proxy_for_anything_stays_so(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")
    ask_local_servers_directly()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "*"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://no.such.host.invalid/api", "nonsense", "http://[/api"])
def test_named_server_that_is_not_there_is_a_sentence(tmp_path, monkeypatch, url):
    monkeypatch.setattr(servers, "ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(UserError, match="PREFECT_API_URL"), servers.prefect_server(tmp_path):
        pass
    assert time.monotonic() - started < 5


def test_a_proxy_that_stands_between_is_named_without_its_password(tmp_path, monkeypatch):
    monkeypatch.setattr(servers, "ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("PREFECT_API_URL", "http://head.example:4200/api")
    named = r"4200/api \(asked through the proxy http://127.0.0.1:9; no_proxy=head.example asks it directly\), which PREFECT"
    with pytest.raises(UserError, match=named), servers.prefect_server(tmp_path):
        pass
    monkeypatch.setenv("no_proxy", ".example")
    assert by_proxy("http://head.example:4200/api") == by_proxy("http://[") == ""


def test_other_server_is_none_of_prefects(health, monkeypatch, tmp_path):
    health.reply = b"<html>Welcome</html>"
    monkeypatch.setattr(servers, "ANSWER_SECONDS", 0.3)
    monkeypatch.setenv("PREFECT_API_URL", health.url)
    with pytest.raises(UserError, match="No Prefect server answers"), servers.prefect_server(tmp_path):
        pass


def test_named_server_is_used(health, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_API_URL", health.url)
    with servers.prefect_server(tmp_path) as wait_for_server:
        assert os.environ["PREFECT_HOME"] == str(tmp_path / ".prefect")
        assert not servers.has_own_server()
        wait_for_server()


@pytest.mark.parametrize("code", [401, 403])
def test_server_behind_a_password_is_there(health, monkeypatch, tmp_path, code):
    health.code = code
    monkeypatch.setenv("PREFECT_API_URL", health.url)
    with servers.prefect_server(tmp_path) as wait_for_server:
        wait_for_server()


@pytest.mark.slow  # a server of its own
def test_wrong_password_is_a_sentence(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}/api"
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "home"), "PREFECT_SERVER_API_AUTH_STRING": "reconx:right"}
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui", "--no-services", "--port", port]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        servers.wait_for_server(url, lambda: server.poll() is None)
        photos, wrong = write_folder(tmp_path / "attic"), {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": "reconx:wrong"}
        run = [sys.executable, standins.__file__, "reconstruct", str(photos), "-o", str(tmp_path / "out")]
        run += ["--store", str(tmp_path / "store")]
        ended = subprocess.run(run, env={**os.environ, **wrong}, capture_output=True, text=True)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr == (
            f"reconx: Prefect's server at {url} refuses the run (401 Unauthorized); "
            "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY as it wants them.\n"
        )
    finally:
        server.kill()
        server.wait()


def test_server_that_fails_is_not_there(health):
    health.code = 503
    assert not servers.answers(health.url)


@pytest.mark.long
def test_server_that_dies_at_its_start_is_a_sentence(tmp_path):
    """Within seconds; what it wrote stays."""
    home = tmp_path / ".prefect"
    (home / "start.lock").mkdir(parents=True)  # where the server expects a file
    started = time.monotonic()
    with (
        pytest.raises(UserError, match=r"ended as it started .*IsADirectoryError.*server\.log"),
        servers.prefect_server(tmp_path) as wait_for_server,
    ):
        wait_for_server()
    assert time.monotonic() - started < 60
    assert "Traceback" in (home / "server.log").read_text()
    assert os.listdir(home).count("server.log") == len([name for name in os.listdir(home) if name.startswith("server.log")])


def test_home_lies_elsewhere_where_the_store_has_no_locks(health, monkeypatch, tmp_path):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setenv("PREFECT_API_URL", health.url)
    with servers.prefect_server(tmp_path):
        home = Path(os.environ["PREFECT_HOME"])
        assert home.is_dir()
        assert tmp_path not in home.parents
    assert not home.exists()


def test_prefects_tables_are_made_once(monkeypatch, tmp_path):
    """The first store waits for the migrations; the next gets what they made, and one that has tables keeps them."""

    from prefect.server import database

    async def migrate(interface):
        made.append(1)
        with closing(sqlite3.connect(tmp_path / f"{len(made)}.db")) as tables:
            tables.execute("create table flow (id)")

    made = []
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(database.PrefectDBInterface, "create_db", migrate)
    for name in ("1.db", "2.db"):
        prefect_tables.lay_tables(tmp_path / name)
        with closing(sqlite3.connect(tmp_path / name)) as tables:
            assert tables.execute("select name from sqlite_master").fetchall() == [("flow",)]
    assert made == [1]
    (tmp_path / "mine.db").write_bytes(b"mine")
    prefect_tables.lay_tables(tmp_path / "mine.db")
    assert (tmp_path / "mine.db").read_bytes() == b"mine"
