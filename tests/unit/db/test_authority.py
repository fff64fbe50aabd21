"""The installation's keys are made once, however many processes begin at the same time."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlmodel import select

from fleet.access.sealing import CannotOpen, master_sealer
from fleet.access.tickets import Scope, Ticket, TicketReader
from fleet.db.authority import ensure
from fleet.db.session import Database
from fleet.db.tables import AuthorityRow


def test_all_who_begin_at_once_get_the_same_keys(database: Database) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: ensure(database, master_sealer("m")), range(16)))
    assert len(made) == 1
    assert ensure(database, master_sealer("m")) in made


def test_the_private_halves_are_kept_sealed(database: Database) -> None:
    authority = ensure(database, master_sealer("m"))
    rows = database.read(lambda s: s.exec(select(AuthorityRow)).all())
    assert len(rows) == 2
    assert "PRIVATE" not in "".join(str(r.model_dump()) for r in rows)
    token = authority.tickets.sign(Ticket("a-1", Scope.HOST))
    assert TicketReader([authority.tickets.public_key], "a-1").read(token).host_id == "a-1"


def test_another_master_key_is_an_error_and_changes_nothing(database: Database) -> None:
    authority = ensure(database, master_sealer("m"))
    with pytest.raises(CannotOpen):
        ensure(database, master_sealer("other"))
    assert ensure(database, master_sealer("m")) == authority
