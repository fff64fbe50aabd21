"""One at a time on something that has no row to lock yet."""

from sqlalchemy import text
from sqlmodel import Session


def alone_on(session: Session, name: str) -> None:
    """Until the transaction ends nobody else gets past this with ``name``. SQLite has one writer at a time anyway."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})
