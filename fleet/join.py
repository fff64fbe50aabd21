"""What a host and the relay say to each other besides Temporal's calls: JSON over gRPC, on the relay's one port.

Unary calls take and give one of the models below; errors are gRPC statuses whose details are a sentence for people:
UNAUTHENTICATED (no valid pass or token), PERMISSION_DENIED, NOT_FOUND (the host was forgotten), FAILED_PRECONDITION
(another machine speaks as this host, or its version does not fit), INVALID_ARGUMENT, UNAVAILABLE (try again).
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from fleet.inventory import EngineRef
from fleet.model import Record, Text, Wire

SERVICE = "/holdfast.v1.Hosts/"
JOIN = SERVICE + "Join"
"""JoinRequest → JoinAnswer; the only call without a pass."""
REGISTER = SERVICE + "Register"
"""Registration → Registered."""
ENGINES = SERVICE + "Engines"
"""EngineList → EngineList: what runs → what may go on."""
REPORT = SERVICE + "Report"
"""EngineReport → nothing."""
STATUS = SERVICE + "Status"
"""Stream of HostStatus, one each 10 s → stream of StatusAnswer, one for each."""
RENEW = SERVICE + "Renew"
"""CertificateRequest → Certificate."""
TUNNEL = SERVICE + "Tunnel"
"""Nothing → stream of Dial, for as long as the host lives: each asks it to open one ``CARRY``."""
CARRY = SERVICE + "Carry"
"""Bytes both ways, between one TCP connection to the relay and one to the host's own port; the call's metadata
``holdfast-dial`` says which. An empty message is the end of one direction."""

AUTHORIZATION = "authorization"
"""Metadata of every call but ``JOIN``: ``Bearer <pass>`` (``fleet.access.tickets``)."""
DIAL_HEADER = "holdfast-dial"
REASON_HEADER = "holdfast-reason"
"""Trailing metadata of FAILED_PRECONDITION: a ``Reason``."""
TIME_HEADER = "holdfast-time"
"""Trailing metadata of a refused pass: the relay's time in seconds since 1970, for hosts whose clock is wrong."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Pem = Annotated[str, StringConstraints(min_length=1, max_length=8192, pattern=r"^[ -~\r\n]+$")]
HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class Reason(StrEnum):
    OTHER_MACHINE = "other_machine"
    """Another machine speaks as this host: ask again later."""
    VERSION = "version"
    """This version of the host is not understood: asking again is no use."""


class JoinRequest(Wire):
    """The host makes its key and its secret itself and keeps them, so a lost answer can be asked for again."""

    token: Annotated[str, StringConstraints(min_length=1, max_length=200)]
    name: HostName
    machine_id: Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[!-~]+$")]
    certificate_request: Pem
    """For the key that it will sign passes and serve TLS with."""
    credential_hash: Sha256
    """SHA-256 of the host's secret; both sides derive from it what secret values for this host are sealed with."""
    version: Text = ""


class JoinAnswer(Record):
    host_id: str
    ca: str
    certificate: str
    namespace: str
    """Of Temporal."""


class CertificateRequest(Wire):
    certificate_request: Pem
    """For the key that the host joined with."""


class Certificate(Record):
    certificate: str
    ca: str


class EngineList(Wire):
    """The engines that a host runs; the answer is those that it may keep."""

    engines: list[EngineRef] = Field(max_length=10_000)


class Registered(Record):
    engines: list[EngineRef]
    """Those that may go on running."""
    ticket_keys: list[str]
    """Public keys (PEM) that tickets are signed with."""
    now: float
    """The control plane's time, seconds since 1970."""


class StatusAnswer(Record):
    ticket_keys: list[str]
    now: float
    tunnel: bool = False
    """Gateways reach this host through the tunnel only."""


class Dial(Record):
    id: str


class JoinToken(Record):
    """What a join token says to the host: a secret for the relay, and how to know the relay."""

    secret: str
    pin: str
    """``fleet.access.authority.pin_of`` the CA."""

    def __str__(self) -> str:
        return f"{self.secret}.{self.pin}"

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Raises ValueError."""
        secret, dot, pin = text.strip().partition(".")
        if not (secret.startswith("hf-join-") and dot and pin):
            raise ValueError("a join token looks like hf-join-….…: copy it whole")
        return cls(secret=secret, pin=pin)


class Identity(Record):
    """What a host keeps of itself, in a file that only it can read."""

    host_id: str
    name: str
    server: str
    """URL of the relay at the time of joining."""
    machine_id: str
    """Of the machine that joined; another one with this file is a copy."""
    credential: str
    private_key: str
    certificate: str
    ca: str
    namespace: str
    joined_at: datetime
