"""Several asynchronous iterators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")

STARTED_AT_ONCE = 32


async def merge(
    streams: Sequence[AsyncGenerator[Item, None]],
) -> AsyncGenerator[tuple[int, Item], None]:
    """(place of the stream, item) in the order in which they come.

    The first exception of any stream ends all.  Closing this closes the streams.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    # A place for each: who reads slowly keeps the streams waiting, which then have more to give.
    queue: asyncio.Queue[tuple[int, Item] | Exception | None] = asyncio.Queue(len(streams))

    async def pump(place: int, stream: AsyncGenerator[Item, None]) -> None:
        try:
            async with aclosing(stream):
                async for item in stream:
                    await queue.put((place, item))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks: list[asyncio.Task[None]] = []
    num_open = len(streams)
    try:
        for place, stream in enumerate(streams):
            tasks.append(asyncio.create_task(pump(place, stream)))
            if len(tasks) % STARTED_AT_ONCE == 0:
                await asyncio.sleep(0)  # thousands that begin together would hold the loop
        while num_open:
            got = await queue.get()
            if got is None:
                num_open -= 1
            elif isinstance(got, Exception):
                raise got
            else:
                yield got
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
