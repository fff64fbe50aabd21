"""What an operator sees who has only Temporal's UI, and what nobody must see there."""

import base64
import json
from collections.abc import Iterator

from google.protobuf.json_format import MessageToDict
from temporalio.api.sdk.v1 import WorkflowMetadata

from fleet import ids
from fleet.access.sealing import host_sealer, is_sealed
from fleet.instances import EngineExit, Remedy
from fleet.temporal import DEPLOYMENT, HOST, KIND, MODEL, REVISION, STATE
from tests.workflows.hosts import FakeHost
from tests.workflows.world import Handle, World

SECRET = "a secret that nobody may read"


async def details(handle: Handle) -> str:
    """What the UI shows as current details."""
    metadata: WorkflowMetadata = await handle.query("__temporal_workflow_metadata", result_type=WorkflowMetadata)
    return metadata.current_details


async def until_attributes(world: World, handle: Handle, **expected: object) -> None:
    """They become visible a moment after the state is recorded."""

    async def agree() -> bool:
        return await attributes(handle) == expected

    try:
        await world.until(agree)
    except AssertionError:
        assert await attributes(handle) == expected  # says what differs
        raise


async def attributes(handle: Handle) -> dict[str, object]:
    found = (await handle.describe()).typed_search_attributes
    return {pair.key.name.removeprefix("Holdfast"): pair.value for pair in found if "Holdfast" in pair.key.name}


async def test_deployment_is_found_and_says_how_it_is(world: World) -> None:
    await world.add_host()
    name = await world.deploy_ready(2)
    handle = world.deployment(name)
    assert await (await handle.describe()).static_summary() == f"{name}: model.gguf"
    expected = {"Kind": "deployment", "Deployment": name, "Model": "model.gguf", "State": "ready", "Revision": 1}
    await until_attributes(world, handle, **expected)
    text = await details(handle)
    assert text.startswith("**ready**: 2 of 2 replicas ready")
    assert "Next: nothing to do" in text
    for instance in world.fleet.of(name):
        assert f"| `{instance.instance_id}` | 1 | ready |" in text


async def test_instance_is_found_and_says_where_it_is_and_what_comes_next(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(1)
    instance = world.fleet.of(name)[0]
    handle = world.instance(instance.instance_id)
    assert await (await handle.describe()).static_summary() == f"replica 1 of {name}, revision 1"
    expected = {"Kind": "instance", "Deployment": name, "Model": "model.gguf", "State": "ready", "Revision": 1}
    await until_attributes(world, handle, **expected, Host=host.host_id)
    text = await details(handle)
    assert text.startswith("**ready**")
    assert f"Host `{host.host_id}`" in text
    assert "Endpoint http://127.0.0.1:1001, pid 101" in text
    assert "Next: serve until told to stop" in text


async def test_trouble_is_told_with_its_hint_in_instance_and_deployment(world: World) -> None:
    host = await world.add_host()
    host.next_exits = [
        EngineExit(exit_code=1, failure_class="model_not_found", hint="copy the file", remedy=Remedy.NEVER)
    ]
    name = await world.deploy(1)
    await world.until_phase(name, "failed")
    instance = world.instance(world.fleet.of(name)[0].instance_id)
    expected = {"Kind": "instance", "Deployment": name, "Model": "model.gguf", "State": "failed", "Revision": 1}
    await until_attributes(world, instance, **expected)
    for text in (await details(instance), await details(world.deployment(name))):
        assert "engine exited with 1 (model_not_found)" in text
        assert "Hint: copy the file" in text


async def test_host_is_found_and_says_how_it_is(world: World) -> None:
    host = await world.add_host(registered=True)
    handle = world.host_workflow(host)
    await until_attributes(world, handle, Kind="host", Host=host.host_id, State="ready")
    assert "Next: hold the lease" in await details(handle)
    await host.die()
    await world.until(lambda: world.host_state(host) == "lost", "lost")
    await until_attributes(world, handle, Kind="host", Host=host.host_id, State="lost")
    assert (await details(handle)).startswith("**lost** no sign of life")


async def test_attributes_answer_the_questions_of_an_operator(world: World) -> None:
    host = await world.add_host()
    name = await world.deploy_ready(2)
    query = (
        f"{KIND.name} = 'instance' AND {DEPLOYMENT.name} = '{name}' AND {STATE.name} = 'ready' "
        f"AND {HOST.name} = '{host.host_id}' AND {MODEL.name} = 'model.gguf' AND {REVISION.name} = 1"
    )

    async def found() -> set[str] | None:
        listed = {w.id async for w in world.client.list_workflows(query)}
        return listed if len(listed) == 2 else None

    expected = {ids.instance_workflow(i.instance_id) for i in world.fleet.of(name)}
    assert await world.until(found, "visibility") == expected


async def test_no_secret_enters_temporal_and_no_sealed_one_is_shown(world: World) -> None:
    host = await world.add_host()
    sealed = world.fleet.master.seal(SECRET)
    host.next_exits = [EngineExit(exit_code=1)]
    name = await world.deploy_ready(1, env={"TOKEN": sealed})
    spec = world.fleet.deployments[name].spec
    await world.change(name, spec=spec.model_copy(update={"env": {"TOKEN": world.fleet.master.seal(SECRET)}}))
    await world.until(lambda: {i.revision for i in world.fleet.of(name)} == {2}, "second revision")
    await world.until_ready(name, 1)
    handles: list[Handle] = [world.deployment(name), *(world.instance(i) for i in world.fleet.timeline)]
    assert len(handles) == 3
    seen = []
    for handle in handles:
        payloads = list(all_payloads(json.loads((await handle.fetch_history()).to_json())))
        assert len(payloads) > 10
        assert not [p for p in payloads if SECRET in p]
        for environment in environments(payloads):
            assert all(is_sealed(value) for value in environment.values())
            seen.append(environment)
    assert len(seen) > 5, "the environment travels"
    assert_opened_on_the_host_only(host)
    for handle in handles:
        shown = [await details(handle), str(await attributes(handle)), await summaries(handle)]
        assert not [text for text in shown if SECRET in text or "sealed:" in text]


def assert_opened_on_the_host_only(host: FakeHost) -> None:
    for engine in host.live:
        sealed = engine.launch.placement.env_for_host["TOKEN"]
        assert host_sealer(host.host_id).open(sealed) == SECRET


async def summaries(handle: Handle) -> str:
    """All texts for people: static ones, and those of activities and timers."""
    texts = []
    async for event in handle.fetch_history_events():
        metadata = MessageToDict(event.user_metadata)
        texts += list(all_payloads(metadata))
    return "\n".join(texts)


def all_payloads(node: object) -> Iterator[str]:
    """Every payload of a history, decoded."""
    if isinstance(node, dict):
        if isinstance(node.get("data"), str) and "metadata" in node:
            yield base64.b64decode(node["data"]).decode()
        for child in node.values():
            yield from all_payloads(child)
    elif isinstance(node, list):
        for child in node:
            yield from all_payloads(child)


def environments(payloads: list[str]) -> list[dict[str, str]]:
    """All values of fields that carry an environment."""
    return [e for p in payloads for e in _environments(json.loads(p))]


def _environments(node: object) -> Iterator[dict[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            if name in ("env", "env_sealed", "env_for_host") and child:
                yield child
            yield from _environments(child)
    elif isinstance(node, list):
        for child in node:
            yield from _environments(child)
