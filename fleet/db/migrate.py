"""Brings a database to the schema of this code; safe when many processes start at once."""

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from fleet.db.session import Database
from fleet.errors import HoldfastError

_PG_LOCK = 0x686F6C6466617374
"""Key of the advisory lock: "holdfast" in ASCII, so that an operator who sees it in pg_locks can tell."""
_SCRIPTS = Path(__file__).parent / "migrations"


class DatabaseTooNew(HoldfastError):
    """The schema was made by a later version; running on would write rows that it cannot read."""

    title = "Database is newer than this version"


def upgrade(url: str) -> None:
    """Run the migrations that are missing, in one transaction: a crash on the way leaves the old schema.

    Calling it again changes nothing; a second process waits for the first. Raises DatabaseTooNew.
    """
    database = Database(url)
    try:
        with _alone_on(database) as connection:
            _refuse_newer(connection)
            command.upgrade(_config(connection), "head")
    finally:
        database.close()


def current(url: str) -> str | None:
    """Revision of the schema; None for a database without one."""
    database = Database(url)
    try:
        with database.engine.connect() as connection:
            return MigrationContext.configure(connection).get_current_revision()
    finally:
        database.close()


def head() -> str:
    """The revision that this code works with."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise AssertionError("the migrations are part of the package")
    return revision


def draft(message: str) -> None:
    """Write the migration from the newest revision to the tables as they are now, for a person to check."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/draft.db"
        upgrade(url)
        database = Database(url)
        try:
            with database.engine.connect() as connection:
                revision = f"{int(head()) + 1:04d}"
                command.revision(_config(connection), message, autogenerate=True, rev_id=revision)
        finally:
            database.close()


def _config(connection: Connection | None = None) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _refuse_newer(connection: Connection) -> None:
    found = MigrationContext.configure(connection).get_current_revision()
    if found is None or found in {script.revision for script in _scripts().walk_revisions()}:
        return
    raise DatabaseTooNew(
        f"the database is at schema revision {found!r}; this version knows revisions up to {head()!r}",
        hint="start the version of Holdfast that upgraded the database, or restore a backup from before",
    )


@contextmanager
def _alone_on(database: Database) -> Iterator[Connection]:
    """A transaction in which no other process migrates; committed at the end."""
    if not database.is_sqlite:
        with database.engine.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _PG_LOCK})
            yield connection
        return
    engine = database.engine.execution_options(holdfast_begin="IMMEDIATE")
    with _file_lock(Path(database.url.database or "")), engine.begin() as connection:
        yield connection


@contextmanager
def _file_lock(database: Path) -> Iterator[None]:
    """SQLite's own locks make the loser fail after a while; this one makes it wait."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # given back when the file is closed, also by a crash
        yield
