"""Runs a command that ends when its parent does: ``python attached.py PARENT_PID COMMAND…``.

A process of its own that then becomes the command, because the other way (code between fork and exec) is
not safe in a program with threads. Imports nothing of ours, so that it costs next to nothing.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # it ended before we asked to be told
    os.execvp(command[0], command)  # noqa: S606 (becoming the command is the point)


if __name__ == "__main__":
    main()
