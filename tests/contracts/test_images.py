"""Pulling images from a real registry into a real Docker engine, and removing them."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from docker.errors import ImageNotFound

from fleet.engines.failures import classify
from fleet.inventory import AcceleratorKind
from tests.docker_fixtures import DockerEngine, OwnEngine, Registry
from worker_host.runtime import images as images_module
from worker_host.runtime.docker_client import DockerClient
from worker_host.runtime.images import Image, Images
from worker_host.runtime.protocol import CannotStart
from worker_host.runtime.registries import Registries

pytestmark = pytest.mark.slow


class Told(list[tuple[float | None, str]]):
    """What was said about a pull."""

    def __call__(self, share: float | None, words: str) -> None:
        self.append((share, words))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_TRIES", 2)
    monkeypatch.setattr(images_module, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(images_module, "_SAY_EVERY_S", 0.0)


@pytest.fixture
def images(other_docker_engine: OwnEngine, tmp_path: Path, quick: None) -> Iterator[Images]:
    """Of a host; what it pulled is gone after the test."""
    made = images_of(other_docker_engine, tmp_path)
    yield made
    made.unused_for = timedelta(0)
    made.clear_up()


def images_of(engine: DockerEngine, folder: Path, credentials: Path | None = None, **mirrors: str) -> Images:
    return Images(
        client=DockerClient(engine.url),
        registries=Registries(mirrors, credentials),
        of_engines={"llama_cpp": "any", "llama_cpp/nvidia": "for-nvidia"},
        notebook=folder / "images.json",
        unused_for=timedelta(days=30),
        free_share=0.0,
    )


async def failure(images: Images, image: str) -> tuple[str, str]:
    with pytest.raises(CannotStart) as failed:
        await images.ensure(image, Told())
    found = classify(None, str(failed.value), served=False)
    return found.failure_class, str(failed.value)


async def test_image_is_pulled_with_progress_and_pinned_by_its_digest(
    images: Images, docker_engine: DockerEngine, registry: Registry, llama_image: str
) -> None:
    name = registry.push(docker_engine, llama_image, "engines/llama-server:1")
    told = Told()
    image = await images.ensure(name, told)
    shares = [share for share, _ in told if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert all(words.startswith(f"pulling {name}: ") for _, words in told)
    assert image.pin.startswith(f"{registry.host}/engines/llama-server@sha256:")
    assert image.has_entrypoint
    again = Told()
    assert await images.ensure(name, again) == image
    assert again == [], "it is here"


async def test_pinned_image_stays_the_same_whatever_its_tag_means_by_now(
    images: Images, docker_engine: DockerEngine, registry: Registry, llama_image: str, actor_image: str
) -> None:
    first = await images.ensure(registry.push(docker_engine, actor_image, "engine:1"), Told())
    images.client.api.remove_image(f"{registry.host}/engine:1")
    second = await images.ensure(registry.push(docker_engine, llama_image, "engine:1"), Told())
    assert second.id != first.id
    assert (await images.ensure(first.pin, Told())).id == first.id


async def test_image_that_was_never_in_a_registry_has_no_pin(
    docker_engine: DockerEngine, actor_image: str, tmp_path: Path
) -> None:
    image = await images_of(docker_engine, tmp_path).ensure(actor_image, Told())
    assert (image.pin, image.has_entrypoint) == ("", False)


async def test_digest_under_another_name_is_no_pin(
    images: Images, docker_engine: DockerEngine, other_docker_engine: OwnEngine, registry: Registry, actor_image: str
) -> None:
    there = await images.ensure(registry.push(docker_engine, actor_image, "engines/actor:1"), Told())
    other_docker_engine.api.tag(there.id, "made-here", "1")
    here = await images.ensure("made-here:1", Told())
    assert (here.id, here.pin) == (there.id, "")
    other_docker_engine.api.remove_image("made-here:1")


async def test_pull_by_two_at_once_gives_both_the_same(
    images: Images, docker_engine: DockerEngine, registry: Registry, llama_image: str
) -> None:
    name = registry.push(docker_engine, llama_image, "twice:1")
    first, second = await asyncio.gather(images.ensure(name, Told()), images.ensure(name, Told()))
    assert first == second


async def test_pull_that_was_given_up_can_be_begun_again(
    images: Images, docker_engine: DockerEngine, registry: Registry, llama_image: str
) -> None:
    name = registry.push(docker_engine, llama_image, "again:1")
    begun = asyncio.Event()
    pulling = asyncio.create_task(images.ensure(name, lambda _share, _words: begun.set()))
    await asyncio.wait({asyncio.create_task(begun.wait()), pulling}, return_when=asyncio.FIRST_COMPLETED)
    pulling.cancel()
    await asyncio.wait({pulling})
    assert isinstance(await images.ensure(name, Told()), Image)


# -- passwords and mirrors ---------------------------------------------------------------------------------------------


async def test_registry_that_wants_a_login_gets_the_hosts_own(
    images: Images, docker_engine: DockerEngine, locked_registry: Registry, actor_image: str, tmp_path: Path
) -> None:
    name = locked_registry.push(docker_engine, actor_image, "private:1")
    found, said = await failure(images, name)
    assert found == "image_auth", said
    credentials = locked_registry.credentials(tmp_path / "credentials.json")
    images.registries = Registries({}, credentials)
    assert (await images.ensure(name, Told())).pin
    assert json.loads(images.notebook.read_text())["images"]


async def test_wrong_login_is_named_and_not_shown(
    images: Images, docker_engine: DockerEngine, locked_registry: Registry, actor_image: str, tmp_path: Path
) -> None:
    name = locked_registry.push(docker_engine, actor_image, "private:2")
    credentials = locked_registry.credentials(tmp_path / "credentials.json")
    config = json.loads(credentials.read_text())
    config["auths"][locked_registry.host]["auth"] = "cHVsbGVyOndyb25nLXBhc3N3b3Jk"
    credentials.write_text(json.dumps(config))
    images.registries = Registries({}, credentials)
    found, said = await failure(images, name)
    assert found == "image_auth", said
    assert "wrong-password" not in said
    assert "cHVsbGVy" not in said


async def test_credentials_that_others_may_read_are_not_used(
    images: Images, docker_engine: DockerEngine, locked_registry: Registry, tmp_path: Path
) -> None:
    credentials = locked_registry.credentials(tmp_path / "credentials.json")
    credentials.chmod(0o644)
    images.registries = Registries({}, credentials)
    found, said = await failure(images, f"{locked_registry.host}/private:3")
    assert found == "image_auth"
    assert "chmod 600" in said
    assert str(credentials) in said


async def test_mirror_is_asked_first_and_the_origin_after_it(
    images: Images, docker_engine: DockerEngine, registry: Registry, actor_image: str
) -> None:
    registry.push(docker_engine, actor_image, "hub/team/engine:1")
    images.registries = Registries({"registry.invalid": f"{registry.host}/hub"}, None)
    image = await images.ensure("registry.invalid/team/engine:1", Told())
    assert image.pin.startswith("registry.invalid/team/engine@sha256:"), "others may have other mirrors"
    assert await images.ensure(image.pin, Told()) == image
    registry.push(docker_engine, actor_image, "own/engine:1")
    images.registries = Registries({registry.host: "registry.invalid"}, None)
    assert (await images.ensure(f"{registry.host}/own/engine:1", Told())).pin


# -- what can go wrong -------------------------------------------------------------------------------------------------


async def test_tag_that_does_not_exist_is_named(images: Images, registry: Registry) -> None:
    found, said = await failure(images, f"{registry.host}/no-such/engine:1")
    assert found == "image", said


async def test_registry_that_is_away_is_asked_again_and_then_named(images: Images, registry: Registry) -> None:
    registry.stop()
    told = Told()
    with pytest.raises(CannotStart) as failed:
        await images.ensure(f"{registry.host}/engine:1", told)
    assert "trying again" in told[0][1]
    assert classify(None, str(failed.value), served=False).failure_class == "registry"


async def test_registry_whose_name_nobody_knows_is_named(images: Images) -> None:
    found, said = await failure(images, "registry.invalid/engine:1")
    assert found == "registry", said


async def test_full_disk_is_named(
    cramped_docker_engine: OwnEngine,
    docker_engine: DockerEngine,
    registry: Registry,
    llama_image: str,
    tmp_path: Path,
    quick: None,
) -> None:
    name = registry.push(docker_engine, llama_image, "engines/llama-server:1")
    found, said = await failure(images_of(cramped_docker_engine, tmp_path), name)
    assert found == "disk_full", said


# -- clearing up -------------------------------------------------------------------------------------------------------


def age(images: Images, image: Image, days: float) -> None:
    noted = json.loads(images.notebook.read_text())
    noted["images"][image.id]["last_used"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    images.notebook.write_text(json.dumps(noted))


def is_here(engine: DockerEngine, image: Image) -> bool:
    try:
        engine.api.inspect_image(image.id)
    except ImageNotFound:
        return False
    return True


async def test_image_that_nobody_used_for_long_is_removed(
    images: Images, docker_engine: DockerEngine, other_docker_engine: OwnEngine, registry: Registry, llama_image: str
) -> None:
    image = await images.ensure(registry.push(docker_engine, llama_image, "engines/old:1"), Told())
    assert images.clear_up() == [], "it is new"
    age(images, image, days=31)
    await images.ensure(image.pin, Told())
    assert images.clear_up() == [], "it was used just now"
    age(images, image, days=31)
    container = other_docker_engine.api.create_container(image.id)["Id"]
    assert images.clear_up() == [], "a container is made from it"
    other_docker_engine.api.remove_container(container)
    assert images.clear_up() == [image.id]
    assert not is_here(other_docker_engine, image)
    assert json.loads(images.notebook.read_text()) == {"images": {}}


async def test_what_others_pulled_or_gave_a_name_stays(
    images: Images, docker_engine: DockerEngine, other_docker_engine: OwnEngine, registry: Registry, actor_image: str
) -> None:
    name = registry.push(docker_engine, actor_image, "engines/shared:1")
    other_docker_engine.api.pull(name)
    image = await images.ensure(name, Told())
    images.unused_for = timedelta(0)
    assert images.clear_up() == [], "it was here before us"
    other_docker_engine.api.remove_image(name)
    image = await images.ensure(name, Told())
    other_docker_engine.api.tag(image.id, "somebody/elses", "1")
    images.clear_up()
    assert is_here(other_docker_engine, image)
    other_docker_engine.api.remove_image("somebody/elses:1")


async def test_full_disk_makes_unused_images_go_sooner(
    images: Images, docker_engine: DockerEngine, registry: Registry, actor_image: str
) -> None:
    image = await images.ensure(registry.push(docker_engine, actor_image, "engines/actor:1"), Told())
    images.free_share = 0.999999
    assert images.clear_up() == [], "it may be about to be used"
    age(images, image, days=0.1)
    assert images.clear_up() == [image.id]


def test_image_for_an_accelerator_comes_before_that_for_the_engine(docker_engine: DockerEngine, tmp_path: Path) -> None:
    images = images_of(docker_engine, tmp_path)
    assert images.name_for("llama_cpp", AcceleratorKind.NVIDIA) == "for-nvidia"
    assert images.name_for("llama_cpp", AcceleratorKind.AMD) == "any"
    assert images.name_for("vllm", AcceleratorKind.NVIDIA) == ""
