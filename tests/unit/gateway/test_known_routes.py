"""What each public name leads to, and how gateways learn of it, on both databases."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.gateway.known_routes import KnownRoute, Served, by_public_name
from api.gateway.table import RoutingTable, load
from fleet.access.sealing import master_sealer
from fleet.db.routes import ProviderRow, RouteRow
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow, InstanceRow, RevisionRow
from fleet.routes import ProviderSpec, RouteSpec
from tests.unit.gateway.world import CREATED, World

MASTER = master_sealer("master")
AT = datetime(2026, 11, 2, tzinfo=UTC)


class Names(World):
    def add_route(self, name: str, *targets: dict[str, Any], **spec: Any) -> None:
        parsed = RouteSpec.model_validate({"targets": targets or ({"deployment": "smol"},), **spec})
        self.add_raw_route(name, parsed.model_dump(mode="json"))

    def add_raw_route(self, name: str, spec: Any) -> None:
        self._change(lambda s: s.merge(RouteRow(name=name, spec=spec, created_at=AT, updated_at=AT)))

    def add_provider(self, name: str, sealed_key: str = "", **spec: Any) -> None:
        parsed = ProviderSpec.model_validate({"base_url": "https://api.example.com/v1", **spec})
        self.add_raw_provider(name, parsed.model_dump(mode="json", exclude={"api_key"}), sealed_key)

    def add_raw_provider(self, name: str, spec: Any, sealed_key: str = "") -> None:
        row = {"name": name, "spec": spec, "sealed_key": sealed_key, "created_at": AT, "updated_at": AT}
        self._change(lambda s: s.merge(ProviderRow(**row)))

    def set_deployment(self, name: str, *adapters: str, **changes: Any) -> None:
        def change(session: Any) -> None:
            row = session.get_one(DeploymentRow, name)
            row.spec = lora(*adapters)
            for field, value in changes.items():
                setattr(row, field, value)
            session.add(row)

        self.add_deployment(name)
        self._change(change)

    def add_instance(self, instance: str, revision: int, deployment: str = "smol") -> None:
        row = {"deployment": deployment, "revision": revision, "launch": 1, "slot": 1, "state": "ready"}
        self._change(lambda s: s.merge(InstanceRow(id=instance, projection=1, **row)))

    def add_revision(self, revision: int, engine: str, *adapters: str, deployment: str = "smol") -> None:
        row = {"deployment": deployment, "revision": revision, "spec": lora(*adapters), "engine": engine}
        self._change(lambda s: s.merge(RevisionRow(run_id="r", engine_version="1", created_at=AT, **row)))

    def load(self, open_sealed: Callable[[str], str] | None = MASTER.open) -> RoutingTable:
        return self.database.read(lambda s: load(s, open_sealed))


def lora(*names: str) -> dict[str, Any]:
    return {"lora": [{"name": name, "path": f"{name}.gguf"} for name in names]}


@pytest.fixture
def names(database: Database) -> Names:
    return Names(database)


def test_names_are_those_of_routes_aliases_deployments_and_adapters(names: Names) -> None:
    names.set_deployment("smol", "law", "med")
    names.set_deployment("big", "law")
    names.add_route("chat", {"deployment": "smol", "weight": 3}, aliases=["gpt", "a/b:c"])
    names.add_route("big", {"provider": "openai", "model": "gpt-x"})
    routes = names.load().routes
    assert list(routes) == ["a/b:c", "big", "chat", "gpt", "law", "med", "smol"]
    assert routes["gpt"] is routes["a/b:c"] is routes["chat"]
    chat = routes["chat"]
    assert (chat.name, chat.created_at, chat.implicit) == ("chat", AT.timestamp(), False)
    assert chat.spec.targets[0].weight == 3
    assert (routes["big"].implicit, routes["big"].spec.targets[0].provider) == (False, "openai")
    smol = routes["smol"]
    assert (smol.implicit, smol.created_at, smol.spec) == (True, CREATED.timestamp(), spec_of({"deployment": "smol"}))
    law = spec_of({"deployment": "big", "adapter": "law"}, {"deployment": "smol", "adapter": "law"})
    assert (routes["law"].implicit, routes["law"].spec) == (True, law)


def spec_of(*targets: dict[str, Any]) -> RouteSpec:
    return RouteSpec.model_validate({"targets": targets})


def test_a_row_that_cannot_be_read_stops_no_other(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    names.add_deployment("smol")
    names.add_route("chat")
    for name, spec in {
        "new": {"targets": [{"planet": "mars"}]},
        "none": {"targets": []},
        "odd": 5,
        "null": None,
    }.items():
        names.add_raw_route(name, spec)
    names.add_provider("good")
    names.add_raw_provider("bad", {"base_url": "nonsense"})
    with caplog.at_level(logging.ERROR):
        table = names.load()
    assert (list(table.routes), list(table.providers)) == (["chat", "smol"], ["good"])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 5
    assert any(line.startswith("route new is left out: targets.0.planet: ") for line in lines)


def test_the_same_spec_is_the_same_object_until_it_changes(names: Names) -> None:
    names.add_deployment("smol")
    names.add_route("chat", timeouts={"total_s": 1})
    first, second = names.load().routes, names.load().routes
    assert [first[n].spec is second[n].spec for n in ("chat", "smol")] == [True, True]
    names.add_route("chat", timeouts={"total_s": 2})
    assert names.load().routes["chat"].spec.timeouts.total_s == 2


def test_providers_come_with_their_keys_opened(names: Names) -> None:
    names.add_provider("openai", MASTER.seal("sk-secret"), headers={"x-team": "a"}, in_flight=7)
    names.add_provider("open", kind="anthropic")
    providers = names.load().providers
    known = providers["openai"]
    assert (known.kind, known.base_url, known.api_key) == ("openai", "https://api.example.com/v1", "sk-secret")
    assert (known.headers, known.in_flight) == ({"x-team": "a"}, 7)
    assert "sk-secret" not in repr(known)
    assert (providers["open"].kind, providers["open"].api_key) == ("anthropic", "")


@pytest.mark.parametrize("open_sealed", [None, master_sealer("another").open])
def test_a_provider_whose_key_cannot_be_opened_is_left_out(
    names: Names, caplog: pytest.LogCaptureFixture, open_sealed: Callable[[str], str] | None
) -> None:
    names.add_provider("locked", MASTER.seal("sk"))
    names.add_provider("open")
    with caplog.at_level(logging.ERROR):
        assert list(names.load(open_sealed).providers) == ["open"]
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("provider locked is left out: ")


def test_an_endpoint_is_of_the_revision_that_its_instance_runs(names: Names) -> None:
    names.set_deployment("smol", "law", "new", revision=3, engine="vllm")
    names.add_revision(2, "llama_cpp", "med", "law")
    names.add_revision(3, "vllm", "law", "new")
    names.add_revision(2, "sglang", "other", deployment="another")
    for number, revision in enumerate((2, 3, 1)):
        names.add_instance(f"i-{number}", revision)
        names.add_endpoint("smol", f"http://127.0.0.1:{number + 1}", instance=f"i-{number}")
    names.add_endpoint("smol", "http://127.0.0.1:9", instance="i-9")
    names.add_endpoint("gone", "http://127.0.0.1:10", instance="i-10")
    table = names.load()
    assert [(e.instance_id, e.revision, e.engine, e.adapters) for e in table.endpoints["smol"]] == [
        ("i-0", 2, "llama_cpp", ("med", "law")),
        ("i-1", 3, "vllm", ("law", "new")),
        ("i-2", 1, "vllm", ("law", "new")),
        ("i-9", 0, "vllm", ("law", "new")),
    ]
    assert [(e.revision, e.engine, e.adapters) for e in table.endpoints["gone"]] == [(0, "", ())]


# -- any set of names ----------------------------------------------------------------------------------------------

some_names = st.sampled_from(["a", "b", "c", "d", "e", "f"])
routes = st.builds(
    lambda name, aliases: KnownRoute(name, 1, spec_of({"provider": "p"}).model_copy(update={"aliases": aliases})),
    some_names,
    st.lists(some_names, max_size=3),
)
deployments = st.builds(Served, some_names, st.integers(0, 9), st.lists(some_names, max_size=3).map(tuple))


@given(
    st.lists(routes, max_size=5, unique_by=lambda r: r.name),
    st.lists(deployments, max_size=5, unique_by=lambda d: d.name),
    st.randoms(use_true_random=False),
)
def test_names_lead_to_the_same_whatever_the_order(made: list[KnownRoute], served: list[Served], chance: Any) -> None:
    found = by_public_name(made, served)
    other_made, other_served = list(made), list(served)
    chance.shuffle(other_made)
    chance.shuffle(other_served)
    assert list(by_public_name(other_made, other_served).items()) == list(found.items())
    own, aliases = {r.name for r in made}, {a for r in made for a in r.spec.aliases}
    adapters = {a for d in served for a in d.adapters}
    assert set(found) == own | aliases | {d.name for d in served} | adapters
    for name, route in found.items():
        targets = [(t.deployment, t.adapter) for t in route.spec.targets]
        if name in own:
            assert (route.name, route.implicit) == (name, False)
        elif name in aliases:
            assert route.name == min(r.name for r in made if name in r.spec.aliases)
        elif name in {d.name for d in served}:
            assert (route.implicit, targets) == (True, [(name, None)])
        else:
            assert (route.implicit, targets) == (True, sorted((d.name, name) for d in served if name in d.adapters))


def test_an_adapter_that_very_many_deployments_have_leads_to_as_many_as_a_route_may_have() -> None:
    served = [Served(f"d{n:02}", n, ("law",)) for n in range(40)]
    law = by_public_name([], served)["law"]
    assert [t.deployment for t in law.spec.targets] == [f"d{n:02}" for n in range(32)]
