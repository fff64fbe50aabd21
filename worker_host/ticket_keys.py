"""Who may come in at this host's door: the keys that tickets are signed with, as the control plane last said."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from fleet.access.tickets import TicketReader
from worker_host.files import write_atomically

log = logging.getLogger("holdfast.host")


class TicketKeys:
    """On disk, too: a host that starts while the relay is away lets gateways in to its engines all the same."""

    def __init__(self, path: Path, reader: TicketReader) -> None:
        self._path = path
        self._reader = reader
        self._known = self._read()
        reader.trust(self._known)

    def trust(self, keys: Sequence[str]) -> None:
        """Blocks for a moment when they are others than before."""
        if not keys or list(keys) == self._known:
            return
        self._known = list(keys)
        self._reader.trust(keys)
        try:
            write_atomically(self._path, json.dumps(self._known))
        except OSError as error:
            log.error("cannot keep whose tickets to trust: %s", error)

    def _read(self) -> list[str]:
        try:
            keys = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return []
        return [key for key in keys if isinstance(key, str)] if isinstance(keys, list) else []
