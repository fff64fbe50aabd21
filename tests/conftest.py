"""Fixtures for all tests."""

from tests.database_fixtures import database, database_url, new_postgres_database, postgres_url

__all__ = ["database", "database_url", "new_postgres_database", "postgres_url"]
