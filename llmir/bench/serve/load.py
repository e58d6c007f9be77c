"""Sends requests at their times, no more than so many at once, and keeps what came of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from llmir.bench.serve.client import Endpoint, RequestResult, send
from llmir.bench.serve.datasets import SampleRequest
from llmir.bench.serve.http_stream import HttpPool
from llmir.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was measured of one load.

    results           of each request, in the order of the requests
    duration_s        from the first arrival to the end of the last answer
    client_cpu_share  CPU time of this process, of one core's time meanwhile
    latest_s          the most that a request was sent after its time although it had not to
                      wait for another: more than a few milliseconds, and this client was busy
    """

    results: list[RequestResult]
    duration_s: float
    client_cpu_share: float
    latest_s: float

    @property
    def failed(self) -> list[RequestResult]:
        return [result for result in self.results if not result.success]


class Client:
    """A pool of connections to an endpoint; use it in one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        url = urlsplit(endpoint.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise OptionError(f"{endpoint.url!r} is no URL such as http://127.0.0.1:8000/v1")
        self._endpoint = endpoint
        self._path = url.path
        self._pool = HttpPool(url, endpoint.headers)

    async def send(self, request: SampleRequest, body: bytes | None = None) -> RequestResult:
        """One request, now.  body: if it is ready."""
        if body is None:
            body = self._endpoint.body(request)
        return await send(self._pool, self._path, body, request, self._endpoint.timeout_s)

    async def load(
        self,
        requests: Sequence[SampleRequest],
        arrivals: Sequence[float] | None = None,
        *,
        max_concurrency: int | None = None,
        on_done: Callable[[RequestResult], Any] = lambda result: None,
    ) -> Loaded:
        """Send each request at its time.

        arrivals         seconds from now, not decreasing; None: all at once
        max_concurrency  requests that are being answered at a time; the others wait here
        on_done          called with each result as it comes
        """
        bodies = [self._endpoint.body(request) for request in requests]
        times = [0.0] * len(requests) if arrivals is None else list(arrivals)
        free = asyncio.Semaphore(max_concurrency or max(1, len(requests)))
        latest_s = 0.0

        async def one(i: int) -> RequestResult:
            nonlocal latest_s
            due = begun + times[i]
            must_wait = free.locked()
            async with free:
                sent = time.perf_counter()
                if not must_wait:
                    latest_s = max(latest_s, sent - due)
                result = await self.send(requests[i], bodies[i])
            result.queue_s = sent - due
            on_done(result)
            return result

        tasks: list[asyncio.Task[RequestResult]] = []
        cpu = time.process_time()
        begun = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for i, at in enumerate(times):
                wait_s = begun + at - time.perf_counter()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                tasks.append(group.create_task(one(i)))
        duration_s = time.perf_counter() - begun
        return Loaded(
            results=[task.result() for task in tasks],
            duration_s=duration_s,
            client_cpu_share=(time.process_time() - cpu) / max(duration_s, 1e-9),
            latest_s=latest_s,
        )

    async def close(self) -> None:
        await self._pool.close()
