"""Asking a local engine how it is."""

import asyncio
import time
from dataclasses import dataclass

import httpx

from fleet.engines.adapter import EngineAdapter, Probe

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_ONE_TOKEN_S = 120.0
"""A first request may have to wait for kernels to be compiled."""


class StartTimeout(Exception):
    """The engine did not become ready in time; says how far it came."""


@dataclass(frozen=True)
class EngineProbe:
    http: httpx.AsyncClient
    base_url: str
    adapter: EngineAdapter

    async def until_ready(self, probe: Probe, deadline_s: float) -> None:
        """Until it is healthy and has answered ``probe``. Raises StartTimeout; cancel it when the engine ends."""
        end = time.monotonic() + deadline_s
        pause = _FIRST_PAUSE_S
        stage = "it did not open its port"
        while (left := end - time.monotonic()) > 0:
            stage = await self._stage(probe, left)
            if not stage:
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        raise StartTimeout(f"not ready after {deadline_s:.0f} s: {stage}")

    async def busy(self) -> int | None:
        """Requests that it works on; None when it does not say."""
        text = await self.metrics()
        return self.adapter.busy(text) if text is not None else None

    async def metrics(self) -> str | None:
        """In Prometheus' format; None when it does not answer."""
        try:
            answer = await self.http.get(self.base_url + self.adapter.metrics_path, timeout=2.0)
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None

    async def _stage(self, probe: Probe, longest_s: float) -> str:
        """What is still missing; empty when it is ready."""
        try:
            health = await self.http.get(self.base_url + self.adapter.health_path, timeout=min(2.0, longest_s))
            if health.status_code != 200:
                return f"its health check says {health.status_code}: {health.text[:200]}"
            first = await self.http.post(
                self.base_url + probe.path, json=probe.body, timeout=min(_ONE_TOKEN_S, longest_s)
            )
        except httpx.HTTPError as error:
            return f"it does not answer yet ({error!r})"
        return "" if first.status_code == 200 else f"its first request got {first.status_code}: {first.text[:200]}"
