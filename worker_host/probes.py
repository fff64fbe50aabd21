"""Asking a local engine how it is."""

import asyncio
import time
from dataclasses import dataclass

import httpx

from fleet.engines.adapter import EngineAdapter, Probe

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 0.5
_BELIEVED_REFUSALS = 5
"""In a row: some engines open their routes one by one."""
_TRY_LATER = (408, 425, 429)
_ONE_TOKEN_S = 120.0
"""A first request may have to wait for kernels to be compiled."""


class StartTimeout(Exception):
    """The engine did not become ready in time; says how far it came."""


class Refused(Exception):
    """The engine is healthy and yet refuses its first request: waiting longer will not help."""


@dataclass(frozen=True)
class EngineProbe:
    http: httpx.AsyncClient
    base_url: str
    adapter: EngineAdapter

    async def until_ready(self, probe: Probe, deadline_s: float) -> None:
        """Until it is healthy and has answered ``probe``; cancel it when the engine ends.

        Raises StartTimeout, or Refused.
        """
        end = time.monotonic() + deadline_s
        pause = _FIRST_PAUSE_S
        stage, refusals = "it did not open its port", 0
        while (left := end - time.monotonic()) > 0:
            stage, refusal = await self._stage(probe, left)
            if not stage:
                return
            refusals = refusals + 1 if refusal else 0
            if refusals >= _BELIEVED_REFUSALS:
                raise Refused(stage)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        raise StartTimeout(f"not ready after {deadline_s:.0f} s: {stage}")

    async def busy(self) -> int | None:
        """Requests that it works on; None when it does not say."""
        text = await self.metrics()
        return self.adapter.busy(text) if text is not None else None

    async def until_accepts(self, address: str, port: int, deadline_s: float) -> None:
        """Until a follower of a gang accepts connections there; cancel it when the engine ends. Raises StartTimeout."""
        end = time.monotonic() + deadline_s
        pause = _FIRST_PAUSE_S
        while time.monotonic() < end:
            if await _accepts(address, port):
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        raise StartTimeout(f"not ready after {deadline_s:.0f} s: it did not open its port {port}")

    async def healthy(self, longest_s: float) -> bool:
        """Whether it answers its health check within ``longest_s``, and with success.

        Asked every second of every engine, so by hand: that takes a fraction of the time a client library takes.
        """
        try:
            async with asyncio.timeout(longest_s):
                return await self._status(self.adapter.health_path) == b"200"
        except (OSError, TimeoutError, ValueError):  # ValueError: a first line without an end
            return False

    async def _status(self, path: str) -> bytes:
        """Of a GET; empty when it says nothing."""
        url = httpx.URL(self.base_url)
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: {url.netloc.decode()}\r\nconnection: close\r\n\r\n".encode())
            return b"".join((await reader.readline()).split()[1:2])
        finally:
            writer.close()

    async def answers(self, probe: Probe, longest_s: float) -> bool:
        """Whether it answers a request within ``longest_s``, be it with a refusal."""
        try:
            answer = await self._ask(probe, longest_s)
        except httpx.HTTPError:
            return False
        return answer.status_code < 500

    async def metrics(self, longest_s: float = 2.0) -> str | None:
        """In Prometheus' format; None when it does not answer, or has none."""
        if not self.adapter.metrics_path:
            return None
        try:
            answer = await self.http.get(self.base_url + self.adapter.metrics_path, timeout=longest_s)
        except httpx.HTTPError:
            return None
        return answer.text if answer.status_code == 200 else None

    async def _stage(self, probe: Probe, longest_s: float) -> tuple[str, bool]:
        """What is still missing (empty when it is ready), and whether the engine says that the request is wrong."""
        try:
            health = await self.http.get(self.base_url + self.adapter.health_path, timeout=min(2.0, longest_s))
            if health.status_code != 200:
                return f"its health check says {health.status_code}: {health.text[:200]}", False
            first = await self._ask(probe, min(_ONE_TOKEN_S, longest_s))
        except httpx.HTTPError as error:
            return f"it does not answer yet ({error!r})", False
        if first.status_code == 200:
            return "", False
        refusal = 400 <= first.status_code < 500 and first.status_code not in _TRY_LATER
        return f"its first request got {first.status_code}: {first.text[:200]}", refusal

    async def _ask(self, probe: Probe, longest_s: float) -> httpx.Response:
        url = self.base_url + probe.path
        if probe.upload is None:
            return await self.http.post(url, json=probe.body, timeout=longest_s)
        return await self.http.post(url, data=probe.body, files={"file": probe.upload}, timeout=longest_s)


async def _accepts(address: str, port: int) -> bool:
    try:
        async with asyncio.timeout(1.0):
            _, writer = await asyncio.open_connection(address, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
