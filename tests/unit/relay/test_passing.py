"""Calls to Temporal through the whole relay, to a Temporal that is played."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import pytest
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import request_response_pb2 as api

from api.relay.temporal_calls import SERVICE
from fleet.ids import host_queue
from fleet.join import AUTHORIZATION
from tests.raw_host import RawHost
from tests.unit.relay.world import World, soon

POLL = SERVICE + "PollActivityTaskQueue"
BEAT = SERVICE + "RecordActivityTaskHeartbeat"
Context = grpc.aio.ServicerContext[bytes, bytes]


def poll(host: RawHost) -> bytes:
    queue = TaskQueue(name=host_queue(host.host_id), kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
    return api.PollActivityTaskQueueRequest(namespace="models", task_queue=queue).SerializeToString()


async def beat(world: World, host: RawHost, **more: Any) -> bytes:
    token = world.relay.door._temporal.tokens.seal(b"raw", host.host_id)
    request = api.RecordActivityTaskHeartbeatRequest(namespace="models", task_token=token)
    return await host.ask(BEAT, request.SerializeToString(), **more)


async def test_temporal_gets_the_raw_token_our_namespace_and_not_the_host_s_pass(world: World) -> None:
    host = await world.host()
    await beat(world, host)
    method, request, metadata = world.temporal.seen[-1]
    assert method == "RecordActivityTaskHeartbeat"
    assert api.RecordActivityTaskHeartbeatRequest.FromString(request).task_token == b"raw"
    assert metadata["temporal-namespace"] == "models"
    assert AUTHORIZATION not in metadata


async def test_an_error_of_temporal_arrives_with_its_code_its_words_and_its_details(world: World) -> None:
    host = await world.host()

    async def gone(_: bytes, context: Context) -> bytes:
        context.set_trailing_metadata((("grpc-status-details-bin", b"\x08\x05"), ("secret", "of ours")))
        await context.abort(grpc.StatusCode.NOT_FOUND, "workflow execution already completed")
        return b""

    world.temporal.answers["RecordActivityTaskHeartbeat"] = gone
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await beat(world, host)
    assert (error.value.code(), error.value.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "workflow execution already completed",
    )
    trailing = dict(error.value.trailing_metadata() or ())
    assert trailing["grpc-status-details-bin"] == b"\x08\x05"
    assert "secret" not in trailing


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED])
async def test_a_temporal_that_refuses_the_relay_does_not_look_like_a_refused_host(
    world: World, code: grpc.StatusCode
) -> None:
    host = await world.host()

    async def refuse(_: bytes, context: Context) -> bytes:
        await context.abort(code, "no such API key")
        return b""

    world.temporal.answers["RecordActivityTaskHeartbeat"] = refuse
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await beat(world, host)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "refuses the relay" in (error.value.details() or "")


async def test_a_poll_that_the_host_gives_up_is_given_up_at_temporal_at_once(world: World) -> None:
    host = await world.host()
    began, ended = asyncio.Event(), asyncio.Event()

    async def wait(_: bytes, context: Context) -> bytes:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()
        return b""

    world.temporal.answers["PollActivityTaskQueue"] = wait
    polling = asyncio.create_task(host.ask(POLL, poll(host), timeout=60))
    await asyncio.wait_for(began.wait(), 10)
    polling.cancel()
    await asyncio.wait_for(ended.wait(), 5)
    with pytest.raises(asyncio.CancelledError):
        await polling


async def test_the_host_s_deadline_is_temporal_s(world: World) -> None:
    host = await world.host()
    left: list[float] = []

    async def note(_: bytes, context: Context) -> bytes:
        left.append(context.time_remaining() or 0)
        return b""

    world.temporal.answers["RecordActivityTaskHeartbeat"] = note
    await beat(world, host, timeout=7)
    assert 4 < left[0] <= 7.1


async def test_polls_beyond_what_one_connection_takes_get_another(world: World) -> None:
    host = await world.host()
    waiting, go = 0, asyncio.Event()

    async def wait(_: bytes, context: Context) -> bytes:
        nonlocal waiting
        waiting += 1
        await go.wait()
        return b""

    world.temporal.answers["PollActivityTaskQueue"] = wait
    async with host.channel() as channel:
        metadata = ((AUTHORIZATION, host.authorization()),)
        polls = [channel.unary_unary(POLL)(poll(host), metadata=metadata, timeout=30) for _ in range(200)]

        async def all_wait() -> bool:
            return waiting == 200

        await soon(all_wait, what="200 polls at Temporal")
        assert len(world.relay.upstream._polling) == 3
        await beat(world, host, timeout=5)
        go.set()
        await asyncio.gather(*polls)


async def test_one_host_cannot_take_all_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.relay.server.CALLS_PER_HOST", 3)
    greedy, modest = await world.host("greedy"), await world.host("modest")
    go = asyncio.Event()

    async def wait(_: bytes, context: Context) -> bytes:
        await go.wait()
        return b""

    world.temporal.answers["PollActivityTaskQueue"] = wait
    polls = [asyncio.create_task(greedy.ask(POLL, poll(greedy))) for _ in range(3)]

    async def all_wait() -> bool:
        return len([s for s in world.temporal.seen if s[0] == "PollActivityTaskQueue"]) == 3

    await soon(all_wait)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await beat(world, greedy)
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await beat(world, modest)
    go.set()
    await asyncio.gather(*polls)
    await beat(world, greedy)
