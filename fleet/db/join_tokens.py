"""Tokens by which hosts join: good for so many hosts, until a time, unless revoked. Kept as hashes."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete
from sqlmodel import Session, col, select

from fleet.access.secrets import digest, new_id, new_secret
from fleet.db.tables import JoinTokenRow
from fleet.errors import NotFound, Unauthenticated

KEPT_AFTER_END = timedelta(days=90)
_HINT = "make a new one with `holdfast join-token create`"


@dataclass(frozen=True)
class NewToken:
    secret: str
    """To be shown once."""
    row: JoinTokenRow


def new_token(description: str, ttl_s: int, max_uses: int) -> NewToken:
    secret, now = new_secret("join"), datetime.now(UTC)
    row = JoinTokenRow(
        id=new_id("join"),
        token_hash=digest(secret),
        description=description,
        created_at=now,
        expires_at=now + timedelta(seconds=ttl_s),
        max_uses=max_uses,
    )
    return NewToken(secret, row)


def add(session: Session, row: JoinTokenRow) -> None:
    """Keep a new one, and drop those that ended long ago."""
    session.execute(delete(JoinTokenRow).where(col(JoinTokenRow.expires_at) < row.created_at - KEPT_AFTER_END))
    session.add(row)


def use_token(session: Session, secret: str, host_id: str, joined_with: str = "") -> str:
    """Count one use of a token for the host ``host_id``; the token's id, for ``HostRow.joined_with``.

    ``joined_with``: of this host, if it has joined before. With the same token it is the same joining, asked for again
    because the answer was lost: nothing is counted then, and it does not matter that the token has ended meanwhile.
    Raises Unauthenticated. Of joinings at the same time no more get through than the token allows.
    """
    found = session.exec(
        select(JoinTokenRow)
        .where(JoinTokenRow.token_hash == digest(secret))
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()
    if found is None:
        raise Unauthenticated("the join token is unknown", hint=_HINT)
    if joined_with == found.id:
        return found.id
    now = datetime.now(UTC)
    if reason := _ended(found, now):
        raise Unauthenticated(reason, hint=_HINT)
    found.uses += 1
    found.used_at, found.used_by = now, host_id
    session.add(found)
    return found.id


def revoke(session: Session, token_id: str) -> None:
    """Nobody joins with it from now on; hosts that did stay. Twice is once. Raises NotFound."""
    found = None if "\x00" in token_id else session.get(JoinTokenRow, token_id, with_for_update=True)
    if found is None:
        raise NotFound(f"there is no join token {token_id!r}", hint="list what there is")
    if found.revoked_at is None:
        found.revoked_at = datetime.now(UTC)
        session.add(found)


def _ended(token: JoinTokenRow, now: datetime) -> str:
    """Why nobody can join with it any more; empty: one can."""
    if token.revoked_at is not None:
        return "the join token was revoked"
    if token.expires_at <= now:
        return "the join token has expired"
    if token.uses >= token.max_uses:
        times = "once" if token.max_uses == 1 else f"{token.max_uses} times"
        return f"the join token was used already ({times}, as often as it may)"
    return ""
