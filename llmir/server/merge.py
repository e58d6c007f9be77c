"""Several asynchronous iterators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

Item = TypeVar("Item")


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

    tasks = [asyncio.create_task(pump(*numbered)) for numbered in enumerate(streams)]
    num_open = len(tasks)
    try:
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
