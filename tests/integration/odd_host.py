"""``python -m tests.integration.odd_host host …`` is ``holdfast host …`` on a machine that is not quite this one.

``ODD_BOOT``: its boot id. ``ODD_BOARD``: another machine. ``ODD_VERSION``: of Holdfast. ``ODD_ADDRESS``: a file with
the address from which it reaches the relay.
"""

import os
import sys
from pathlib import Path

from fleet.cli import main
from worker_host import identity
from worker_host import main as host_main
from worker_host.address import HostAddress
from worker_host.detect import machine
from worker_host.fingerprint import Fingerprint


def be_odd() -> None:
    if boot := os.environ.get("ODD_BOOT"):
        machine.boot_id = lambda: boot
    if board := os.environ.get("ODD_BOARD"):
        identity.fingerprint = lambda: Fingerprint(board=board)
    if version := os.environ.get("ODD_VERSION"):
        host_main.version = identity.version = lambda _name: version
    if file := os.environ.get("ODD_ADDRESS"):
        HostAddress._found = lambda _self: Path(file).read_text().strip()  # type: ignore[method-assign]


if __name__ == "__main__":
    be_odd()
    sys.exit(main())
