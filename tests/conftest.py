"""Fixtures for all tests."""

from hypothesis import settings

from tests.database_fixtures import database, database_url, new_postgres_database, postgres_url
from tests.engine_fixtures import llama_server_binary, small_model
from tests.stack_fixtures import ask, engines_folder, module_postgres_database, new_stack, shared_stack, stack

__all__ = [
    "ask",
    "database",
    "database_url",
    "engines_folder",
    "llama_server_binary",
    "module_postgres_database",
    "new_postgres_database",
    "new_stack",
    "postgres_url",
    "shared_stack",
    "small_model",
    "stack",
]

# Machines are small and shared: how long one example takes says nothing.
settings.register_profile("holdfast", deadline=None)
settings.load_profile("holdfast")
