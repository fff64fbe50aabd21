"""Sums over what requests used, on each kind of database."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

from fleet.db import usage
from fleet.db.session import Database
from fleet.usage import Usage, UsageRecord

AT = datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC)
RECORD = UsageRecord("r-0", AT, "key-1", "chat", "chat", "chat.completions", 200, Usage(10, 4, 3, 2, 0.5, 1), 1.0)


def put(database: Database, *records: UsageRecord) -> None:
    database.write(lambda s: usage.write(s, records))


def test_days_and_hours_are_those_of_utc(database: Database) -> None:
    east = (AT + timedelta(microseconds=1)).astimezone(timezone(timedelta(hours=9)))
    put(database, RECORD, replace(RECORD, request_id="r-1", at=east))
    found = database.read(lambda s: usage.sums(s, ["day", "hour"], limit=9))
    assert [(total.group, total.requests) for total in found] == [
        (("2026-11-30", "2026-11-30T23:00Z"), 1),
        (("2026-12-01", "2026-12-01T00:00Z"), 1),
    ]
    [total] = database.read(lambda s: usage.sums(s, [], begin=AT, end=east, limit=9))
    assert total == usage.UsageSum((), 1, 0, 0, 10, 4, 3, 2, 0.5, 1)


def test_groups_go_on_after_the_last_one_seen(database: Database) -> None:
    names = ["B", "a", "Z", "z/1", "é"]
    put(database, *(replace(RECORD, request_id=f"r-{n}", route=name) for n, name in enumerate(names)))
    seen: list[str] = []
    after = None
    while page := database.read(lambda s, after=after: usage.sums(s, ["route", "key"], after=after, limit=2)):
        seen += [total.group[0] for total in page]
        after = page[-1].group
    assert sorted(seen) == sorted(names)


def test_huge_numbers_add_up(database: Database) -> None:
    huge = Usage(prompt_tokens=1 << 53, completion_tokens=1 << 53)
    put(database, *(replace(RECORD, request_id=f"r-{n}", usage=huge) for n in range(4)))
    [total] = database.read(lambda s: usage.sums(s, ["key"], limit=9))
    assert (total.prompt_tokens, total.completion_tokens) == (1 << 55, 1 << 55)
