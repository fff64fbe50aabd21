"""The ``holdfast`` command. Nothing heavy is imported here, so that ``holdfast --help`` answers at once."""

import os
import sys
from typing import NoReturn


def main() -> NoReturn:
    """The console script: ends the process with 0 (ok), 1 (failed) or 2 (usage)."""
    from fleet.cli.app import run

    code = run(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if "temporalio" in sys.modules:
        # The Temporal SDK's native threads now and then abort the process while the interpreter is torn down,
        # which would turn a clean end into a crash (temporalio/sdk-python#300).
        os._exit(code)
    sys.exit(code)
