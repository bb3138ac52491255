"""Reaching servers: those on this machine directly, whatever proxy the environment names, and none for longer than seconds."""

from __future__ import annotations

import importlib.util
import os
import threading
import urllib.request
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


def by_proxy(url: str) -> str:
    """In brackets, through which proxy of the environment a server at ``url`` is asked; empty where it is asked directly."""
    try:
        host, proxy = urlsplit(url).hostname, urllib.request.getproxies().get(urlsplit(url).scheme)
    except ValueError:
        return ""
    if not proxy or not host or urllib.request.proxy_bypass(host):
        return ""
    return f" (asked through the proxy {without_password(proxy)}; no_proxy={host} asks it directly)"


def without_password(uri: str) -> str:
    """A URI as it may be printed."""
    user, at, rest = uri.rpartition("@")
    return f"{user.partition('://')[0]}://{rest}" if at else uri


def ask_local_servers_directly() -> None:
    """Add this machine's names to NO_PROXY, for this process and those that it starts; call it before a client is made."""
    given = [os.environ.get(name, "") for name in NAMES]
    hosts = list(dict.fromkeys(host.strip() for value in given for host in value.split(",") if host.strip()))
    # "*" means that nothing goes through a proxy; in a list urllib would not take it for that.
    _set("*" if "*" in hosts else ",".join([*hosts, *(host for host in LOCAL if host not in hosts)]))


@contextmanager
def no_socks_proxies() -> Iterator[None]:
    """No SOCKS proxy in the environment during the block, and this machine's servers asked directly.

    Where one is named, Prefect's client fails even for a server that it would ask directly, unless ``socksio`` is installed.
    Other proxies stay: MLflow may be beyond them.
    """
    hidden = {} if importlib.util.find_spec("socksio") else _socks_proxies()
    for name in hidden:
        del os.environ[name]
    ask_local_servers_directly()
    try:
        yield
    finally:
        os.environ.update(hidden)


def _socks_proxies() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name.lower().endswith("_proxy") and value.lower().startswith("socks")
    }


def _set(hosts: str) -> None:
    os.environ.update(dict.fromkeys(NAMES, hosts))
