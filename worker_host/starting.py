"""From what an engine is to be to a job that a runtime can run: its program here, its command, its port."""

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fleet.access.sealing import Sealer
from fleet.engines.adapter import EngineAdapter, Unstartable
from fleet.engines.devices import NoContainer, devices_for, kind_of
from fleet.inventory import Gpu
from worker_host.engine_log import EngineLogs
from worker_host.install import Engines
from worker_host.launching import extra_files, program_of, start_of
from worker_host.records import EngineRecord
from worker_host.runtime.choice import Runtimes
from worker_host.runtime.images import Say
from worker_host.runtime.protocol import EVERYWHERE, LOOPBACK, CannotStart, Container, Job

_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.gguf$")
_SPARE_CPUS = 1.0
"""For all that an engine does beside generating."""


@dataclass(frozen=True)
class Starter:
    """What this host needs to make jobs."""

    runtimes: Runtimes
    engines: Engines
    logs: EngineLogs
    sealer: Sealer
    gpus: Callable[[], Sequence[Gpu]]
    """All that the host has."""
    cpu_count: int
    models: Path = Path("/")
    """What paths of adapters and draft models may be relative to."""

    async def job(self, adapter: EngineAdapter, record: EngineRecord, say: Say) -> tuple[Job, str]:
        """A new attempt, and what its image is called by digest. Pulls or installs what is missing, and tells ``say``.

        Raises CannotStart, InstallFailed, RuntimeAway, CannotOpen, OSError.
        """
        launch = record.launch
        try:
            gpus = _claimed(self.gpus(), launch.here.gpu_uuids)
            kind = kind_of(gpus)
            wanted = launch.spec.container.image or ""
            image = await self.runtimes.image_for(adapter.name, kind, launch.spec.runtime, wanted)
            devices = devices_for(kind, gpus) if image is not None else None
        except NoContainer as error:
            raise CannotStart(f"no container can be given these devices: {error}") from error
        env = {name: self.sealer.open(value) for name, value in launch.here.env_for_host.items()}
        if image is None or devices is None:
            binary = program_of(adapter, await self._binary(adapter, record, say), launch.rank)
            return await self._job(adapter, record, env, gpus=gpus, binary=binary), ""
        here = await self.runtimes.docker.images.ensure(_pinned(record) or image, say)
        container = Container(
            image=here.id,
            # Hosts of one replica reach each other's engines at ports that are chosen while they run.
            host_network=launch.spec.container.network == "host" or len(launch.placement.members) > 1,
            mounts=mounts_for(Path(launch.here.model_path), *extra_files(launch.spec, self.models)),
            devices=devices,
            shm_bytes=launch.spec.container.shm_bytes,
            host_ipc=launch.spec.container.host_ipc,
            cpus=_cpus(launch.spec.cpu_threads, self.cpu_count),
            memory_bytes=launch.spec.memory_bytes if not gpus else None,
        )
        job = await self._container(adapter, record, env, gpus=gpus, container=container)
        return _in_container(adapter, launch.rank, job, image_names_it=here.has_entrypoint), here.pin

    async def prepare(self, adapter: EngineAdapter, record: EngineRecord, say: Say) -> None:
        """Pull or install beforehand what ``job`` will need. Raises as it does, and for cards that are not healthy."""
        launch = record.launch
        gpus = _claimed(self.gpus(), launch.here.gpu_uuids)
        if sick := [f"GPU {gpu.uuid} is not healthy: {gpu.reason}" for gpu in gpus if not gpu.healthy]:
            raise CannotStart("; ".join(sick))
        wanted = launch.spec.container.image or ""
        try:
            image = await self.runtimes.image_for(adapter.name, kind_of(gpus), launch.spec.runtime, wanted)
        except NoContainer as error:
            raise CannotStart(f"no container can be given these devices: {error}") from error
        if image is None:
            program_of(adapter, await self._binary(adapter, record, say), launch.rank)
        else:
            await self.runtimes.docker.images.ensure(_pinned(record) or image, say)

    async def _container(
        self,
        adapter: EngineAdapter,
        record: EngineRecord,
        env: dict[str, str],
        *,
        gpus: Sequence[Gpu],
        container: Container,
    ) -> Job:
        follows = record.launch.rank and adapter.follower_programs
        program = Path(adapter.follower_programs[0] if follows else adapter.program)
        env = {**container.devices.env, **env}
        return await self._job(adapter, record, env, gpus=gpus, binary=program, container=container)

    async def _job(
        self,
        adapter: EngineAdapter,
        record: EngineRecord,
        env: dict[str, str],
        *,
        gpus: Sequence[Gpu],
        binary: Path,
        container: Container | None = None,
    ) -> Job:
        launch = record.launch
        address = LOOPBACK if container is None or container.host_network else EVERYWHERE
        start = await asyncio.to_thread(
            start_of,
            launch,
            binary=binary,
            address=address,
            gpus=gpus,
            cpu_count=self.cpu_count,
            models=self.models,
        )
        try:
            command = adapter.command(start)
        except Unstartable as error:
            raise CannotStart(str(error)) from error
        attempt = (self.logs.latest(launch.instance_id) or 0) + 1
        return Job(
            engine=record.ref,
            attempt=attempt,
            argv=command.argv,
            env={**command.env, **env},
            port=start.port,
            log=self.logs.path(launch.instance_id, attempt),
            container=container,
        )

    async def _binary(self, adapter: EngineAdapter, record: EngineRecord, say: Say) -> Path:
        version = record.launch.spec.engine_version
        found = self.engines.installed(adapter, version)
        if found is not None:
            return found
        say(None, f"installing {adapter.name}")
        return await self.engines.ensure(adapter, version)


def _in_container(adapter: EngineAdapter, rank: int, job: Job, *, image_names_it: bool) -> Job:
    """With the program named once: by the image, or by us."""
    if (adapter.names_program or rank) and job.container is not None:
        return replace(job, argv=job.argv[1:], container=replace(job.container, program=job.argv[0]))
    return replace(job, argv=job.argv[1:]) if image_names_it else job


def mounts_for(*models: Path) -> tuple[Path, ...]:
    """Each file with its other parts, or each folder; nothing beside them, which may be none of the engine's
    business."""
    return tuple(sorted({part for model in models for part in (model, *_parts(model))}))


def _parts(model: Path) -> tuple[Path, ...]:
    shards = _SHARD.search(model.name)
    if shards is None:
        return ()
    return tuple(model.parent.glob(f"{model.name[: shards.start()]}-?????-of-{shards[1]}.gguf"))


def _claimed(gpus: Sequence[Gpu], uuids: Sequence[str]) -> list[Gpu]:
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    missing = [uuid for uuid in uuids if uuid not in by_uuid]
    if missing:
        raise CannotStart(f"no such device on this host any more: {', '.join(missing)}")
    return [by_uuid[uuid] for uuid in uuids]


def _pinned(record: EngineRecord) -> str:
    """What this engine ran from before; on other hosts only if its deployment names the image: theirs may differ."""
    return record.image or (record.launch.image if record.launch.spec.container.image else "")


def _cpus(threads: int | None, count: int) -> float | None:
    return min(float(count), threads + _SPARE_CPUS) if threads is not None else None
