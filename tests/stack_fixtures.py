"""Fixtures: a whole Holdfast of real processes."""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from openai import OpenAI
from sqlalchemy.engine import make_url

from fleet.engines.catalog import resolve
from tests.engine_fixtures import one_installer
from tests.stack import Stack
from worker_host.install import Engines


@pytest.fixture(scope="session")
def engines_folder() -> Path:
    """The engines of all tests, installed once per user by the product's own installer."""
    folder = Path.home() / ".cache" / "holdfast-tests" / "engines"
    adapter = resolve("auto")
    with one_installer(folder):
        asyncio.run(Engines(folder, ()).ensure(adapter, adapter.default_version))
    return folder


@pytest.fixture(scope="module")
def new_stack(tmp_path_factory: pytest.TempPathFactory, engines_folder: Path) -> Iterator[Callable[..., Stack]]:
    """Makes stacks and leaves nothing of them."""
    made: list[Stack] = []

    def new(database_url: str = "", **env: str) -> Stack:
        folder = tmp_path_factory.mktemp("stack")
        stack = Stack(folder, engines=engines_folder, database_url=database_url, env=env)
        made.append(stack)
        stack.start()
        return stack

    yield new
    for stack in made:
        stack.stop()


@pytest.fixture(scope="module")
def shared_stack(new_stack: Callable[..., Stack]) -> Stack:
    """One with a host named ``a``, for all tests of a module."""
    made = new_stack()
    made.add_host("a")
    return made


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The module's stack; whatever a test deploys is deleted after it."""
    yield shared_stack
    shared_stack.delete_everything()


@pytest.fixture(scope="module")
def module_postgres_database(postgres_url: str) -> str:
    """An empty database on the test session's PostgreSQL server; gone with it."""
    name = f"stack{uuid.uuid4().hex[:12]}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return make_url(postgres_url).set(database=name).render_as_string(hide_password=False)


@pytest.fixture
def ask(stack: Stack) -> Callable[[str], str]:
    """Asks a deployment what the small model knows, through the official client."""
    return asker(stack)


def asker(stack: Stack) -> Callable[[str], str]:
    client = OpenAI(base_url=f"{stack.url}/v1", api_key=stack.key, max_retries=0)

    def ask(model: str) -> str:
        answer = client.chat.completions.create(
            model=model,
            temperature=0,
            max_tokens=20,
            messages=[
                {"role": "system", "content": "You are a helpful assistant."},
                {"role": "user", "content": "What is the capital of France?"},
            ],
        )
        return answer.choices[0].message.content or ""

    return ask
