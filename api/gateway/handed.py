"""What the fast path hands on to the patient one."""

from dataclasses import dataclass

from api.gateway.call import Call
from api.gateway.relay import Begun

HANDED = "holdfast"
"""Key of an ASGI scope: what the fast path has done of the request already."""


@dataclass(frozen=True, slots=True)
class Handed:
    call: Call
    begun: Begun | None = None
