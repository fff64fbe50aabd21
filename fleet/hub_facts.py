"""Facts of models on hubs, read once and remembered."""

import asyncio
import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import cast

import httpx

from fleet.settings import Settings
from fleet.sizing.facts import ModelFacts
from fleet.sizing.files import ReadError, ReadProblem
from fleet.sizing.hub import read_hub
from fleet.sizing.hubs import Source
from fleet.specs import ModelSource

DEADLINE_S = 20.0
"""For a whole answer: people wait for it."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BRANCH_KEPT_S = 300.0
_COMMIT_KEPT_S = 86_400.0
"""It never changes."""
_MOST = 512
_AT_ONCE = 4
"""Models that are read at a time."""

Key = tuple[str, str, str, str]
"""(source, repository, revision, file)"""


@dataclass(frozen=True)
class HubAccess:
    """Where a hub is and who we are there. Only settings say: nobody who asks can have us call another address."""

    endpoint: str = ""
    """Empty: the public one."""
    token: str = ""


@dataclass
class HubFacts:
    """One for each process; all methods belong to one event loop. Equal models, wherever they are, are kept once."""

    access: dict[Source, HubAccess]
    deadline_s: float = DEADLINE_S
    http: httpx.AsyncClient = field(default_factory=lambda: httpx.AsyncClient(follow_redirects=False))
    _kept: OrderedDict[Key, tuple[float, ModelFacts]] = field(default_factory=OrderedDict)
    _by_fingerprint: dict[str, ModelFacts] = field(default_factory=dict)
    _reading: dict[Key, "asyncio.Task[ModelFacts]"] = field(default_factory=dict)
    _room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @classmethod
    def of_settings(cls, settings: Settings) -> "HubFacts":
        def plain(secret: object) -> str:
            return secret.get_secret_value() if hasattr(secret, "get_secret_value") else ""

        return cls(
            {
                "huggingface": HubAccess(settings.huggingface_endpoint, plain(settings.huggingface_token)),
                "modelscope": HubAccess(settings.modelscope_endpoint, plain(settings.modelscope_token)),
            }
        )

    async def of(self, model: ModelSource) -> ModelFacts:
        """Raises ReadError. Whoever asks for the same meanwhile gets the same answer."""
        key = (model.source, model.repo or "", model.revision or "", model.file or "")
        kept = self._kept.get(key)
        if kept is not None and kept[0] > time.monotonic():
            self._kept.move_to_end(key)
            return kept[1]
        if key not in self._reading:
            self._reading[key] = task = asyncio.create_task(self._read(key))
            task.add_done_callback(lambda done: self._ended(key, done))
        # Somebody who leaves does not take the answer from the others.
        return await asyncio.shield(self._reading[key])

    async def aclose(self) -> None:
        for task in self._reading.values():
            task.cancel()
        await self.http.aclose()

    def _ended(self, key: Key, task: "asyncio.Task[ModelFacts]") -> None:
        self._reading.pop(key, None)
        if not task.cancelled():
            task.exception()  # told to whoever waited; nobody may be left

    async def _read(self, key: Key) -> ModelFacts:
        source, repo, revision, file = key
        access = self.access[cast("Source", source)]
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline_s), self._room:
                facts = await read_hub(
                    cast("Source", source),
                    repo,
                    revision or None,
                    file or None,
                    http=self.http,
                    token=access.token,
                    endpoint=access.endpoint,
                    deadline_s=max(0.1, self.deadline_s - (time.monotonic() - began)),
                )
        except TimeoutError:
            raise ReadError(
                ReadProblem.UNAVAILABLE,
                f"{repo} could not be read within {self.deadline_s:g} s",
                "try again, or download the model to a host and name its path",
            ) from None
        self._keep(key, facts)
        return self._kept[key][1]

    def _keep(self, key: Key, facts: ModelFacts) -> None:
        facts = self._by_fingerprint.setdefault(facts.fingerprint, facts)
        lasting = _COMMIT.fullmatch(key[2]) is not None
        self._kept[key] = (time.monotonic() + (_COMMIT_KEPT_S if lasting else _BRANCH_KEPT_S), facts)
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)
            left = {f.fingerprint for _, f in self._kept.values()}
            self._by_fingerprint = {print_: f for print_, f in self._by_fingerprint.items() if print_ in left}
