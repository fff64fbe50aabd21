"""The installation's keys, made once by whichever process is first, kept sealed."""

from dataclasses import dataclass

from sqlalchemy.exc import IntegrityError
from sqlmodel import Session

from fleet.access.authority import CertificateAuthority, new_key
from fleet.access.sealing import Sealer
from fleet.access.tickets import TicketSigner
from fleet.db.session import Database
from fleet.db.tables import AuthorityRow


@dataclass(frozen=True)
class Authority:
    ca: CertificateAuthority
    tickets: TicketSigner


def ensure(database: Database, master: Sealer) -> Authority:
    """The installation's keys; all processes get the same. Raises CannotOpen under another master key. Blocks."""
    made_ca = CertificateAuthority.create()
    rows = (
        AuthorityRow(id="ca", certificate=made_ca.certificate_pem, sealed_key=master.seal(made_ca.key_pem)),
        AuthorityRow(id="tickets", certificate="", sealed_key=master.seal(new_key())),
    )
    for row in rows:
        try:
            database.write(lambda s, r=row: _insert_if_missing(s, r))  # type: ignore[misc]
        except IntegrityError:
            continue  # another process was first
    return database.read(lambda s: _load(s, master))


def _insert_if_missing(session: Session, row: AuthorityRow) -> None:
    if session.get(AuthorityRow, row.id) is None:
        session.add(row)
        session.flush()


def _load(session: Session, master: Sealer) -> Authority:
    ca, tickets = session.get_one(AuthorityRow, "ca"), session.get_one(AuthorityRow, "tickets")
    return Authority(
        CertificateAuthority(ca.certificate, master.open(ca.sealed_key)),
        TicketSigner(master.open(tickets.sealed_key)),
    )
