"""What hosts say of themselves, through the door."""

import asyncio
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from typing import Any

import grpc
import grpc.aio
import pytest
from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from api.relay import registering
from fleet.access.authority import new_key, public_key_of, signing_request
from fleet.db.session import Database
from fleet.db.tables import ClaimRow, HostRow
from fleet.instances import EnginePhase, EngineReport
from fleet.inventory import Registration
from fleet.join import (
    ENGINES,
    RENEW,
    REPORT,
    STATUS,
    Certificate,
    CertificateRequest,
    EngineList,
    StatusAnswer,
)
from fleet.states import ClaimState, HostState
from fleet.telemetry import HostStatus
from tests.raw_host import RawHost, inventory
from tests.unit.relay.world import World, soon

REF = {"instance_id": "chat/0-abc", "fence": 3}


def claim(world: World, host_id: str, state: ClaimState = ClaimState.BOUND, **changes: Any) -> None:
    row = ClaimRow(**{**REF, "host_id": host_id, "memory_bytes": 1, "state": state, "placement": {}, **changes})
    world.database.write(lambda s: s.add(row))


def report(**changes: Any) -> EngineReport:
    return EngineReport.model_validate({**REF, "sequence": 1, "phase": next(iter(EnginePhase)), **changes})


def status(host: RawHost, **changes: Any) -> HostStatus:
    fields = {"boot_id": host.boot_id, "inventory": "f" * 32, "at": datetime.now(UTC)}
    return HostStatus.model_validate({**fields, **changes})


async def test_a_registration_is_kept_and_told_to_the_workflow_and_says_what_may_run(world: World) -> None:
    host = await world.host()
    claim(world, host.host_id)
    answer = await host.register(address="10.0.0.7", http_port=8470)
    assert [e.model_dump() for e in answer.engines] == [REF]
    assert answer.ticket_keys == [world.keys.tickets.public_key]
    row = world.row(host.host_id)
    assert (row.boot_id, row.address, row.http_port, row.version) == (
        host.boot_id,
        "10.0.0.7",
        8470,
        version("holdfast"),
    )
    assert [r.boot_id for r in world.workflows.registered] == [host.boot_id] * 2


async def test_registering_again_changes_nothing(world: World) -> None:
    host = await world.host()
    before = world.row(host.host_id).generation
    await host.register()
    assert world.row(host.host_id).generation == before


async def test_a_fresh_process_makes_known_which_engines_never_reached_it(world: World) -> None:
    host = await world.host()
    claim(world, host.host_id)
    await host.register(fresh=True)
    assert [e.model_dump() for e in world.workflows.unknown] == [{**REF, "host_id": host.host_id}]


async def test_after_a_reboot_the_machine_waits_until_its_former_self_was_silent_for_long_enough(world: World) -> None:
    host = await world.host()
    rebooted = host.copy()
    with pytest.raises(grpc.aio.AioRpcError):
        await rebooted.register()
    world.change(host.host_id, seen_at=datetime.now(UTC) - registering.QUIET_FOR)
    await rebooted.register()
    assert world.row(host.host_id).boot_id == rebooted.boot_id
    await rebooted.ask(ENGINES, EngineList(engines=[]))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(ENGINES, EngineList(engines=[]))
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_who_may_register_is_decided_in_one_transaction(database: Database) -> None:
    row = HostRow(id="box-1", name="box", state=HostState.LOST, credential_hash="x", boot_id="")
    database.write(lambda s: s.add(row))
    said = Registration(inventory=inventory("box", "one"), address="10.0.0.1", http_port=1, version="0.1.0")

    def register(boot: str) -> None:
        database.write(lambda s: registering.register(s, "box-1", boot, said, "10.0.0.9"))

    register("one")
    with pytest.raises(registering.OtherMachine) as refused:
        register("two")
    assert "10.0.0.9" in refused.value.message
    register("one")

    def silent(session: Session) -> None:
        session.get_one(HostRow, "box-1").seen_at = datetime.now(UTC) - timedelta(seconds=26)

    database.write(silent)
    register("two")
    with pytest.raises(registering.OtherMachine):
        register("one")


async def test_an_older_host_is_refused_with_a_clear_message_and_the_one_before_is_not(world: World) -> None:
    host = await world.host()
    major, minor, *_ = version("holdfast").split(".")
    await host.register(version=f"{major}.{int(minor) + 1}.0")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.register(version=f"{major}.{int(minor) + 2}.0")
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "upgrade the control plane" in (refused.value.details() or "")
    assert dict(refused.value.trailing_metadata() or ())["holdfast-reason"] == "version"
    assert (await world.audited("host.register", "version")).actor == f"host:{host.host_id}"


@pytest.mark.parametrize(("wish", "tunnel_only"), [("direct", False), ("tunnel", True)])
async def test_a_host_s_wish_how_to_be_reached_is_kept(world: World, wish: str, tunnel_only: bool) -> None:
    host = await world.host(reach=wish)
    assert (world.row(host.host_id).reach, world.row(host.host_id).tunnel_only) == (wish, tunnel_only)
    answer = StatusAnswer.model_validate_json(await host.ask(STATUS, status(host)))
    assert answer.tunnel is tunnel_only


async def test_what_was_given_up_is_free_once_the_host_says_that_it_is_gone(world: World) -> None:
    host = await world.host()
    claim(world, host.host_id, ClaimState.RELEASING)
    said = EngineList.model_validate({"engines": [REF]})
    assert EngineList.model_validate_json(await host.ask(ENGINES, said)).engines == []
    assert world.database.read(lambda s: s.get(ClaimRow, (*REF.values(), "", host.host_id))) is not None
    await host.ask(ENGINES, EngineList(engines=[]))
    assert world.database.read(lambda s: s.get(ClaimRow, (*REF.values(), "", host.host_id))) is None


async def test_a_report_reaches_the_instance_twice_if_sent_twice(world: World) -> None:
    host = await world.host()
    claim(world, host.host_id)
    for _ in range(2):
        assert await host.ask(REPORT, report()) == b""
    assert world.workflows.reported == [report(), report()]


async def test_a_host_cannot_report_on_an_engine_of_another_one(world: World) -> None:
    host, other = await world.host("a"), await world.host("b")
    claim(world, other.host_id)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(REPORT, report())
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not world.workflows.reported
    assert (await world.audited("host.report", "forbidden")).actor == f"host:{host.host_id}"


async def test_a_report_on_an_instance_that_has_ended_is_taken_and_forgotten(world: World) -> None:
    host = await world.host()
    world.workflows.ended = True
    assert await host.ask(REPORT, report()) == b""


async def test_a_status_is_kept_and_answered_with_the_time_and_the_keys(world: World) -> None:
    host = await world.host()
    answer = StatusAnswer.model_validate_json(await host.ask(STATUS, status(host, load=0.5)))
    assert answer.ticket_keys == [world.keys.tickets.public_key]
    assert abs(answer.now - datetime.now(UTC).timestamp()) < 5

    async def kept() -> bool:
        return world.row(host.host_id).status.get("load") == 0.5

    await soon(kept, within=5)


async def test_a_status_from_another_address_moves_the_host(world: World) -> None:
    host = await world.host()
    await host.ask(STATUS, status(host, address="10.9.9.9"))
    assert world.row(host.host_id).address == "10.9.9.9"
    await host.ask(STATUS, status(host))  # does not know
    assert world.row(host.host_id).address == "10.9.9.9"


async def test_a_status_of_another_boot_than_the_pass_s_is_refused(world: World) -> None:
    host = await world.host()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(STATUS, status(host, boot_id="another"))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "boot_id" in (refused.value.details() or "")


async def test_a_certificate_is_renewed_for_the_same_key_only(world: World) -> None:
    host = await world.host()
    mine = CertificateRequest(certificate_request=signing_request(host.key, "x"))
    answer = Certificate.model_validate_json(await host.ask(RENEW, mine))
    assert answer.ca == world.keys.ca.certificate_pem
    other = new_key()
    assert public_key_of(other) != public_key_of(host.key)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(RENEW, CertificateRequest(certificate_request=signing_request(other, "x")))
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(grpc.aio.AioRpcError) as damaged:
        await host.ask(RENEW, CertificateRequest(certificate_request="x"))
    assert damaged.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_without_a_database_hosts_are_told_to_try_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await world.host()

    async def away(*_: object) -> None:
        raise OperationalError("update", {}, Exception("connection refused"))

    monkeypatch.setattr(world.database, "awrite", away)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(ENGINES, EngineList(engines=[]))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    await host.ask(STATUS, status(host))  # waits in memory


async def test_many_hosts_at_once_are_all_served(world: World) -> None:
    hosts = await asyncio.gather(*(world.host(f"box-{n}") for n in range(12)))
    assert len({h.host_id for h in hosts}) == 12
    await asyncio.gather(*(h.ask(STATUS, status(h)) for h in hosts))


async def test_each_host_of_a_gang_reports_on_its_own_part_and_no_follower_speaks_for_the_leader(world: World) -> None:
    leader, follower, stranger = await world.host("one"), await world.host("two"), await world.host("three")
    claim(world, leader.host_id, gpu_uuid="g1", hosts=2)
    claim(world, follower.host_id, gpu_uuid="g2", hosts=2, rank=1)
    await leader.ask(REPORT, report())
    await follower.ask(REPORT, report(rank=1))
    for host, rank in ((follower, 0), (stranger, 0), (stranger, 1)):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await host.ask(REPORT, report(rank=rank))
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert [r.rank for r in world.workflows.reported] == [0, 1]


async def test_a_fresh_process_of_a_follower_makes_known_whose_engine_never_reached_it(world: World) -> None:
    leader, follower = await world.host("one"), await world.host("two")
    claim(world, leader.host_id, gpu_uuid="g1", hosts=2)
    claim(world, follower.host_id, gpu_uuid="g2", hosts=2, rank=1)
    await follower.register(fresh=True)
    assert [e.model_dump() for e in world.workflows.unknown] == [{**REF, "host_id": follower.host_id}]
