"""``drain``, ``resume`` and ``approve-replacement``, as people and scripts see them."""

import pytest

from fleet.cli import drain
from tests.unit.cli.conftest import Holdfast
from tests.unit.cli.fake_api import FakeApi, host, instance


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "POLL_EVERY_S", 0.01)


def draining(left: int) -> dict[str, object]:
    return host(maintenance="draining", maintenance_message=f"{left} to go")


DRAINED = host(maintenance="drained", maintenance_message="nothing runs here any more")


def test_a_host_is_drained_and_resumed(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [draining(2)]
    seen = holdfast("drain", "host-1", "--deadline", "600", "--reason", "new disk")
    assert (seen.code, seen.out) == (0, "host-1: draining, 2 to go\n")
    body = {"evacuate": True, "deadline_s": 600, "reason": "new disk"}
    assert api.requests[-1] == ("POST", "/api/v1/hosts/host-1/drain", body)
    api.hosts = [host()]
    seen = holdfast("resume", "host-1")
    assert (seen.code, seen.out) == (0, "host-1: takes work\n")
    assert api.requests[-1][:2] == ("POST", "/api/v1/hosts/host-1/resume")


def test_without_evacuation_nothing_is_moved_or_waited_for(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [host(maintenance="cordoned", maintenance_message="takes no new replicas")]
    assert holdfast("drain", "host-1", "--no-evacuate", "--wait").code == 0
    assert [r[2] for r in api.requests] == [{"evacuate": False, "deadline_s": None, "reason": ""}]


def test_waiting_says_what_it_waits_for_and_ends_when_nothing_is_left(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [host(), draining(2), draining(2), draining(1), DRAINED]
    seen = holdfast("drain", "host-1", "--wait")
    assert (seen.code, seen.out) == (0, "host-1: drained, nothing runs here any more\n")
    assert seen.err.splitlines() == ["host-1: 2 to go", "host-1: 1 to go"]


def test_waiting_goes_on_while_the_host_is_lost(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [draining(1), {**draining(1), "state": "lost"}, DRAINED]
    seen = holdfast("drain", "host-1", "--wait", "--json")
    assert (seen.code, seen.json) == (0, DRAINED)
    assert "it is lost; 1 to go" in seen.err


def test_waiting_that_takes_too_long_fails_and_says_who_is_left(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [draining(1)]
    seen = holdfast("drain", "host-1", "--wait", "--timeout", "0.1")
    assert seen.code == 1
    assert "after 0.1 s: 1 to go" in seen.err
    assert "holdfast hosts host-1" in seen.err


def test_waiting_ends_when_somebody_lets_the_host_take_work_again(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [draining(1), draining(1), host()]
    seen = holdfast("drain", "host-1", "--wait")
    assert seen.code == 1
    assert "was set to none" in seen.err


def test_what_has_a_slash_is_an_instance(holdfast: Holdfast, api: FakeApi) -> None:
    api.instances = [instance()]
    seen = holdfast("drain", "smollm2/1-3f2a9c01", "--deadline", "5")
    assert (seen.code, "leaves once its replacement is ready" in seen.out) == (0, True)
    path = "/api/v1/instances/smollm2/1-3f2a9c01/drain"
    assert api.requests[-1] == ("POST", path, {"deadline_s": 5, "reason": ""})
    assert holdfast("drain", "smollm2/1-3f2a9c01", "--no-evacuate").code == 2


def test_waiting_for_an_instance_ends_when_it_is_gone(holdfast: Holdfast, api: FakeApi) -> None:
    api.instances = [instance()]
    seen = holdfast("drain", "smollm2/1-3f2a9c01", "--wait", "--timeout", "0.1")
    assert (seen.code, "waits for its replacement" in seen.err) == (1, True)
    api.instances = [instance(), instance(state="draining"), instance(id="smollm2/2-aaaa")]
    api.gone_after = {"smollm2/1-3f2a9c01": 3}
    seen = holdfast("drain", "smollm2/1-3f2a9c01", "--wait")
    assert (seen.code, seen.out) == (0, "smollm2/1-3f2a9c01 is gone\n")


def test_unknown_target_is_an_error(holdfast: Holdfast) -> None:
    assert holdfast("drain", "nope", "--wait").code == 1
    assert holdfast("resume", "nope").code == 1


def test_all_lost_hosts_or_one_are_approved(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [host(id="h1"), host(id="h2")]
    assert holdfast("approve-replacement").out.splitlines() == [
        "h1: its replicas are placed elsewhere",
        "h2: its replicas are placed elsewhere",
    ]
    assert api.requests[-1][:2] == ("POST", "/api/v1/hosts/approve-replacement")
    assert holdfast("approve-replacement", "h2", "--json").json == {"hosts": ["h2"]}
    assert api.requests[-1][:2] == ("POST", "/api/v1/hosts/h2/approve-replacement")


def test_status_says_that_lost_hosts_wait_for_approval(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [host()]
    assert "approve-replacement" not in holdfast("status").out
    api.hosts = [host(state="lost", replacement_paused=True), host(id="h2", state="lost", replacement_paused=True)]
    seen = holdfast("status")
    assert "2 lost hosts wait for approval before replicas are replaced (host-1, h2)" in seen.out
    assert "holdfast approve-replacement" in seen.out


def test_hosts_show_their_maintenance(holdfast: Holdfast, api: FakeApi) -> None:
    api.hosts = [draining(1)]
    listed, shown = holdfast("hosts").out, holdfast("hosts", "host-1").out
    for out in (listed, shown):
        assert "draining" in out
        assert "1 to go" in out
