"""Who gets in: passes, machines, forgotten hosts."""

import time
from collections.abc import Callable

import grpc
import grpc.aio
import pytest
from sqlmodel import Session

from api.relay.temporal_calls import SERVICE
from fleet.access.authority import new_key
from fleet.access.tickets import Scope, Ticket, sign_pass
from fleet.db import registry
from fleet.db.tables import HostRow
from fleet.join import ENGINES, TIME_HEADER, EngineList
from tests.raw_host import RawHost
from tests.unit.relay.world import World, soon

INFO = SERVICE + "GetSystemInfo"
NOTHING = EngineList(engines=[])

BAD: dict[str, tuple[Callable[[World, RawHost], str], str]] = {
    "none": (lambda w, h: "", "no_pass"),
    "no scheme": (lambda w, h: h.authorization().removeprefix("Bearer "), "no_pass"),
    "noise": (lambda w, h: "Bearer x.y.z", "invalid"),
    "very long": (lambda w, h: "Bearer " + "x" * 5000, "no_pass"),
    "expired": (lambda w, h: h.authorization(time.time() - 3600), "expired"),
    "from the future": (lambda w, h: h.authorization(time.time() + 3600), "invalid"),
    "signed with another key": (lambda w, h: f"Bearer {sign_pass(new_key(), h.host_id, h.boot_id)}", "invalid"),
    "a ticket of the control plane": (
        lambda w, h: f"Bearer {w.keys.tickets.sign(Ticket(h.host_id, Scope.HOST))}",
        "unknown_host",
    ),
    "of nobody": (lambda w, h: f"Bearer {sign_pass(new_key(), 'nobody-1', 'b')}", "unknown_host"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("method", [INFO, ENGINES])
async def test_without_a_valid_pass_nothing_is_answered(world: World, what: str, method: str) -> None:
    host = await world.host()
    make, reason = BAD[what]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(
            method, NOTHING.model_dump_json().encode() if method == ENGINES else b"", credential=make(world, host)
        )
    forgotten = reason == "unknown_host" and method == ENGINES
    assert refused.value.code() is (grpc.StatusCode.NOT_FOUND if forgotten else grpc.StatusCode.UNAUTHENTICATED)
    assert not world.temporal.seen
    action = "host.engines" if method == ENGINES else "temporal.GetSystemInfo"
    row = await world.audited(action, reason)
    assert (row.actor, row.outcome, row.peer) == ("unknown", "refused", "127.0.0.1")


async def test_a_pass_refused_for_its_time_comes_with_ours(world: World) -> None:
    host = await world.host()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(INFO, b"", credential=host.authorization(time.time() - 3600))
    ours = dict(refused.value.trailing_metadata() or ())[TIME_HEADER]
    assert abs(float(str(ours)) - time.time()) < 5


async def test_a_forgotten_host_is_turned_away_within_a_second(world: World) -> None:
    host = await world.host()
    await host.ask(INFO, b"")

    def forget(session: Session) -> None:
        session.delete(session.get_one(HostRow, host.host_id))
        registry.bump(session)

    world.database.write(forget)

    async def turned_away() -> bool:
        try:
            await host.ask(ENGINES, NOTHING)
        except grpc.aio.AioRpcError as error:
            return error.code() is grpc.StatusCode.NOT_FOUND
        return False

    await soon(turned_away, within=1.5)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(INFO, b"")
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_host_that_has_not_registered_is_told_to_wait(world: World) -> None:
    host = await RawHost.join(world.url, world.token())
    for method in (INFO, ENGINES):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await host.ask(method, NOTHING if method == ENGINES else b"")
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_copy_of_the_disk_can_do_nothing_while_the_original_lives(world: World) -> None:
    host = await world.host()
    copy = host.copy()
    with pytest.raises(grpc.aio.AioRpcError) as temporal:
        await copy.ask(INFO, b"")
    with pytest.raises(grpc.aio.AioRpcError) as ours:
        await copy.ask(ENGINES, NOTHING)
    assert temporal.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ours.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert (await world.audited("temporal.GetSystemInfo", "other_machine")).actor == f"host:{host.host_id}"
    await host.ask(INFO, b"")


async def test_while_the_database_is_away_known_hosts_go_on_and_unknown_ones_are_told_to_try_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    host = await world.host()

    async def away(*_: object) -> None:
        raise OperationalError("select", {}, Exception("connection refused"))

    monkeypatch.setattr(world.relay.directory._database, "aread", away)
    await host.ask(INFO, b"")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await host.ask(INFO, b"", credential=f"Bearer {sign_pass(new_key(), 'new-host', 'b')}")
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
