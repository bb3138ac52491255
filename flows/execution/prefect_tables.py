"""The tables of Prefect's database: its migrations, which take ten seconds for every new store, run once and are kept."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from reconx_core.cache.user_cache import recall, remember
from reconx_core.io.files import write_atomic


def lay_tables(database: Path) -> None:
    """Make Prefect's empty tables, unless ``database`` has them: those that an earlier store got, else by migration."""
    if database.exists():
        return
    kept = f"prefect-{version('prefect')}.db"
    if tables := recall(kept):
        write_atomic(database, tables)
        return
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    remember(kept, _contents(database))


def _contents(database: Path) -> bytes:
    """The file's bytes with what SQLite's write-ahead log holds besides."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(":memory:")) as copy:
        source.backup(copy)
        return copy.serialize()
