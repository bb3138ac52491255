"""Reaching servers: those on this machine directly, whatever proxy the environment names, and none for longer than seconds."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

LOCAL = ("localhost", "127.0.0.1", "::1")
NAMES = ("no_proxy", "NO_PROXY")  # some libraries read the one and some the other


def true_within(seconds: float, ask: Callable[[], bool]) -> bool:
    """What ``ask`` says, or False if it has not said so in time: looking up the name of a host has no time limit of its own."""
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return said == [True]


def is_local(url: str) -> bool:
    """Whether a server at ``url`` is on this machine."""
    try:
        return urlsplit(url).hostname in LOCAL
    except ValueError:
        return False


def ask_local_servers_directly() -> None:
    """Add this machine's names to NO_PROXY, for this process and those that it starts; call it before a client is made."""
    given = [os.environ.get(name, "") for name in NAMES]
    hosts = list(dict.fromkeys(host.strip() for value in given for host in value.split(",") if host.strip()))
    # "*" means that nothing goes through a proxy; in a list urllib would not take it for that.
    _set("*" if "*" in hosts else ",".join([*hosts, *(host for host in LOCAL if host not in hosts)]))


@contextmanager
def no_proxies() -> Iterator[None]:
    """No proxy for anything during the block, afterwards for this machine's servers.

    Where a SOCKS proxy is named, Prefect's client fails even for a server that it would ask directly.
    """
    before = {name: os.environ.get(name) for name in NAMES}
    _set("*")
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        ask_local_servers_directly()


def _set(hosts: str) -> None:
    os.environ.update(dict.fromkeys(NAMES, hosts))
