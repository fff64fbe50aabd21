"""Tokens by which hosts join: no more, no longer and no later than was said."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlmodel import Session, select

from fleet.db import join_tokens
from fleet.db.session import Database
from fleet.db.tables import HostRow, JoinTokenRow
from fleet.errors import NotFound, Unauthenticated
from fleet.states import HostState


def made(database: Database, ttl_s: int = 60, max_uses: int = 1) -> tuple[str, str]:
    """(secret, id) of a new one."""
    new = join_tokens.new_token("rack 4", ttl_s, max_uses)
    token_id = new.row.id
    database.write(lambda s: join_tokens.add(s, new.row))
    return new.secret, token_id


def use(database: Database, secret: str, host_id: str = "h1", joined_with: str = "") -> str:
    return database.write(lambda s: join_tokens.use_token(s, secret, host_id, joined_with))


def row(database: Database, token_id: str) -> JoinTokenRow:
    return database.read(lambda s: s.get_one(JoinTokenRow, token_id))


def change(database: Database, token_id: str, **changes: Any) -> None:
    def write(session: Session) -> None:
        found = session.get_one(JoinTokenRow, token_id)
        found.sqlmodel_update(changes)
        session.add(found)

    database.write(write)


def test_token_is_kept_as_a_hash(database: Database) -> None:
    secret, token_id = made(database)
    assert secret.startswith("hf-join-")
    assert secret not in str(row(database, token_id))


def test_each_use_counts_and_the_one_too_many_is_refused(database: Database) -> None:
    secret, token_id = made(database, max_uses=2)
    assert use(database, secret, "h1") == token_id
    assert use(database, secret, "h2") == token_id
    with pytest.raises(Unauthenticated, match="used already") as refused:
        use(database, secret, "h3")
    assert "join-token create" in refused.value.hint
    kept = row(database, token_id)
    assert (kept.uses, kept.used_by) == (2, "h2")


def test_same_joining_asked_again_counts_once_even_after_the_end(database: Database) -> None:
    secret, token_id = made(database)
    assert use(database, secret) == token_id
    assert use(database, secret, joined_with=token_id) == token_id
    join_tokens_end = {"expires_at": datetime.now(UTC) - timedelta(seconds=1), "revoked_at": datetime.now(UTC)}
    change(database, token_id, **join_tokens_end)
    assert use(database, secret, joined_with=token_id) == token_id
    assert row(database, token_id).uses == 1


def test_host_that_joined_with_another_token_uses_this_one_up(database: Database) -> None:
    first, first_id = made(database)
    second, second_id = made(database)
    use(database, first)
    assert use(database, second, joined_with=first_id) == second_id
    assert row(database, second_id).uses == 1


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"expires_at": datetime.now(UTC) - timedelta(seconds=1)}, "expired"),
        ({"revoked_at": datetime.now(UTC)}, "revoked"),
    ],
)
def test_token_that_ended_is_refused_and_nothing_is_counted(
    database: Database, changes: dict[str, Any], why: str
) -> None:
    secret, token_id = made(database, max_uses=5)
    change(database, token_id, **changes)
    with pytest.raises(Unauthenticated, match=why):
        use(database, secret)
    assert row(database, token_id).uses == 0


@pytest.mark.parametrize("secret", ["", "hf-join-x", "\0", "💥"])
def test_token_that_never_was_is_refused(database: Database, secret: str) -> None:
    with pytest.raises(Unauthenticated, match="unknown"):
        use(database, secret)


def test_revoked_token_stays_on_the_list_and_its_hosts_stay(database: Database) -> None:
    secret, token_id = made(database, max_uses=9)
    use(database, secret)
    host = HostRow(id="h1", name="h1", state=HostState.READY, credential_hash="x", joined_with=token_id)
    database.write(lambda s: s.add(host))
    database.write(lambda s: join_tokens.revoke(s, token_id))
    first = row(database, token_id).revoked_at
    database.write(lambda s: join_tokens.revoke(s, token_id))
    assert row(database, token_id).revoked_at == first
    assert database.read(lambda s: s.get(HostRow, "h1")) is not None


@pytest.mark.parametrize("token_id", ["nope", "a\0b", ""])
def test_what_is_not_there_cannot_be_revoked(database: Database, token_id: str) -> None:
    with pytest.raises(NotFound):
        database.write(lambda s: join_tokens.revoke(s, token_id))


def test_tokens_that_ended_long_ago_go_when_a_new_one_is_made(database: Database) -> None:
    _, old = made(database)
    _, young = made(database)
    change(database, old, expires_at=datetime.now(UTC) - join_tokens.KEPT_AFTER_END - timedelta(days=1))
    change(database, young, expires_at=datetime.now(UTC) - timedelta(days=1))
    _, new = made(database)
    assert set(database.read(lambda s: s.exec(select(JoinTokenRow.id)).all())) == {young, new}


def test_of_hosts_that_join_at_once_no_more_get_in_than_allowed(database: Database) -> None:
    secret, token_id = made(database, max_uses=5)

    def try_(number: int) -> bool:
        try:
            use(database, secret, f"h{number}")
        except Unauthenticated:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(try_, range(16))) == 5
    assert row(database, token_id).uses == 5
