"""From what an engine is to be to a job that a runtime can run: its program here, its command, its port."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.access.sealing import Sealer
from fleet.engines.adapter import EngineAdapter, Start
from fleet.engines.devices import NoContainer, devices_for, kind_of
from fleet.inventory import Gpu
from worker_host.engine_log import EngineLogs
from worker_host.install import Engines
from worker_host.records import EngineRecord
from worker_host.runtime.choice import Runtimes
from worker_host.runtime.images import Image, Say
from worker_host.runtime.process import free_port
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

    async def job(self, adapter: EngineAdapter, record: EngineRecord, say: Say) -> tuple[Job, str]:
        """A new attempt, and what its image is called by digest. Pulls or installs what is missing, and tells ``say``.

        Raises CannotStart, InstallFailed, RuntimeAway, CannotOpen, OSError.
        """
        launch = record.launch
        try:
            gpus = _claimed(self.gpus(), launch.placement.gpu_uuids)
            kind = kind_of(gpus)
            wanted = launch.spec.container.image or ""
            image = await self.runtimes.image_for(adapter.name, kind, launch.spec.runtime, wanted)
            devices = devices_for(kind, gpus) if image is not None else None
        except NoContainer as error:
            raise CannotStart(f"no container can be given these devices: {error}") from error
        env = {name: self.sealer.open(value) for name, value in launch.placement.env_for_host.items()}
        if image is None or devices is None:
            return self._process(adapter, record, env, await self._binary(adapter, record, say)), ""
        here = await self.runtimes.docker.images.ensure(_pinned(record) or image, say)
        container = Container(
            image=here.id,
            host_network=launch.spec.container.network == "host",
            mounts=mounts_for(Path(launch.placement.model_path)),
            devices=devices,
            shm_bytes=launch.spec.container.shm_bytes,
            host_ipc=launch.spec.container.host_ipc,
            cpus=_cpus(launch.spec.cpu_threads, self.cpu_count),
            memory_bytes=launch.spec.memory_bytes if not gpus else None,
        )
        return self._container(adapter, record, env, here, container), here.pin

    def _process(self, adapter: EngineAdapter, record: EngineRecord, env: dict[str, str], binary: Path) -> Job:
        start = self._start(adapter, record, binary, LOOPBACK)
        command = adapter.command(start)
        return self._job(record, command.argv, {**command.env, **env}, start.port, None)

    def _container(
        self, adapter: EngineAdapter, record: EngineRecord, env: dict[str, str], image: Image, container: Container
    ) -> Job:
        address = LOOPBACK if container.host_network else EVERYWHERE
        start = self._start(adapter, record, Path(adapter.program), address)
        command = adapter.command(start)
        argv = command.argv[1:] if image.has_entrypoint else command.argv
        return self._job(record, argv, {**command.env, **container.devices.env, **env}, start.port, container)

    def _start(self, adapter: EngineAdapter, record: EngineRecord, binary: Path, address: str) -> Start:
        launch = record.launch
        return Start(
            binary=binary,
            spec=launch.spec,
            model_path=launch.placement.model_path,
            gpu_uuids=launch.placement.gpu_uuids,
            address=address,
            port=free_port(),
            cpu_count=self.cpu_count,
        )

    def _job(
        self, record: EngineRecord, argv: tuple[str, ...], env: dict[str, str], port: int, container: Container | None
    ) -> Job:
        instance_id = record.launch.instance_id
        attempt = (self.logs.latest(instance_id) or 0) + 1
        return Job(
            engine=record.ref,
            attempt=attempt,
            argv=argv,
            env=env,
            port=port,
            log=self.logs.path(instance_id, attempt),
            container=container,
        )

    async def _binary(self, adapter: EngineAdapter, record: EngineRecord, say: Say) -> Path:
        version = record.launch.spec.engine_version
        found = self.engines.installed(adapter, version)
        if found is not None:
            return found
        say(None, f"installing {adapter.name}")
        return await self.engines.ensure(adapter, version)


def mounts_for(model: Path) -> tuple[Path, ...]:
    """The model's file with its other parts, or its folder; nothing beside them, which may be none of the engine's
    business."""
    shards = _SHARD.search(model.name)
    if shards is None:
        return (model,)
    parts = model.parent.glob(f"{model.name[: shards.start()]}-?????-of-{shards[1]}.gguf")
    return tuple(sorted({model, *parts}))


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
