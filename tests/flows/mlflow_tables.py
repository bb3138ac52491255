"""MLflow's some fifty migrations run once: every further database of a test gets the tables that they made."""

import sqlite3
from contextlib import closing


def migrate_once(kept, setattr=setattr):
    """``kept``: where the first database's tables are copied to; ``setattr`` may be pytest's monkeypatch.setattr."""
    from mlflow.store.db import utils

    migrate = utils._initialize_tables

    def initialize(engine):
        if kept.exists():
            copy_database(kept, engine.url.database)
        else:
            migrate(engine)
            copy_database(engine.url.database, kept)

    setattr(utils, "_initialize_tables", initialize)


def copy_database(source, target):
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)
