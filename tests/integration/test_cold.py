"""A deployment at zero replicas is woken by those who ask for it: real Temporal, engine, database; several gateways."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from temporalio.api.enums.v1 import EventType

from api.gateway.cold import ColdHold, Rhythm
from api.gateway.refusals import Refusal
from api.gateway.table import Refresher, RoutingTable
from api.waking import waker
from fleet import ids
from fleet.db.session import Database
from fleet.temporal import connect
from tests.stack import Stack

pytestmark = pytest.mark.slow

NAME = "sleepy"
WITHIN_S = 120.0


class Gateway:
    """What a gateway process has of this: its view of the fleet, and those that wait in it."""

    def __init__(self, stack: Stack) -> None:
        self.cold = ColdHold(waker(stack.settings), Rhythm(first=0.2, longest=1.0))
        self.table: RoutingTable | None = None
        self.database = Database(stack.settings.effective_database_url)
        self.refresher = Refresher(
            self.database, self._adopt, poll_interval=0.1, reload_interval=1.0, prepare=self._prepare
        )

    async def _prepare(self) -> None:
        pass

    def _adopt(self, table: RoutingTable) -> None:
        self.table = table
        self.cold.adopt(table.deployments)
        for name in table.endpoints:
            self.cold.ready(name)

    def wait(self) -> "asyncio.Future[None]":
        """Until the deployment can be asked."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        assert self.table is not None

        def refused(refusal: Refusal) -> None:
            ready.set_exception(refusal)

        self.cold.wait(self.table.deployments[NAME], loop.time(), lambda: ready.set_result(None), refused)
        return ready


@asynccontextmanager
async def gateways(stack: Stack, count: int) -> AsyncIterator[list[Gateway]]:
    made = [Gateway(stack) for _ in range(count)]
    for gateway in made:
        await gateway.refresher.refresh()
    tasks = [asyncio.create_task(gateway.refresher.run()) for gateway in made]
    yield made
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for gateway in made:
        gateway.database.close()


def deploy(stack: Stack, model: Path, **autoscaling: object) -> None:
    stack.deploy(NAME, str(model), replicas=0, autoscaling={"wake_on_request": True, **autoscaling})


async def wakes(stack: Stack) -> int:
    handle = (await connect(stack.settings)).get_workflow_handle(ids.deployment_workflow(NAME))
    accepted = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
    events = [e async for e in handle.fetch_history_events() if e.event_type == accepted]
    asked = [e.workflow_execution_update_accepted_event_attributes.accepted_request.input.name for e in events]
    return asked.count(ids.WAKE_UPDATE)


async def ask(http: httpx.AsyncClient, ready: "asyncio.Future[None]") -> int:
    await ready
    body = {"model": NAME, "max_tokens": 1, "messages": [{"role": "user", "content": "Hi"}]}
    return (await http.post("/v1/chat/completions", json=body)).status_code


async def test_fifty_requests_in_two_gateways_wake_it_once_and_all_are_answered(
    stack: Stack, small_model: Path
) -> None:
    deploy(stack, small_model)
    headers = {"authorization": f"Bearer {stack.key}"}
    async with (
        gateways(stack, 2) as both,
        httpx.AsyncClient(base_url=stack.url, headers=headers, timeout=WITHIN_S, trust_env=False) as http,
        asyncio.timeout(WITHIN_S),
    ):
        asking = [ask(http, both[n % 2].wait()) for n in range(50)]
        assert sum(gateway.cold.waiting(NAME) for gateway in both) == 50
        assert await asyncio.gather(*asking) == [200] * 50
    assert await wakes(stack) == 1
    shown = stack.deployment(NAME)
    assert (shown["spec"]["replicas"], shown["status"]["generation"]) == (1, 2)
    # To change autoscaling is no reason for new engines, and a scaled deployment is a person's again.
    pids = stack.engine_pids()
    stack.ok(stack.http.patch(f"/deployments/{NAME}", json={"spec": {"autoscaling": {"hold_for_s": 30}}}))
    stack.until_ready(NAME)
    assert stack.engine_pids() == pids


async def test_requests_go_on_waiting_while_temporal_is_away(
    new_stack: Callable[..., Stack], small_model: Path
) -> None:
    stack = new_stack()
    stack.add_host("a")
    deploy(stack, small_model)
    async with gateways(stack, 1) as [gateway], asyncio.timeout(WITHIN_S):
        stack.temporal.kill()
        ready = gateway.wait()
        done, _ = await asyncio.wait({ready}, timeout=2.0)  # several attempts
        assert not done
        await asyncio.to_thread(stack.revive)
        await ready
    assert await wakes(stack) == 1


async def test_what_a_person_stopped_is_refused(stack: Stack, small_model: Path) -> None:
    deploy(stack, small_model)
    stack.ok(stack.http.post(f"/deployments/{NAME}/stop"))
    async with gateways(stack, 1) as [gateway]:
        with pytest.raises(Refusal):
            gateway.wait()
