"""What requests used, on the command line."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi


def entry(number: int, **group: str) -> dict[str, Any]:
    tokens = {f"{name}_tokens": number * 1000 for name in ("prompt", "cached", "completion", "reasoning")}
    rest = {"requests": number, "failed": 0, "estimated": 0, "audio_seconds": 1.25, "images": 0, "key_name": None}
    return {"group": group, **tokens, **rest}


def asked(api: FakeApi) -> dict[str, list[str]]:
    return parse_qs(urlsplit(api.requests[0][1]).query)


def test_all_pages_are_read(holdfast: Holdfast, api: FakeApi) -> None:
    api.usage = [entry(n, route=f"r{n}", day="2026-11-30") for n in range(7)]
    api.page_size = 3
    seen = holdfast("usage", "--by", "route", "--by", "day", "--deployment", "chat", "--json")
    assert [e["requests"] for e in seen.json] == list(range(7))
    assert asked(api)["by"] == ["route", "day"]
    assert asked(api)["deployment"] == ["chat"]


def test_a_table_for_people(holdfast: Holdfast, api: FakeApi) -> None:
    api.usage = [entry(2, key="key-1") | {"key_name": "billing"}]
    out = holdfast("usage", "--by", "key").out
    assert "KEY" in out
    assert "billing (key-1)" in out
    assert "2,000" in out
    assert "1.2s" in out


def test_no_requests_are_said_to_be_none(holdfast: Holdfast) -> None:
    assert holdfast("usage").out == "no requests\n"


def test_how_long_ago_is_understood(holdfast: Holdfast, api: FakeApi) -> None:
    holdfast("usage", "--since", "12h", "--until", "2026-11-30T04:00")
    since = datetime.fromisoformat(asked(api)["from"][0])
    assert abs(datetime.now(UTC) - timedelta(hours=12) - since) < timedelta(minutes=5)
    assert asked(api)["to"] == ["2026-11-30T04:00:00+00:00"]


@pytest.mark.parametrize("time", ["yesterday", "-3d", "d", "٣d", "2026-13-01"])
def test_a_time_that_is_none_is_refused(holdfast: Holdfast, api: FakeApi, time: str) -> None:
    seen = holdfast("usage", f"--since={time}")
    assert seen.code == 2
    assert api.requests == []
