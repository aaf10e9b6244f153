"""A server on an event loop of its own, in a thread."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def served(start: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]]) -> Iterator[T]:
    """What ``start`` has started, for the time of a ``with`` block; ``close`` ends it."""
    loop = asyncio.new_event_loop()
    running = loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, name="served", daemon=True)
    thread.start()

    async def end() -> None:
        await close(running)

    try:
        yield running
    finally:
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(end(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
