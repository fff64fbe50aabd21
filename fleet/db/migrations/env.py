"""Run by Alembic for each command, on the connection and in the transaction of ``fleet.db.migrate``."""

from typing import Any, Literal

from alembic import context
from sqlalchemy import Connection
from sqlmodel import AutoString, SQLModel

import fleet.db.routes  # noqa: F401 (its tables)
from fleet.db import (
    batches,  # noqa: F401 (its tables, and those of files)
    stored_responses,  # noqa: F401 (its table)
    usage,  # noqa: F401 (its table)
)
from fleet.db.tables import UtcDateTime


def run() -> None:
    connection = context.config.attributes["connection"]
    if not isinstance(connection, Connection):
        raise AssertionError("migrations are run by fleet.db.migrate")
    # SQLite cannot alter most things in place: batch mode copies the table.
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=_plain_type,
    )
    with context.begin_transaction():
        context.run_migrations()


def _plain_type(kind: str, item: Any, _context: Any) -> str | Literal[False]:
    """Drafted migrations name the database's types: they must stay as they were when our classes move on."""
    if kind == "type" and isinstance(item, AutoString):
        return "sa.String()"
    if kind == "type" and isinstance(item, UtcDateTime):
        return "sa.DateTime(timezone=True)"
    return False


run()
