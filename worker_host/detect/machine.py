"""The machine itself: identity, CPU, RAM, disk."""

import platform
import shutil
import socket
import uuid
from pathlib import Path

import psutil

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def hostname() -> str:
    return socket.gethostname()


def machine_id() -> str:
    """Stable over reboots; of the installation where the system has one, else from the network card."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        if path.is_file() and (text := path.read_text().strip()):
            return text
    return f"{uuid.getnode():012x}"


def boot_id() -> str:
    """Changes with every boot, and so tells whether a process id still means the same process."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else str(int(psutil.boot_time()))


def ram_bytes() -> int:
    """What this process may use: the machine's RAM, or less in a container."""
    limits = [psutil.virtual_memory().total]
    for name in _CGROUP_LIMITS:
        path = Path(name)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def cpu_count() -> int:
    try:
        return len(psutil.Process().cpu_affinity() or []) or psutil.cpu_count() or 1
    except AttributeError:  # not on this system
        return psutil.cpu_count() or 1


def disk(path: Path) -> tuple[int, int]:
    """(total, free) in bytes of the file system that holds ``path``."""
    usage = shutil.disk_usage(path)
    return usage.total, usage.free


def system() -> tuple[str, str]:
    """(operating system, architecture)."""
    return f"{platform.system()} {platform.release()}", platform.machine()


def ephemeral_ports() -> tuple[int, int] | None:
    """First and last of those that the system gives to whoever does not ask for a certain one; None: not known."""
    path = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not path.is_file():
        return None
    first, last = path.read_text().split()
    return int(first), int(last)
