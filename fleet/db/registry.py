"""The change counter of everything that gateways keep in memory: keys, models, endpoints."""

from sqlalchemy import update
from sqlmodel import Session, col, select

from fleet.db.tables import RegistryRow


def bump(session: Session) -> None:
    """Call in the same transaction as the change."""
    session.execute(update(RegistryRow).where(col(RegistryRow.id) == 1).values(version=RegistryRow.version + 1))


def version(session: Session) -> int:
    return session.exec(select(RegistryRow.version)).one()
