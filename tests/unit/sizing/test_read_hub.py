"""Models on hubs: the same facts as of the same files on a disk, for a few bytes; and what hubs refuse, for people."""

import asyncio
import json
import subprocess
import sys
import time
import venv
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from fleet.sizing.facts import ModelFacts
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.hub import read_hub
from fleet.sizing.hubs import Source, hub_of
from fleet.sizing.read import read_local
from tests.engine_fixtures import find_small_model, one_installer
from tests.unit.sizing.checkpoints import checkpoint_of, facts_of, write, write_safetensors
from tests.unit.sizing.decoders import Weight
from tests.unit.sizing.hub_stand_in import COMMIT, Repo, open_hub

SMALL = "Qwen/Qwen3-0.6B"
HUBS: tuple[Source, ...] = ("huggingface", "modelscope")


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False) as client:
        yield client


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(write(checkpoint_of(SMALL), tmp_path))


async def read(
    repo: Repo,
    http: httpx.AsyncClient,
    source: Source = "huggingface",
    *,
    name: str = "acme/small",
    revision: str | None = None,
    file: str | None = None,
    token: str = "",
    deadline_s: float = 30.0,
) -> ModelFacts:
    async with open_hub(repo) as url:
        return await read_hub(source, name, revision, file, http=http, token=token, endpoint=url, deadline_s=deadline_s)


async def refused(repo: Repo, http: httpx.AsyncClient, source: Source = "huggingface", **options: object) -> ReadError:
    with pytest.raises(ReadError) as error:
        await read(repo, http, source, **options)  # type: ignore[arg-type]
    assert error.value.message
    return error.value


@pytest.mark.parametrize("source", HUBS)
async def test_same_facts_as_on_a_disk_for_few_bytes(repo: Repo, http: httpx.AsyncClient, source: Source) -> None:
    assert await read(repo, http, source) == facts_of(SMALL)
    assert repo.sent < 200_000
    assert facts_of(SMALL).file_bytes > 1_000_000_000


@pytest.mark.parametrize("source", HUBS)
async def test_gguf_by_its_name(repo: Repo, http: httpx.AsyncClient, source: Source) -> None:
    path = find_small_model()
    (repo.folder / "smol.gguf").symlink_to(path)
    facts = await read(repo, http, source, file="smol.gguf")
    local = read_local(path)
    assert facts.model_copy(update={"files": (), "fingerprint": ""}) == local.model_copy(
        update={"files": (), "fingerprint": ""}
    )
    assert repo.sent < 4_000_000 < facts.file_bytes


async def test_all_is_read_of_one_commit(repo: Repo, http: httpx.AsyncClient) -> None:
    await read(repo, http, revision="main")
    assert repo.asked[0][0] == "/api/models/acme/small/revision/main"
    assert {path.split("/")[4] for path, *_ in repo.asked if "/resolve/" in path} == {COMMIT}


@pytest.mark.parametrize("source", HUBS)
async def test_token_is_shown_to_the_hub_alone(repo: Repo, http: httpx.AsyncClient, source: Source) -> None:
    repo.token = "hf_secret"
    assert await read(repo, http, source, token="hf_secret") == facts_of(SMALL)
    of_storage = [entry for entry in repo.asked if entry[0] == "/model.safetensors"]
    assert of_storage
    assert {shown for *_, shown in of_storage} == {""}


async def test_many_files_a_few_at_a_time(http: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(checkpoint_of(SMALL).config))
    for number in range(40):
        weights = tuple(Weight(f"model.layers.{number % 28}.mlp.x{number}.{i}.weight", (2,)) for i in range(300))
        write_safetensors(tmp_path / f"m{number:02}.safetensors", weights)
    repo = Repo(tmp_path)
    facts = await read(repo, http)
    assert sum(w.elements for w in facts.weights) == 40 * 300 * 2
    assert 1 < repo.busiest <= 8


async def test_server_without_ranges(repo: Repo, http: httpx.AsyncClient) -> None:
    repo.ranges = False
    assert await read(repo, http) == facts_of(SMALL)
    assert repo.sent < facts_of(SMALL).file_bytes // 10  # the rest of the file was not waited for


@pytest.mark.parametrize("source", HUBS)
@pytest.mark.parametrize("difference", [-1000, 1000])
async def test_server_that_lies_about_sizes(
    repo: Repo, http: httpx.AsyncClient, source: Source, difference: int
) -> None:
    name = "model.safetensors"
    repo.sizes[name] = (repo.folder / name).stat().st_size + difference
    error = await refused(repo, http, source)
    assert (error.kind, "another size than the hub lists" in error.message) == (ReadProblem.UNAVAILABLE, True)


@pytest.mark.parametrize("source", HUBS)
async def test_gated_repository_says_where_to_ask(repo: Repo, http: httpx.AsyncClient, source: Source) -> None:
    repo.token, repo.gated = "secret", True
    for token in ("", "wrong"):
        error = await refused(repo, http, source, token=token)
        assert (error.kind, "terms" in error.message) == (ReadProblem.GATED, True)
        assert f"acme/small, then set HOLDFAST_{source.upper()}_TOKEN" in error.hint
        assert "wrong" not in error.message + error.hint


async def test_private_or_missing_repository(repo: Repo, http: httpx.AsyncClient) -> None:
    repo.token = "secret"
    error = await refused(repo, http)
    assert (error.kind, "does not exist" in error.message) == (ReadProblem.GATED, True)


@pytest.mark.parametrize("source", HUBS)
async def test_what_is_missing_is_named(repo: Repo, http: httpx.AsyncClient, source: Source) -> None:
    error = await refused(repo, http, source, name="acme/nope")
    assert (error.kind, "acme/nope" in error.message) == (ReadProblem.MISSING, True)
    error = await refused(repo, http, source, revision="v9")
    assert (error.kind, "no such revision" in error.message, "v9" in error.message) == (ReadProblem.MISSING, True, True)
    error = await refused(repo, http, source, file="q4/x.gguf")
    assert (error.kind, "'q4/x.gguf'" in error.message) == (ReadProblem.MISSING, True)


@pytest.mark.parametrize(("status", "word"), [(429, "TOKEN"), (500, "later"), (503, "later"), (418, "later")])
async def test_hub_in_trouble(repo: Repo, http: httpx.AsyncClient, status: int, word: str) -> None:
    repo.status = status
    error = await refused(repo, http)
    assert (error.kind, word in error.hint) == (ReadProblem.UNAVAILABLE, True)


async def test_hub_that_does_not_answer_is_given_up(repo: Repo, http: httpx.AsyncClient) -> None:
    repo.slow = True
    start = time.monotonic()
    error = await refused(repo, http, deadline_s=0.5)
    assert (error.kind, "within 0.5 s" in error.message) == (ReadProblem.UNAVAILABLE, True)
    assert time.monotonic() - start < 10


async def test_who_gives_up_leaves_nothing_running(repo: Repo, http: httpx.AsyncClient) -> None:
    repo.slow = True
    async with open_hub(repo) as url:
        reading = asyncio.create_task(read_hub("huggingface", "acme/small", None, None, http=http, endpoint=url))
        async with asyncio.timeout(10):
            while not repo.asked:
                await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


async def test_nobody_there(http: httpx.AsyncClient) -> None:
    with pytest.raises(ReadError) as error:
        await read_hub("huggingface", "acme/small", None, None, http=http, endpoint="http://127.0.0.1:9")
    assert (error.value.kind, "cannot be reached" in error.value.message) == (ReadProblem.UNAVAILABLE, True)


async def test_server_that_sends_in_circles(repo: Repo, http: httpx.AsyncClient) -> None:
    repo.circles = True
    error = await refused(repo, http)
    assert (error.kind, "in circles" in error.message) == (ReadProblem.UNAVAILABLE, True)
    assert len(repo.asked) < 20


@pytest.mark.parametrize(
    "listing",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"siblings": [1], "Data": {"Files": [1]}}',
        b'{"siblings": [{"rfilename": "config.json"}], "Data": {"Files": [{"Path": "x"}]}}',
        b'{"siblings": [{"rfilename": 1, "size": -1}], "Data": []}',
    ],
)
@pytest.mark.parametrize("source", HUBS)
async def test_what_is_no_hub(repo: Repo, http: httpx.AsyncClient, source: Source, listing: bytes) -> None:
    repo.listing = listing
    error = await refused(repo, http, source)
    assert (error.kind, "endpoint" in error.hint) == (ReadProblem.UNAVAILABLE, True)


async def test_broken_model_is_refused_as_on_a_disk(repo: Repo, http: httpx.AsyncClient) -> None:
    (repo.folder / "config.json").write_text("{")
    assert (await refused(repo, http)).kind is ReadProblem.MALFORMED


def test_urls_are_quoted() -> None:
    hub = hub_of("huggingface", "acme/small")
    assert (
        hub.listing_url("refs/pr/1") == "https://huggingface.co/api/models/acme/small/revision/refs%2Fpr%2F1?blobs=true"
    )
    assert hub.file_url("main", "a b/#.gguf") == "https://huggingface.co/acme/small/resolve/main/a%20b/%23.gguf"
    scope = hub_of("modelscope", "acme/small", "https://mirror.example/")
    assert scope.file_url("master", "a&b") == (
        "https://mirror.example/api/v1/models/acme/small/repo?Revision=master&FilePath=a%26b"
    )


_CLIENT = "huggingface_hub==2.4.0"
_ASK = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download
api = HfApi(endpoint=sys.argv[1], token=sys.argv[2])
info = api.model_info("acme/small", files_metadata=True)
found = api.get_safetensors_metadata("acme/small")
config = hf_hub_download("acme/small", "config.json", endpoint=sys.argv[1], token=sys.argv[2], cache_dir=sys.argv[3])
print(json.dumps({
    "sizes": {s.rfilename: s.size for s in info.siblings},
    "parameters": dict(found.parameter_count),
    "config": open(config).read(),
}))
"""


@pytest.mark.slow
async def test_stand_in_satisfies_the_hubs_own_client(repo: Repo, tmp_path_factory: pytest.TempPathFactory) -> None:
    """So that what we are tested against is no invention of ours; and it counts as we count."""
    repo.token = "hf_secret"
    python = await asyncio.to_thread(_client)
    async with open_hub(repo) as url:
        asked = await asyncio.to_thread(
            subprocess.run,
            [python, "-c", _ASK, url, "hf_secret", str(tmp_path_factory.mktemp("cache"))],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert asked.returncode == 0, asked.stderr
    said = json.loads(asked.stdout)
    facts = facts_of(SMALL)
    assert said["sizes"]["model.safetensors"] == facts.file_bytes
    assert said["parameters"] == {"BF16": sum(w.elements for w in facts.weights)}
    assert json.loads(said["config"]) == checkpoint_of(SMALL).config


def _client() -> Path:
    home = Path.home() / ".cache" / "holdfast-tests" / "clients" / _CLIENT.replace("==", "-")
    with one_installer(home.parent):
        if not (home / "installed").exists():
            venv.create(home, with_pip=True, clear=True)
            install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", _CLIENT]
            subprocess.run(install, check=True, stdout=sys.stderr)
            (home / "installed").touch()
    return home / "bin" / "python"
