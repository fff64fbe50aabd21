"""Public names are given once, however many ask at the same time, on both databases."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier
from typing import Any

import pytest
from sqlmodel import Session

from fleet.db import providers, registry, routes
from fleet.db.providers import Kept
from fleet.db.routes import RouteRow
from fleet.db.session import Database
from fleet.db.tables import DeploymentRow
from fleet.errors import Conflict, HoldfastError, InvalidInput, NotFound, PreconditionFailed
from fleet.routes import ProviderSpec, RouteCreate

TARGET = {"deployment": "smol"}
PROVIDER = Kept(ProviderSpec(base_url="https://api.example.com/v1"), "")


def wanted(name: str, *aliases: str, targets: tuple[dict[str, Any], ...] = (TARGET,)) -> RouteCreate:
    return RouteCreate.model_validate({"name": name, "spec": {"targets": targets, "aliases": aliases}})


@pytest.fixture(autouse=True)
def smol(database: Database) -> None:
    row = DeploymentRow(
        name="smol",
        spec={"lora": [{"name": "law", "path": "law.gguf"}]},
        engine="llama_cpp",
        engine_version="1",
        generation=1,
        revision=1,
        launch=1,
        phase="ready",
        desired_replicas=1,
        ready_replicas=1,
        projection=1,
        created_at=datetime.now(UTC),
    )
    database.write(lambda s: s.add(row))


def together(database: Database, *transactions: Callable[[Session], object]) -> list[str]:
    """How each ended: the name of its error, or nothing."""
    barrier = Barrier(len(transactions))

    def run(transaction: Callable[[Session], object]) -> str:
        barrier.wait(30)
        try:
            database.write(transaction)
        except HoldfastError as error:
            return type(error).__name__
        return ""

    with ThreadPoolExecutor(len(transactions)) as pool:
        return sorted(pool.map(run, transactions))


def test_of_those_who_want_one_name_at_once_one_gets_it(database: Database) -> None:
    for turn in range(5):
        name = f"wanted-{turn}"
        asks: list[Callable[[Session], object]] = [
            lambda s, n=n, name=name: routes.create(s, wanted(f"{name}-{n}", name)) for n in range(3)
        ]
        asks.append(lambda s, name=name: routes.create(s, wanted(name)))
        assert together(database, *asks) == ["", "Conflict", "Conflict", "Conflict"]


def test_a_provider_goes_or_is_used_but_not_both(database: Database) -> None:
    for turn in range(5):
        name = f"p{turn}"
        database.write(lambda s, name=name: providers.create(s, name, PROVIDER))
        route = wanted(f"r{turn}", targets=({"provider": name},))
        ends = together(
            database, lambda s, route=route: routes.create(s, route), lambda s, name=name: providers.delete(s, name)
        )
        left = {p.name for p in database.read(providers.all_providers)}
        used = {r.name for r in database.read(routes.all_routes)}
        assert (ends, name in left, route.name in used) in (
            (["", "Conflict"], True, True),
            (["", "InvalidInput"], False, False),
        )


def test_of_two_changes_of_one_generation_one_is_made(database: Database) -> None:
    database.write(lambda s: routes.create(s, wanted("chat")))
    changes: list[Callable[[Session], object]] = [
        lambda s, n=n: routes.change(s, "chat", lambda _: wanted("chat", f"a{n}"), if_generation=1) for n in range(3)
    ]
    assert together(database, *changes) == ["", "PreconditionFailed", "PreconditionFailed"]
    assert database.read(lambda s: routes.existing(s, "chat").generation) == 2


def test_each_change_and_nothing_else_is_news_for_gateways(database: Database) -> None:
    version = database.read(registry.version)
    steps: list[tuple[Callable[[Session], object], int]] = [
        (lambda s: routes.create(s, wanted("chat"), "key"), 1),
        (lambda s: routes.create(s, wanted("chat"), "key"), 0),
        (lambda s: routes.change(s, "chat", lambda _: wanted("chat")), 0),
        (lambda s: routes.change(s, "chat", lambda _: wanted("chat", "a"), key="k"), 1),
        (lambda s: routes.change(s, "chat", lambda _: wanted("chat", "b"), key="k"), 0),
        (lambda s: routes.delete(s, "chat"), 1),
        (lambda s: providers.create(s, "p", PROVIDER), 1),
        (lambda s: providers.change(s, "p", lambda _: PROVIDER), 0),
        (lambda s: providers.change(s, "p", lambda _: Kept(PROVIDER.spec, "sealed")), 1),
        (lambda s: providers.delete(s, "p"), 1),
    ]
    for step, more in steps:
        database.write(step)
        version += more
        assert database.read(registry.version) == version


def test_a_refused_change_leaves_everything_as_it_was(database: Database) -> None:
    database.write(lambda s: routes.create(s, wanted("chat", "a")))
    database.write(lambda s: routes.create(s, wanted("other", "b")))
    before = database.read(lambda s: (s.get_one(RouteRow, "chat").model_dump(), registry.version(s)))
    refusals: list[tuple[type[HoldfastError], Callable[[Session], object]]] = [
        (Conflict, lambda s: routes.change(s, "chat", lambda _: wanted("chat", "b"))),
        (InvalidInput, lambda s: routes.change(s, "chat", lambda _: wanted("chat", targets=({"deployment": "no"},)))),
        (PreconditionFailed, lambda s: routes.change(s, "chat", lambda _: wanted("chat"), if_generation=2)),
        (NotFound, lambda s: routes.delete(s, "a")),
        (Conflict, lambda s: routes.refuse_alias(s, "a")),
    ]
    for error, change in refusals:
        with pytest.raises(error):
            database.write(change)
    assert database.read(lambda s: (s.get_one(RouteRow, "chat").model_dump(), registry.version(s))) == before


def test_adapters_are_found_in_the_spec(database: Database) -> None:
    database.write(lambda s: routes.create(s, wanted("law", targets=({**TARGET, "adapter": "law"},))))
    with pytest.raises(InvalidInput, match="no adapter 'med'") as refused:
        database.write(lambda s: routes.create(s, wanted("med", targets=({**TARGET, "adapter": "med"},))))
    assert (refused.value.field, refused.value.hint) == (
        "spec.targets.0.adapter",
        "its adapters (spec.lora) are: law",
    )
