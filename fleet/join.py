"""What a host and the API say to each other besides Temporal."""

from typing import Annotated

from pydantic import Field, StringConstraints

from fleet.inventory import EngineRef
from fleet.model import Record, Wire

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class JoinRequest(Wire):
    """The host makes its credential itself and sends only the hash, so a lost answer can be asked for again."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    machine_id: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    credential_hash: Sha256


class TemporalAccess(Record):
    address: str
    namespace: str


class JoinAnswer(Record):
    host_id: str
    temporal: TemporalAccess


class EngineList(Wire):
    """The engines that a host runs; the answer is those that it may keep."""

    engines: list[EngineRef] = Field(max_length=10_000)


class Identity(Record):
    """What a host keeps of itself, in a file that only it can read."""

    host_id: str
    name: str
    server: str
    credential: str
    temporal: TemporalAccess
