"""`reconx weights fetch lpips` against a small server in this process."""

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows import cli
from flows.weights import lpips


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serves small files in place of the published ones, in a folder of their own."""
    folder = tmp_path / "published"
    folder.mkdir()
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    files = []
    for name in (file.name for file in lpips.FILES):
        (folder / name).write_bytes(name.encode())
        digest = hashlib.sha256(name.encode()).hexdigest()
        files.append(lpips.File(f"http://127.0.0.1:{http.server_port}/{name}", len(name), digest))
    monkeypatch.setattr(lpips, "FILES", tuple(files))
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    yield folder
    http.shutdown()
    http.server_close()


def run(capsys) -> tuple[int, str]:
    """Exit code and output of the command."""
    code = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["reconx", "weights", "fetch", "lpips"])
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, " ".join((printed.out + printed.err).split())


def test_what_is_missing_is_fetched(server, tmp_path, capsys):
    code, said = run(capsys)
    assert code == 0, said
    assert {file.name for file in (tmp_path / "weights").iterdir()} == {file.name for file in server.iterdir()}
    (server / "vgg.pth").unlink()  # is there, and so not asked for
    (tmp_path / "weights/alex.pth").unlink()
    code, said = run(capsys)
    assert code == 0
    assert said.count("Fetching") == 1


def test_another_file_is_refused(server, tmp_path, capsys):
    (server / "alex.pth").write_bytes(b"alex.txt")
    code, said = run(capsys)
    assert code == 2
    assert "alex.pth did not arrive as it is published" in said
    assert {file.name for file in (tmp_path / "weights").iterdir()} == {"vgg.pth"}


def test_a_file_of_ones_own_is_named(server, tmp_path, capsys):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/vgg.pth").write_bytes(b"mine")
    code, said = run(capsys)
    assert code == 2
    assert "vgg.pth is not the published file" in said
    assert (tmp_path / "weights/vgg.pth").read_bytes() == b"mine"


def test_a_server_that_lacks_a_file_is_named(server, capsys):
    (server / "alexnet-owt-7be5be79.pth").unlink()
    code, said = run(capsys)
    assert code == 2
    assert "alexnet-owt-7be5be79.pth cannot be fetched" in said
