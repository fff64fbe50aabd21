"""How a machine becomes a host, once."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fleet.access.secrets import digest
from fleet.instances import EnginePhase, EngineReport
from fleet.inventory import EngineRef
from fleet.join import Identity
from fleet.serving import listen, serving
from fleet.settings import Settings
from tests.unit.host.conftest import Door
from worker_host import control_plane
from worker_host.control_plane import ControlPlane, Gone
from worker_host.identity import CannotJoin, host_folder, host_name, identify

JOINED = {"host_id": "box-1", "temporal": {"address": "127.0.0.1:7233", "namespace": "default"}}
PROBLEM = {"detail": "the join token has expired", "hint": "make a new one"}


class FakeApi:
    """Answers ``script`` in turn, its last entry for ever; a number is a status, anything else a body with 201."""

    def __init__(self) -> None:
        self.script: list[Any] = [JOINED]
        self.asked: list[tuple[str, str, Any]] = []
        self.url = ""

    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self._answer, methods=["POST"])])

    async def _answer(self, request: Request) -> Response:
        self.asked.append((request.url.path, request.headers.get("authorization", ""), await request.json()))
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        return JSONResponse(PROBLEM, answer) if isinstance(answer, int) else JSONResponse(answer, 201)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, door: Door) -> FakeApi:
    monkeypatch.setattr(control_plane, "_FIRST_PAUSE_S", 0.01)
    made = FakeApi()
    made.url = f"http://127.0.0.1:{door.port}"
    door.app = made.app()
    return made


@pytest.fixture
def settings(tmp_path: Path, api: FakeApi) -> Settings:
    return Settings(home=tmp_path, server=api.url, host_name="box", host_token="hf-join-token")


async def test_host_joins_once_and_is_known_ever_after(api: FakeApi, settings: Settings) -> None:
    identity = await identify(settings)
    [(path, _, sent)] = api.asked
    assert path == "/api/v1/hosts/join"
    assert sent["token"] == "hf-join-token"
    assert sent["credential_hash"] == digest(identity.credential)
    assert identity.credential not in json.dumps(sent), "the credential itself never leaves the host"
    assert (identity.host_id, identity.name, identity.temporal.address) == ("box-1", "box", "127.0.0.1:7233")
    assert await identify(settings.model_copy(update={"host_token": None})) == identity
    assert len(api.asked) == 1


async def test_only_the_owner_reads_who_we_are(settings: Settings) -> None:
    await identify(settings)
    files = {path.name: stat.S_IMODE(path.stat().st_mode) for path in host_folder(settings).iterdir()}
    assert files == {"credential": 0o600, "identity.json": 0o600}


async def test_lost_answer_is_asked_for_again_with_the_same_credential(api: FakeApi, settings: Settings) -> None:
    api.script = [503, 500, JOINED]
    await identify(settings)
    hashes = [sent["credential_hash"] for _, _, sent in api.asked]
    assert hashes == [hashes[0]] * 3


async def test_crash_after_the_join_gives_the_same_host(api: FakeApi, settings: Settings) -> None:
    first = await identify(settings)
    (host_folder(settings) / "identity.json").unlink()
    assert await identify(settings) == first
    assert api.asked[0] == api.asked[1]


@pytest.mark.parametrize("status", [401, 403, 422])
async def test_refusal_is_final_and_says_why(api: FakeApi, settings: Settings, status: int) -> None:
    api.script = [status]
    with pytest.raises(CannotJoin, match=r"refused the join: the join token has expired make a new one"):
        await identify(settings)
    assert len(api.asked) == 1
    assert not (host_folder(settings) / "identity.json").exists()


async def test_host_without_a_token_is_told_how_to_get_one(settings: Settings) -> None:
    with pytest.raises(CannotJoin, match=r"'box' has not joined yet.*join-token create.*HOLDFAST_HOST_TOKEN"):
        await identify(settings.model_copy(update={"host_token": None}))


async def test_api_that_is_not_up_yet_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "_FIRST_PAUSE_S", 0.01)
    listening = listen("127.0.0.1", 0)
    port = listening.getsockname()[1]
    listening.close()
    settings = Settings(home=tmp_path, server=f"http://127.0.0.1:{port}", host_token="t")
    joining = asyncio.create_task(identify(settings))
    done, _ = await asyncio.wait({joining}, timeout=0.1)
    assert not done
    async with serving(FakeApi().app(), listen("127.0.0.1", port), lifespan="off"):
        assert (await asyncio.wait_for(joining, 10)).host_id == "box-1"


@pytest.mark.parametrize(
    ("given", "name"),
    [("gpu-1.rack", "gpu-1.rack"), ("my box!", "my-box"), ("--x--", "x"), ("ü", "host"), ("a" * 99, "a" * 63)],
)
def test_name_of_a_host_is_made_of_usual_letters(tmp_path: Path, given: str, name: str) -> None:
    assert host_name(Settings(home=tmp_path, host_name=given)) == name


# -- and what it says afterwards -----------------------------------------------------------------------------------

REF = EngineRef(instance_id="chat/1-a", fence=1)
REPORT = EngineReport(instance_id="chat/1-a", fence=1, sequence=1, phase=EnginePhase.READY)


@pytest.fixture
async def speaking(api: FakeApi, settings: Settings) -> AsyncIterator[Callable[..., ControlPlane]]:
    made: list[ControlPlane] = []
    identity = Identity(
        host_id="box-1",
        name="box",
        server=api.url,
        credential="hf-host-x",
        temporal=JOINED["temporal"],
    )

    def new(joined_at: str = api.url, now_at: str = "") -> ControlPlane:
        made.append(ControlPlane(identity.model_copy(update={"server": joined_at}), now_at))
        return made[-1]

    yield new
    for speaker in made:
        await speaker.aclose()


async def test_host_proves_who_it_is_and_hears_what_may_go_on(
    api: FakeApi, speaking: Callable[..., ControlPlane]
) -> None:
    api.script = [{"engines": [REF.model_dump()]}]
    assert await speaking().confirm([REF]) == {REF}
    assert api.asked == [
        ("/api/v1/hosts/box-1/engines", "Bearer hf-host-x", {"engines": [{"instance_id": "chat/1-a", "fence": 1}]})
    ]


async def test_report_is_sent_until_it_is_taken(api: FakeApi, speaking: Callable[..., ControlPlane]) -> None:
    api.script = [503, 500, 403, {}]
    await speaking().report(REPORT)
    assert len(api.asked) == 4
    assert api.asked[3][2]["phase"] == "ready"


@pytest.mark.parametrize("status", [404, 410])
async def test_host_that_nobody_knows_any_more_is_told_so(
    api: FakeApi, speaking: Callable[..., ControlPlane], status: int
) -> None:
    api.script = [status]
    with pytest.raises(Gone, match="expired"):
        await speaking().report(REPORT)


async def test_host_follows_an_api_that_has_moved(api: FakeApi, speaking: Callable[..., ControlPlane]) -> None:
    api.script = [{"engines": []}]
    assert await speaking(joined_at="http://127.0.0.1:1", now_at=api.url).confirm([]) == set()
