"""Which container images a host no longer needs. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

_SPARED = timedelta(hours=1)
"""An image that was used so recently is probably about to be."""


@dataclass(frozen=True)
class KeptImage:
    """An image that Holdfast itself pulled."""

    id: str
    size_bytes: int
    last_used: datetime
    in_use: bool
    """A container is made from it, running or not."""


def superfluous(
    images: Iterable[KeptImage],
    now: datetime,
    *,
    unused_for: timedelta,
    bytes_short: int = 0,
) -> list[KeptImage]:
    """Those to remove, least recently used first: unused for too long, or as many as make up for ``bytes_short`` of
    disk. Never one that a container is made from, or is about to be. Layers may be shared, so less may come free."""
    idle = sorted(
        (i for i in images if not i.in_use and now - i.last_used > min(_SPARED, unused_for)),
        key=lambda i: (i.last_used, i.id),
    )
    doomed = []
    for image in idle:
        if now - image.last_used <= unused_for and bytes_short <= 0:
            break
        doomed.append(image)
        bytes_short -= image.size_bytes
    return doomed
