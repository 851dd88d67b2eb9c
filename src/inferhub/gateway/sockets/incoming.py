"""What a client says while it is answered, between the task that reads the socket and the call that listens.

Bounded in bytes: whoever reads the socket waits for room, so that the client waits as well.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator

from inferhub.core.call import Frame
from inferhub.core.errors import Overloaded

_MOST_BYTES = 512 * 1024
"""Some 16 s of PCM at 16 kHz; one message may be longer, and then is alone."""


class Incoming(AsyncIterator[Frame]):
    """An iterator for one call, which ends with `end`."""

    def __init__(self, patience_s: float) -> None:
        """`patience_s` is how long a listener may take nothing before it counts as overloaded."""
        self._patience_s = patience_s
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._has_ended = False
        self._changed = asyncio.Condition()

    async def put(self, frame: Frame) -> None:
        """Waits for room. What comes after the end is left out. Raises `Overloaded`."""
        async with self._changed:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._changed.wait_for(
                        lambda: (
                            not self._frames
                            or self._bytes + len(frame.data) <= _MOST_BYTES
                            or self._has_ended
                        )
                    )
            except TimeoutError:
                raise Overloaded(
                    "The model cannot keep up with what is said.", retry_after_s=5.0, reason="connection_full"
                ) from None
            if not self._has_ended:
                self._frames.append(frame)
                self._bytes += len(frame.data)
                self._changed.notify_all()

    async def end(self) -> None:
        """Nothing more will be said."""
        async with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    async def __anext__(self) -> Frame:
        async with self._changed:
            await self._changed.wait_for(lambda: self._frames or self._has_ended)
            if not self._frames:
                raise StopAsyncIteration
            frame = self._frames.popleft()
            self._bytes -= len(frame.data)
            self._changed.notify_all()
            return frame
