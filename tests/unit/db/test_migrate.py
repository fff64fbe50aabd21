"""Migrations: from nothing, twice, at once, and never backwards."""

import fcntl
import multiprocessing
import shutil
from datetime import UTC, datetime
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlmodel import SQLModel, col, select

from fleet.db import migrate, registry
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, HostRow, RegistryRow


def test_empty_database_is_brought_to_the_newest_revision(database_url: str) -> None:
    assert migrate.current(database_url) is None
    migrate.upgrade(database_url)
    assert migrate.current(database_url) == migrate.head()


def test_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, SQLModel.metadata)
    assert differences == []


def test_the_comparison_of_schemas_sees_a_missing_column(database: Database) -> None:
    database.write(lambda s: s.execute(text("ALTER TABLE host DROP COLUMN message")))
    with database.engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), SQLModel.metadata)
    assert [(d[0], d[2], d[3].name) for d in differences] == [("add_column", "host", "message")]


def test_change_counter_starts_at_zero_in_its_one_row(database: Database) -> None:
    assert database.read(registry.version) == 0
    database.write(registry.bump)
    assert database.read(registry.version) == 1


def test_upgrading_twice_keeps_what_is_there(database_url: str) -> None:
    migrate.upgrade(database_url)
    database = Database(database_url)
    database.write(registry.bump)
    migrate.upgrade(database_url)
    assert database.read(registry.version) == 1
    database.close()


def test_processes_that_start_at_once_all_succeed(database_url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(4)
    started = [spawn.Process(target=_upgrade_together, args=(database_url, barrier)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [0, 0, 0, 0]
    database = Database(database_url)
    with database.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM registry")).scalar() == 1
    database.close()


def test_sqlite_migration_holds_a_lock_that_others_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[bool] = []

    def probe(*_: object) -> None:
        with (tmp_path / "holdfast.db.migrate.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(True)

    monkeypatch.setattr("alembic.command.upgrade", probe)
    for _ in range(2):
        migrate.upgrade(f"sqlite:///{tmp_path / 'holdfast.db'}")
    assert held == [True, True]


def test_database_of_a_newer_version_is_refused_with_a_remedy_and_left_alone(database: Database) -> None:
    url = database.url.render_as_string(hide_password=False)
    database.write(lambda s: s.execute(text("UPDATE alembic_version SET version_num = '9999'")))
    with pytest.raises(migrate.DatabaseTooNew, match="9999") as refused:
        migrate.upgrade(url)
    assert "backup" in refused.value.hint
    assert migrate.current(url) == "9999"


def test_migration_that_fails_half_way_leaves_the_database_as_it_was(database_url: str) -> None:
    database = Database(database_url)
    # The last table of the first migration is in the way: all others are made before it.
    database.write(lambda s: s.execute(text("CREATE TABLE registry (id INTEGER PRIMARY KEY)")))
    with pytest.raises(Exception, match="registry"):
        migrate.upgrade(database_url)
    assert migrate.current(database_url) is None
    database.write(lambda s: s.execute(text("DROP TABLE registry")))
    migrate.upgrade(database_url)
    assert database.read(lambda s: s.get(RegistryRow, 1)) is not None
    database.close()


def test_claims_of_before_gangs_are_kept(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as before:
        copied = shutil.copytree(migrate._SCRIPTS, tmp_path / "migrations")
        for path in (copied / "versions").glob("000[4-9]_*.py"):
            path.unlink()
        before.setattr(migrate, "_SCRIPTS", copied)
        migrate.upgrade(database_url)
    database = Database(database_url)
    claim = (
        "INSERT INTO claim (instance_id, fence, gpu_uuid, host_id, memory_bytes, state, placement, expires_at) VALUES"
    )
    host = (
        "INSERT INTO host (id, name, machine_id, state, credential_hash, address, http_port, version, inventory,"
        " labels, generation, ram_allocatable, ram_used, projection, joined_at, seen_at, message, maintenance,"
        " maintenance_message, replacement_paused, durable)"
        " VALUES ('h1', 'h1', '', 'ready', 'x', '', 0, '', '{}', '{}', 1,"
        " 9, 7, 1, '2026-01-01', '2026-01-01', '', 'none', '', false, '{}')"
    )
    rows = (
        "('a/0-a', 3, 'g1', 'h1', 5, 'bound', '{\"host_id\":\"h1\"}', NULL)",
        "('b/0-a', 1, '', 'h1', 7, 'held', '{}', '2026-01-01 00:00:00')",
    )
    for statement in (host, *(f"{claim} {row}" for row in rows)):
        with database.engine.begin() as connection:
            connection.exec_driver_sql(statement)
    migrate.upgrade(database_url)
    kept = database.read(lambda s: s.exec(select(ClaimRow).order_by(col(ClaimRow.instance_id))).all())
    assert [(r.instance_id, r.fence, r.gpu_uuid, r.host_id, r.memory_bytes, r.state) for r in kept] == [
        ("a/0-a", 3, "g1", "h1", 5, "bound"),
        ("b/0-a", 1, "", "h1", 7, "held"),
    ]
    assert kept[0].placement == {"host_id": "h1"}
    assert kept[1].expires_at == datetime(2026, 1, 1, tzinfo=UTC)
    assert {(r.rank, r.hosts, r.priority) for r in kept} == {(0, 1, 1)}
    assert database.read(lambda s: s.get_one(HostRow, "h1").fabric_address) == ""
    # Both hosts of a gang have a row for their RAM.
    database.write(lambda s: s.add(ClaimRow(**kept[1].model_dump() | {"host_id": "h2"})))
    database.close()


def test_folder_of_a_sqlite_database_is_made(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'home' / 'holdfast.db'}"
    migrate.upgrade(url)
    assert migrate.current(url) == migrate.head()


def test_drafted_migration_adds_what_is_missing_in_the_databases_own_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(migrate._SCRIPTS, tmp_path / "migrations")
    first = copied / "versions" / "0001_first_tables.py"
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(line for line in lines if '"seen_at"' not in line and '"address"' not in line))
    monkeypatch.setattr(migrate, "_SCRIPTS", copied)
    head = migrate.head()
    migrate.draft("see hosts")
    [path] = (copied / "versions").glob("*_see_hosts.py")
    drafted = path.read_text()
    compile(drafted, "draft", "exec")
    assert "sa.Column('seen_at', sa.DateTime(timezone=True), nullable=False)" in drafted
    assert "sa.Column('address', sa.String(), nullable=False)" in drafted
    assert f"down_revision: str | None = '{head}'" in drafted


def _upgrade_together(url: str, barrier: Barrier) -> None:
    barrier.wait(30)
    migrate.upgrade(url)
