"""Hosts on the command line: tokens to join with, what people set, who did what."""

from typing import Any

import pytest
import typer

from fleet.cli import quantities
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, host

HOST = "/api/v1/hosts/host-1"
GPU = {
    "uuid": "GPU-1",
    "name": "H200",
    "used_bytes": 1 << 30,
    "allocatable_bytes": 140 << 30,
    "foreign_bytes": 2 << 30,
    "status": {"uuid": "GPU-1", "utilization": 0.42, "temperature_c": 61.2, "power_w": 350.4},
}


@pytest.mark.parametrize(
    ("kind", "printed"),
    [
        ("process", "run me\n"),
        ("container", "docker run me\n"),
        ("systemd", "install me\n"),
        ("cloud-init", "#cloud-config\n"),
    ],
)
def test_what_a_token_is_for_is_all_there_is_on_stdout(
    holdfast: Holdfast, api: FakeApi, kind: str, printed: str
) -> None:
    api.note = "nobody reaches the relay"
    seen = holdfast("join-token", "create", "--for", kind, "--uses", "20", "--ttl", "7d")
    assert (seen.code, seen.out) == (0, printed)
    assert "nobody reaches the relay" in seen.err
    assert api.requests[-1][2] == {"description": "", "ttl_s": 7 * 86_400, "max_uses": 20}


def test_token_says_for_how_many_and_how_long(holdfast: Holdfast, api: FakeApi) -> None:
    seen = holdfast("join-token", "create", "--uses", "3")
    assert "3 hosts, until 2026-11-20T11:00:00Z" in seen.out
    assert "container, systemd, cloud-init" in seen.out
    assert holdfast("join-token", "create", "--json").json["commands"]["systemd"] == "install me"


@pytest.mark.parametrize("option", [("--ttl", "soon"), ("--uses", "0"), ("--uses", "10001"), ("--for", "windows")])
def test_token_that_makes_no_sense_is_wrong_usage(holdfast: Holdfast, api: FakeApi, option: tuple[str, str]) -> None:
    assert holdfast("join-token", "create", *option).code == 2
    assert api.requests == []


def test_tokens_are_listed_with_how_often_they_were_used(holdfast: Holdfast, api: FakeApi) -> None:
    token = {"id": "join-1", "description": "rack 4", "uses": 2, "max_uses": 10, "expires_at": "2026-11-20T11:00:00Z"}
    api.tokens = [{**token, "used_by": "box-1", "used_at": None, "revoked_at": "2026-11-20T10:30:00Z"}]
    out = holdfast("join-token", "list").out
    assert "2 of 10" in out
    assert "2026-11-20T10:30:00Z" in out


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (
            ["--label", "rack=4", "--label", "disk=", "--unlabel", "old"],
            {"labels": {"rack": "4", "disk": "", "old": None}},
        ),
        (["--reserve-ram", "8GiB", "--reserve-vram", "own"], {"reserve": {"ram_bytes": 8 << 30, "vram_bytes": None}}),
        (["--open-to-all"], {"reserved_for": None}),
        (["--reserved-for", "team=ml"], {"reserved_for": {"team": "ml", "was": None}}),
    ],
)
def test_what_is_set_of_a_host_is_sent_as_a_merge_patch(
    holdfast: Holdfast, api: FakeApi, options: list[str], body: dict[str, Any]
) -> None:
    api.hosts = [host(reserved_for={"was": "this"})]
    assert holdfast("set-host", "host-1", *options).code == 0
    assert api.requests[-1] == ("PATCH", HOST, body)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--label", "rack"],
        ["--reserve-ram", "much"],
        ["--open-to-all", "--reserved-for", "a=b"],
        ["--reserve-ram", "-1"],
    ],
)
def test_setting_nothing_or_nonsense_is_wrong_usage(holdfast: Holdfast, api: FakeApi, options: list[str]) -> None:
    api.hosts = [host()]
    assert holdfast("set-host", "host-1", *options).code == 2
    assert not [r for r in api.requests if r[0] == "PATCH"]


def test_host_is_shown_with_how_it_is_now(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [
        host(
            gpus=[GPU],
            reserved_for={"team": "ml"},
            given_labels={"rack": "4"},
            reserve={"ram_bytes": 8 << 30},
            reach="tunnel",
            tunnel_connected=False,
            certificate_expires_at="2027-02-18T10:00:00Z",
            status={"cpu_utilization": 0.2, "load": 1.5, "ram_used_bytes": 3 << 30, "engines": [{}]},
            status_at="2026-11-20T10:00:00Z",
        )
    ]
    out = holdfast("hosts", "host-1").out
    for text in (
        "team=ml",
        "rack=4",
        "8.0 GiB RAM",
        "through its tunnel, which is not connected",
        "until 2027-02-18",
        "CPU 20%, RAM used 3.0 GiB, load 1.5, 1 engines",
        "2.0 GiB used by others, busy 42%, 61 °C, 350 W",
    ):
        assert text in out, text
    assert "reserved for team=ml" in holdfast("hosts").out


def test_host_that_was_stolen_is_trusted_no_more(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [host()]
    seen = holdfast("hosts", "host-1", "--revoke")
    assert (seen.code, api.requests[-1][:2]) == (0, ("POST", f"{HOST}/revoke"))
    assert holdfast("hosts", "--revoke").code == 2


def test_audit_log_is_read_newest_first_up_to_a_limit(holdfast: Holdfast, api: FakeApi) -> None:
    entry = {"at": "2026-11-20T10:00:00Z", "actor": "unknown", "action": "engine.request", "target": "chat/1-a"}
    rest = {"outcome": "refused", "reason": "expired", "peer": "10.0.0.7", "count": 3}
    api.audit = [entry | rest | {"count": n + 1} for n in range(7)]
    api.page_size = 3
    seen = holdfast("audit", "--limit", "5", "--actor", "unknown", "--outcome", "refused", "--json")
    assert [e["count"] for e in seen.json][:5] == [1, 2, 3, 4, 5]
    assert api.requests[0][1] == "/api/v1/audit?limit=5&actor=unknown&outcome=refused"
    out = holdfast("audit").out
    assert "10.0.0.7" in out
    assert holdfast("audit", "--outcome", "maybe").code == 2


def test_no_entries_are_said_to_be_none(holdfast: Holdfast) -> None:
    assert holdfast("audit").out == "no entries\n"


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("512MiB", 512 << 20), ("1.5GiB", 3 << 29), (" 2 TiB ", 2 << 40), ("0", 0)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert quantities.size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e3", "1GB", "٣", "1" * 30])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        quantities.size(text)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("1.5h", 5400), ("7d", 604_800)])
def test_lengths_of_time_are_read_as_people_write_them(text: str, seconds: int) -> None:
    assert quantities.seconds(text) == seconds
