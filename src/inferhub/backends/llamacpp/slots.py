"""Who runs next on the engine: its blocking calls in threads, their events back on the event loop.

The engine never gets more calls than it has slots, because a call that waits inside it cannot be
interrupted. Used by `backend` only; a cancelled call just closes its `Channel`.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from inferhub.core.errors import InferHubError, InternalError

_MAX_WAITING_EVENTS = 256
"""Per call; a reader that falls behind further stops the engine's thread, not the engine."""


@dataclass(frozen=True, slots=True)
class Event:
    index: int
    """Which of the call's engine requests spoke."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Ended:
    index: int
    error: InferHubError | None


Serve = Callable[[int, Callable[[bytes], bool]], None]
"""(index, on_event) → None: runs one engine request, blocking; stops when `on_event` returns True."""


class Channel:
    """From engine threads to one reader on the loop: bounded, ordered, closed by the reader."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Event | Ended] = deque()
        self._changed = threading.Condition()
        self._readable = asyncio.Event()
        self.is_closed = False

    def put(self, item: Event | Ended) -> bool:
        """From an engine thread; waits while the reader is behind. False when nobody reads any more."""
        with self._changed:
            while len(self._items) >= _MAX_WAITING_EVENTS and not self.is_closed:
                self._changed.wait()
            if self.is_closed:
                return False
            self._items.append(item)
            if len(self._items) > 1:
                return True
        try:
            self._loop.call_soon_threadsafe(self._readable.set)
        except RuntimeError:  # the loop is gone, and the reader with it
            return False
        return True

    async def take(self) -> list[Event | Ended]:
        """Everything that has arrived, at least one."""
        while True:
            with self._changed:
                if self._items:
                    items = list(self._items)
                    self._items.clear()
                    self._changed.notify_all()
                    return items
                self._readable.clear()
            await self._readable.wait()

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self._items.clear()
            self._changed.notify_all()


@dataclass(slots=True)
class _Waiting:
    """What one call still has to start."""

    channel: Channel
    serve: Serve
    indices: deque[int]


class Slots:
    """The engine's slots. Calls take turns: one that asks for 100 answers does not hold up the others."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: deque[_Waiting] = deque()
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="llamacpp")

    def start(self, channel: Channel, indices: Sequence[int], serve: Serve) -> None:
        """Run every index as slots come free; events and one `Ended` each arrive on the channel."""
        self._waiting.append(_Waiting(channel, serve, deque(indices)))
        self._dispatch()

    async def close(self) -> None:
        """Wait until every thread has left the engine."""
        self._waiting.clear()
        await asyncio.to_thread(self._threads.shutdown)

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            call = self._waiting.popleft()
            if call.channel.is_closed:
                continue
            index = call.indices.popleft()
            if call.indices:
                self._waiting.append(call)
            self._free -= 1
            done = asyncio.get_running_loop().run_in_executor(
                self._threads, _run, call.serve, index, call.channel
            )
            done.add_done_callback(self._on_free)

    def _on_free(self, _done: asyncio.Future[None]) -> None:
        self._free += 1
        self._dispatch()


def _run(serve: Serve, index: int, channel: Channel) -> None:
    """In an engine thread."""
    if channel.is_closed:
        return
    try:
        serve(index, lambda data: not channel.put(Event(index, data)))
        channel.put(Ended(index, None))
    except InferHubError as failure:
        channel.put(Ended(index, failure))
    except Exception as failure:  # a thread must never leave its reader waiting
        error = InternalError()
        error.__cause__ = failure
        channel.put(Ended(index, error))
