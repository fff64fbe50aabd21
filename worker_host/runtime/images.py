"""Getting container images onto this host, and off it again when nobody needs them."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import docker
import psutil
from docker.errors import APIError, ImageNotFound, NotFound

from fleet.inventory import AcceleratorKind
from fleet.model import Record
from fleet.policy.images import KeptImage, superfluous
from worker_host.files import write_atomically
from worker_host.runtime.docker_client import DockerClient, in_thread, translated
from worker_host.runtime.protocol import CannotStart
from worker_host.runtime.registries import Registries, tagged

log = logging.getLogger("holdfast.host")

Say = Callable[[float | None, str], None]
"""Told how far a pull is: a share from 0 to 1 if that is known, and words."""

_TRIES = 5
_FIRST_PAUSE_S = 1.0
_SAY_EVERY_S = 1.0
_HOPELESS = (
    "manifest unknown",
    "not found",
    "denied",
    "unauthorized",
    "no basic auth",
    "no matching manifest",
    "no space",
)
"""Asking again gives the same answer."""


class Image(Record):
    """One that is here."""

    id: str
    pin: str
    """The name by digest, by which others can have the same; empty: it was never in a registry."""
    has_entrypoint: bool


class _Pulled(Record):
    names: tuple[str, ...] = ()
    """Under which we pulled it."""
    last_used: datetime


class _Notes(Record):
    """What we pulled ourselves, by id."""

    images: dict[str, _Pulled] = {}


@dataclass
class Images:
    client: DockerClient
    registries: Registries
    of_engines: Mapping[str, str]
    """As ``Settings.host_engine_images``."""
    notebook: Path
    """Which images we pulled ourselves: no others are ever removed."""
    unused_for: timedelta = timedelta(days=30)
    free_share: float = 0.1
    """Of Docker's disk, that is to stay free."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def name_for(self, engine: str, kind: AcceleratorKind) -> str:
        """What this host runs ``engine`` from; empty: it has not been told."""
        return self.of_engines.get(f"{engine}/{kind}") or self.of_engines.get(engine, "")

    async def ensure(self, image: str, say: Say) -> Image:
        """``image``, pulled if it is not here. Cancelled and asked again it goes on where it was.

        Raises CannotStart and RuntimeAway.
        """
        found = await self._here(image)
        if found is None:
            await self._pull(image, say)
            found = await self._here(image)
        if found is None:
            raise CannotStart(f"cannot pull {image}: it is not there after pulling: manifest unknown")
        await asyncio.to_thread(self._note_use, found.id)
        return found

    async def _here(self, image: str) -> Image | None:
        for name in self.registries.sources(image):
            try:
                facts = await self.client.call(lambda api, name=name: api.inspect_image(name))  # type: ignore[misc]
            except (ImageNotFound, NotFound):
                continue
            except APIError as error:
                raise CannotStart(f"cannot look for {image}: {_said(error)}") from error
            return _image(facts, image, {tagged(source)[0] for source in self.registries.sources(image)})
        return None

    async def _pull(self, image: str, say: Say) -> None:
        """From the first source that has it, several times if it is only away."""
        complaints: list[str] = []
        for source in self.registries.sources(image):
            credentials = self.registries.credentials_for(source)
            pause = _FIRST_PAUSE_S
            for attempt in range(1, _TRIES + 1):
                try:
                    await self._pull_once(source, credentials, say)
                    facts = await self.client.call(lambda api, name=source: api.inspect_image(name))  # type: ignore[misc]
                except APIError as error:
                    complaint = _said(error)
                    if attempt == _TRIES or any(word in complaint.lower() for word in _HOPELESS):
                        complaints.append(f"cannot pull {source}: {complaint}")
                        break
                    say(None, f"pulling {source}: {complaint}; trying again")
                    await asyncio.sleep(pause)
                    pause *= 2
                else:
                    await asyncio.to_thread(self._note_pull, facts["Id"], source)
                    return
        raise CannotStart("\n".join(complaints))

    async def _pull_once(self, source: str, credentials: dict[str, str] | None, say: Say) -> None:
        loop = asyncio.get_running_loop()
        progress = PullProgress(source)
        given_up = threading.Event()

        def pull() -> None:
            name, tag = tagged(source)
            said_at = 0.0
            with translated():
                events = self.client.api.pull(name, tag=tag, stream=True, decode=True, auth_config=credentials)
                for event in events:
                    if given_up.is_set():
                        return  # closes the connection; Docker keeps the layers that are complete
                    if "error" in event:
                        raise APIError(str(event["error"]))
                    progress.take(event)
                    if time.monotonic() - said_at >= _SAY_EVERY_S:
                        said_at = time.monotonic()
                        loop.call_soon_threadsafe(say, progress.share, str(progress))

        try:
            await in_thread(pull, f"pull {source}")
        finally:
            given_up.set()

    # -- clearing up ------------------------------------------------------------------------------------------

    def clear_up(self) -> list[str]:
        """Remove what is superfluous; its ids. Blocks. Raises RuntimeAway and APIError."""
        ours = self._noted()
        if not ours:
            return []
        facts = self.client.blocking(lambda api: {i["Id"]: i for i in api.images(all=False)})
        used = self.client.blocking(lambda api: {c["ImageID"] for c in api.containers(all=True)})
        kept = [
            KeptImage(image_id, int(facts[image_id]["Size"]), pulled.last_used, in_use=image_id in used)
            for image_id, pulled in ours.items()
            if image_id in facts
        ]
        removed = []
        now = datetime.now(UTC)
        for image in superfluous(kept, now, unused_for=self.unused_for, bytes_short=self._bytes_short()):
            try:
                for name in ours[image.id].names:  # with its last name it goes; one that somebody else gave keeps it
                    self.client.blocking(lambda api, name=name: _untag(api, name))  # type: ignore[misc]
            except APIError as error:  # a container was made from it meanwhile
                log.info("image %s stays: %s", image.id, _said(error))
                continue
            log.info("removed image %s, unused since %s", image.id, image.last_used)
            removed.append(image.id)
        self._forget({*removed, *(ours.keys() - facts.keys())})
        return removed

    def _bytes_short(self) -> int:
        """Of free disk where Docker keeps images; 0 if that is another machine's."""
        root = self.client.blocking(lambda api: api.info().get("DockerRootDir", ""))
        if not root or not Path(root).exists():
            return 0
        usage = psutil.disk_usage(root)
        return max(0, int(usage.total * self.free_share) - usage.free)

    def _noted(self) -> dict[str, _Pulled]:
        try:
            return dict(_Notes.model_validate_json(self.notebook.read_text()).images)
        except (OSError, ValueError):
            return {}

    def _note_pull(self, image_id: str, name: str) -> None:
        with self._lock:
            noted = self._noted()
            names = noted[image_id].names if image_id in noted else ()
            pulled = _Pulled(names=tuple(dict.fromkeys((*names, name))), last_used=datetime.now(UTC))
            self._write(noted | {image_id: pulled})

    def _note_use(self, image_id: str) -> None:
        with self._lock:
            noted = self._noted()
            if image_id in noted:
                used = noted[image_id].model_copy(update={"last_used": datetime.now(UTC)})
                self._write(noted | {image_id: used})

    def _forget(self, image_ids: set[str]) -> None:
        with self._lock:
            noted = self._noted()
            if image_ids & noted.keys():
                self._write({i: pulled for i, pulled in noted.items() if i not in image_ids})

    def _write(self, noted: dict[str, _Pulled]) -> None:
        try:
            write_atomically(self.notebook, _Notes(images=noted).model_dump_json())
        except OSError as error:  # then it is never removed
            log.warning("cannot write %s: %s", self.notebook, error)


class PullProgress:
    """How far a pull is: the bytes of all layers, each fetched and then unpacked."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._layers: dict[str, tuple[int, int]] = {}
        """Bytes fetched and in all."""
        self._unpacking: set[str] = set()
        self._done: set[str] = set()

    def take(self, event: Mapping[str, Any]) -> None:
        layer, status = str(event.get("id", "")), str(event.get("status", ""))
        detail = event.get("progressDetail") or {}
        current, total = int(detail.get("current") or 0), int(detail.get("total") or 0)
        if status == "Pulling fs layer":
            self._layers.setdefault(layer, (0, 0))
        elif status == "Downloading":
            self._layers[layer] = (current, max(total, current))
        elif status in ("Download complete", "Verifying Checksum"):
            _, known = self._layers.get(layer, (0, 0))
            self._layers[layer] = (known, known)
        elif status == "Extracting":
            self._unpacking.add(layer)
        elif status in ("Pull complete", "Already exists"):
            self._unpacking.discard(layer)
            self._done.add(layer)
            self._layers.setdefault(layer, (0, 0))

    @property
    def bytes_fetched(self) -> tuple[int, int]:
        """(so far, in all as far as that is known)."""
        return sum(f for f, _ in self._layers.values()), sum(t for _, t in self._layers.values())

    @property
    def share(self) -> float | None:
        """None while the size of a layer is unknown."""
        fetched, total = self.bytes_fetched
        unknown = any(t == 0 for layer, (_, t) in self._layers.items() if layer not in self._done)
        return min(1.0, fetched / total) if total and not unknown else None

    def __str__(self) -> str:
        fetched, total = self.bytes_fetched
        doing = f", unpacking {len(self._unpacking)}" if self._unpacking else ""
        return (
            f"pulling {self._source}: {len(self._done)} of {len(self._layers)} layers, "
            f"{fetched >> 20} of {total >> 20} MiB{doing}"
        )


def _image(facts: Mapping[str, Any], asked: str, names: set[str]) -> Image:
    """``names``: under which it could be had again. It may have digests under others, where it is somebody else's."""
    name, _ = tagged(asked)
    known = [d.partition("@") for d in facts.get("RepoDigests") or ()]
    digests = [digest for repository, _, digest in known if repository in names]
    asked_digest = asked.rpartition("@")[2] if "@" in asked else ""
    digest = asked_digest if asked_digest in digests else next(iter(digests), "")
    config = facts.get("Config") or {}
    return Image(
        id=facts["Id"], pin=f"{name}@{digest}" if digest else "", has_entrypoint=bool(config.get("Entrypoint"))
    )


def _untag(api: docker.APIClient, name: str) -> None:
    try:
        api.remove_image(name, force=False, noprune=False)
    except (ImageNotFound, NotFound):
        return


def _said(error: APIError) -> str:
    return str(error.explanation or error).strip()
