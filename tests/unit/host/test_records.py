"""What a host keeps on disk, and what it makes of files that are damaged."""

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fleet.engines.spec import EngineSpec
from fleet.hosts import HostLease
from fleet.instances import EngineExit, EngineLaunch
from fleet.placement.request import Placement
from worker_host.files import write_atomically
from worker_host.records import EngineRecord, LeaseRecord, Records, pack, unpack
from worker_host.runtime.protocol import ProcessRef

LEASE = LeaseRecord(lease=HostLease(host_id="h", registration=2), token=pack(b"\x00\xfftoken"))


def record(instance_id: str = "chat/1-a") -> EngineRecord:
    launch = EngineLaunch(
        instance_id=instance_id,
        deployment="chat",
        fence=4,
        spec=EngineSpec(engine="llama_cpp", engine_version="", model_path="m.gguf", served_name="chat"),
        placement=Placement(host_id="h"),
        drain=timedelta(seconds=30),
    )
    return EngineRecord(launch=launch, token=pack(b"token"))


def test_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    full = record().with_(
        process=ProcessRef(pid=12, began="345"),
        port=8000,
        attempt=3,
        sequence=9,
        ready_since=datetime(2026, 1, 2, tzinfo=UTC),
        suspended=True,
        ended=EngineExit(exit_code=-9, failure_class="killed"),
    )
    Records(tmp_path).save(full)
    assert Records(tmp_path).engines() == [full]


def test_engines_have_a_file_each_and_the_newest_content_counts(tmp_path: Path) -> None:
    records = Records(tmp_path)
    for known in (record("chat/1-a"), record("chat/2-b"), record("chat/1-a").with_(attempt=2)):
        records.save(known)
    assert [(r.launch.instance_id, r.attempt) for r in records.engines()] == [("chat/1-a", 2), ("chat/2-b", 0)]
    records.forget("chat/1-a")
    records.forget("chat/1-a")
    assert [r.launch.instance_id for r in records.engines()] == ["chat/2-b"]


@pytest.mark.parametrize("garbage", [b"", b"null", b'{"launch": {}}', b"\xff\xfe"])
def test_damaged_record_hides_no_other(tmp_path: Path, garbage: bytes) -> None:
    records = Records(tmp_path)
    records.save(record("chat/2-b"))
    (tmp_path / "engines" / "chat@1-a.json").write_bytes(garbage)
    assert [r.launch.instance_id for r in records.engines()] == ["chat/2-b"]


def test_fields_of_a_newer_version_do_no_harm(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.save(record())
    [path] = (tmp_path / "engines").glob("*.json")
    path.write_text(path.read_text().replace('"attempt":0', '"attempt":0,"invented_later":{"a":1}'))
    assert records.engines() == [record()]


def test_lease_is_kept_and_given_up(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.lease() is None
    records.save_lease(LEASE)
    assert records.lease() == LEASE
    records.save_lease(None)
    records.save_lease(None)
    assert records.lease() is None


@pytest.mark.parametrize("garbage", [b"", b"{}", b"\xff\xfe"])
def test_damaged_lease_is_no_lease(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "lease.json").write_bytes(garbage)
    assert Records(tmp_path).lease() is None


def test_tokens_survive_as_they_are() -> None:
    token = bytes(range(256))
    assert unpack(pack(token)) == token


def test_only_the_owner_reads_what_holds_tokens(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.save(record())
    records.save_lease(LEASE)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("worker_host.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"


def test_what_cannot_be_written_leaves_no_older_record_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Records(tmp_path)
    records.save(record())
    records.save_lease(LEASE)

    def full(path: Path, _text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("worker_host.records.write_atomically", full)
    records.save(record().with_(attempt=1))
    records.save_lease(LEASE)
    assert records.engines() == [], "it would speak of a process that has gone"
    assert records.lease() is None
