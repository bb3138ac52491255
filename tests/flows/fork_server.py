"""reconx with stand-in stages in processes that are forked from one which has imported everything: a start without its 5 s.

    python fork_server.py serve SOCKET TABLES         imports, then starts what is asked for
    python fork_server.py start SOCKET ARGUMENT...    as `reconx ARGUMENT...`, with its own environment, folder and output

What is started is a process like any other: with a pid, to be killed, with its exit code. Only Prefect's settings, which are
read when it is imported, are those of the server's environment.
"""

import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path

ANSWER_BYTES = 64


class Started:
    """A process started by the server, as subprocess.Popen shows it."""

    def __init__(self, path, arguments, environment, outputs, file_bytes=None):
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(path))
        request = {
            "arguments": list(map(str, arguments)),
            "environment": environment,
            "cwd": os.getcwd(),
            "file_bytes": file_bytes,
        }
        content = json.dumps(request).encode()
        socket.send_fds(self._connection, [len(content).to_bytes(4, "big")], outputs)
        self._connection.sendall(content)
        self.pid, self.returncode = int(self._connection.recv(ANSWER_BYTES)), None

    def wait(self, timeout=300):
        if self.returncode is None:
            self._connection.settimeout(timeout)
            self.returncode = int(self._connection.recv(ANSWER_BYTES))
        return self.returncode

    def poll(self):
        try:
            return self.wait(timeout=0)
        except BlockingIOError:
            return None

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


@contextmanager
def fork_server(folder, mlflow_tables, environment=None):
    """A running server; the path of its socket. ``mlflow_tables``: a database that MLflow's new ones are copied from."""
    path = folder / "fork.socket"
    command = [sys.executable, __file__, "serve", str(path), str(mlflow_tables)]
    server = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert server.stdout.readline() == b"ready\n"
    try:
        yield path
    finally:
        server.kill()
        server.wait()


def run(path, *arguments, environment, file_bytes=None):
    """As subprocess.run with captured output, which is text."""
    with open(f"{path}.out", "w+") as out, open(f"{path}.err", "w+") as err, open(os.devnull) as nothing:
        fds = [file.fileno() for file in (nothing, out, err)]
        code = Started(path, arguments, environment, fds, file_bytes).wait()
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(arguments, code, out.read(), err.read())


def serve(path, mlflow_tables):
    import_everything(Path(mlflow_tables))
    listener, woken = socket.socket(socket.AF_UNIX), socket.socketpair()
    listener.bind(path)
    listener.listen()
    woken[1].setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken[1].fileno())
    choose = selectors.DefaultSelector()
    for readable in (listener, woken[0], sys.stdin):
        choose.register(readable, selectors.EVENT_READ)
    print("ready", flush=True)
    running = {}
    while True:
        ready = {key.fileobj for key, _ in choose.select()}
        if sys.stdin in ready:  # the one who started this is gone
            return
        if woken[0] in ready:
            woken[0].recv(ANSWER_BYTES)
            tell_ends(running)
        if listener in ready:
            connection, _ = listener.accept()
            if pid := os.fork():
                running[pid] = connection
                connection.sendall(str(pid).encode())
                continue
            become(connection)


def import_everything(mlflow_tables):
    from mlflow_tables import migrate_once
    from standins import install

    import flows.cli
    import flows.evaluate
    import flows.execution.flow
    import flows.reconstruct
    import flows.runs.results
    import flows.stage  # noqa: F401

    install()
    migrate_once(mlflow_tables)


def tell_ends(running):
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as connection, suppress(BrokenPipeError):  # nobody waits for it
            connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def become(connection):
    """Turn the forked process into the one that is asked for, and run it."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    length, fds, _, _ = socket.recv_fds(connection, 4, 3)
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    # Made anew, for what the descriptors are now.
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(fd, "w" if fd else "r", buffering=fd % 2 or -1) for fd in range(3))
    content = b""
    while len(content) < int.from_bytes(length, "big"):
        content += connection.recv(1 << 16)
    connection.close()
    request = json.loads(content)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    if request["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"], resource.RLIM_INFINITY))
    sys.argv = ["reconx", *request["arguments"]]
    from flows.cli import main

    end_at_once(main)


def end_at_once(main):
    """Run it, and end without Prefect's exit handlers, which wait a second for a server to take the last events."""
    try:
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start(path, *arguments):
    started = Started(path, arguments, dict(os.environ), [0, 1, 2])
    signal.signal(signal.SIGTERM, lambda number, _: started.send_signal(number))
    return started.wait(timeout=None)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit({"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:]))
