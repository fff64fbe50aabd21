"""Which of this host's runtimes an engine runs in, and which one a running engine belongs to."""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from docker.errors import APIError

from fleet.inventory import AcceleratorKind, EngineRef
from fleet.settings import Settings
from worker_host.runtime.docker import DockerRuntime
from worker_host.runtime.docker_client import DockerClient
from worker_host.runtime.images import Images
from worker_host.runtime.journal import Journal
from worker_host.runtime.process import ProcessRuntime
from worker_host.runtime.protocol import CannotStart, Handle, Job, Runtime, RuntimeAway
from worker_host.runtime.registries import Registries

log = logging.getLogger("holdfast.host")


@dataclass(frozen=True)
class Docker:
    """A Docker engine that may be there."""

    client: DockerClient
    runtime: DockerRuntime
    images: Images


@dataclass(frozen=True)
class Runtimes:
    """All that this host has."""

    process: ProcessRuntime
    docker: Docker
    preferred: str = "auto"
    """``Settings.host_runtime``: for deployments that leave it open."""

    async def image_for(self, engine: str, kind: AcceleratorKind, runtime: str, image: str) -> str | None:
        """What to run it from in a container; None: as a process. ``image``: the deployment's own.

        Raises CannotStart when what is asked for is not here.
        """
        wanted = runtime if runtime != "auto" else self.preferred
        if wanted == "process":
            return None
        found = await asyncio.to_thread(self.docker.client.answers)
        name = image or self.docker.images.name_for(engine, kind)
        if found and name:
            return name
        if wanted == "docker" and not found:
            raise CannotStart(f"this host has no Docker engine: none answers at {self.docker.client.url}")
        if wanted == "docker":
            raise CannotStart(f"this host has no image for {engine} on {kind}")
        return None

    async def start(self, job: Job) -> Handle:
        """Raises CannotStart and RuntimeAway."""
        return await (self.process.start(job) if job.container is None else self.docker.runtime.start(job))

    def of(self, handle: Handle) -> Runtime:
        return self.process if handle.kind == "process" else self.docker.runtime

    def all(self) -> list[tuple[EngineRef, Handle]]:
        """Blocks."""
        return [*self.process.all(), *self.docker.runtime.all()]

    def find(self, engine: EngineRef) -> Handle | None:
        """Blocks."""
        return self.process.find(engine) or self.docker.runtime.find(engine)

    def clear_up(self, answered_for: Iterable[EngineRef]) -> None:
        """Remove containers and images that nobody needs. Blocks."""
        try:
            self.docker.runtime.clear_up(set(answered_for))
            self.docker.images.clear_up()
        except (RuntimeAway, APIError) as error:
            log.debug("cannot clear up: %s", error)  # the next time

    async def aclose(self) -> None:
        await self.docker.runtime.aclose()


def runtimes_of(settings: Settings, host_id: str, folder: Path) -> Runtimes:
    """As ``settings`` say; ``folder`` is where this host keeps its own files. Docker need not be there."""
    client = DockerClient(settings.host_docker)
    credentials = settings.host_registry_credentials or settings.home / "registry_credentials.json"
    images = Images(
        client=client,
        registries=Registries(settings.host_registry_mirrors, credentials),
        of_engines=settings.host_engine_images,
        notebook=folder / "images.json",
        unused_for=timedelta(days=settings.host_image_days),
        free_share=settings.host_image_free_share,
    )
    containers = DockerRuntime(client, host_id, Journal(folder / "containers.json"))
    return Runtimes(ProcessRuntime(host_id), Docker(client, containers, images), settings.host_runtime)


def runtimes_here(settings: Settings) -> tuple[str, ...]:
    """For the inventory. Blocks for some seconds at most."""
    return ("process", "docker") if DockerClient(settings.host_docker).answers() else ("process",)
