"""How gateways are told to reach a host."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.relay import reach
from fleet.access.authority import CertificateAuthority, new_key, signing_request
from tests.raw_host import RawHost
from tests.unit.relay.test_tunnels import tunnel
from tests.unit.relay.world import World, soon


@asynccontextmanager
async def door_of(host_id: str, ca: CertificateAuthority, folder: Path) -> AsyncIterator[int]:
    """A host's own port, as seen from outside."""
    key = new_key()
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_text(ca.issue_to_host(signing_request(key, "x"), host_id))
    private.write_text(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, private)
    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def until(world: World, host: RawHost, **expected: object) -> "asyncio.Future[bool]":
    async def is_so() -> bool:
        row = await asyncio.to_thread(world.row, host.host_id)
        return all(getattr(row, name) == value for name, value in expected.items())

    return asyncio.ensure_future(soon(is_so, within=8, what=str(expected)))


async def test_a_host_whose_port_answers_is_reached_there(world: World, tmp_path: Path) -> None:
    host = await world.host()
    world.change(host.host_id, tunnel_only=True)
    async with door_of(host.host_id, world.keys.ca, tmp_path) as port:
        await host.register(reach="auto", http_port=port)
        await until(world, host, tunnel_only=False)


async def test_a_host_whose_port_is_closed_is_reached_through_its_tunnel(world: World) -> None:
    host = await world.host()
    await host.register(reach="auto", http_port=1)
    await until(world, host, tunnel_only=True)


async def test_somebody_else_at_the_address_is_not_the_host(world: World, tmp_path: Path) -> None:
    host = await world.host()
    async with door_of("other-1", world.keys.ca, tmp_path) as port:
        await host.register(reach="auto", http_port=port)
        await until(world, host, tunnel_only=True)


async def test_a_stranger_s_certificate_is_not_the_host(world: World, tmp_path: Path) -> None:
    host = await world.host()
    async with door_of(host.host_id, CertificateAuthority.create(), tmp_path) as port:
        await host.register(reach="auto", http_port=port)
        await until(world, host, tunnel_only=True)


async def test_a_port_that_opens_later_is_found(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_AGAIN_S", 0.5)
    monkeypatch.setattr(reach, "_RECORD_EVERY_S", 0.1)
    host = await world.host()
    async with door_of(host.host_id, world.keys.ca, tmp_path) as port:
        pass  # a free port
    async with tunnel(world, host):
        await host.register(reach="auto", http_port=port)
        await until(world, host, tunnel_only=True)
        context_folder = tmp_path / "again"
        context_folder.mkdir()
        async with door_of(host.host_id, world.keys.ca, context_folder) as other:
            await host.register(reach="auto", http_port=other)
            await until(world, host, tunnel_only=False)
        await until(world, host, tunnel_only=True)


async def test_which_relay_holds_the_tunnel_is_in_the_database_while_it_does(world: World) -> None:
    host = await world.host()
    async with tunnel(world, host):
        await until(world, host, tunnel_url=world.settings.relay_for_gateways)
    await until(world, host, tunnel_url="")


async def test_a_tunnel_opened_here_replaces_another_relay_s_word_but_an_old_one_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "_RECORD_EVERY_S", 0.1)
    host = await world.host()
    world.change(host.host_id, tunnel_url="http://former:8482")
    async with tunnel(world, host):
        await until(world, host, tunnel_url=world.settings.relay_for_gateways)
        world.change(host.host_id, tunnel_url="http://newer:8482")
        await asyncio.sleep(0.5)
        assert world.row(host.host_id).tunnel_url == "http://newer:8482"
    await asyncio.sleep(0.5)
    assert world.row(host.host_id).tunnel_url == "http://newer:8482"


async def test_a_word_that_was_lost_is_said_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reach, "_RECORD_EVERY_S", 0.1)
    host = await world.host()
    async with tunnel(world, host):
        await until(world, host, tunnel_url=world.settings.relay_for_gateways)
        world.change(host.host_id, tunnel_url="")
        await until(world, host, tunnel_url=world.settings.relay_for_gateways)


async def test_of_a_relay_that_was_killed_nothing_stays_once_it_is_back(world: World) -> None:
    host, other = await world.host("a"), await world.host("b")
    world.change(host.host_id, tunnel_url=world.settings.relay_for_gateways)
    async with tunnel(world, other):
        await until(world, host, tunnel_url="")
