"""What a live call hears, as long as its caller's limits have room for it: more is reserved while it goes on.

`admit` puts it in front of `Call.incoming`. Where there is no room left the sound ends, so that the engine
finishes what it heard; `refusal` then says why. Counts sound, decodes none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from inferhub.core.call import Frame
from inferhub.core.errors import LimitReached
from inferhub.core.quota import Reservation
from inferhub.modalities.transcription import Live

STEP_MS = 30_000
"""Reserved at once, where so much is left."""
_BYTES_PER_SAMPLE = {"pcm16": 2, "g711_ulaw": 1, "g711_alaw": 1}
_G711_RATE_HZ = 8000

Reserve = Callable[[int], Awaitable[Reservation | None]]
"""Milliseconds of sound → what is held for them. Raises `LimitReached`."""


class Listened(AsyncIterator[Frame]):
    """An iterator for one call."""

    def __init__(self, frames: AsyncIterator[Frame], live: Live, reserved_ms: int, reserve: Reserve) -> None:
        self._frames = frames
        self._bytes_per_ms = _bytes_per_ms(live)
        self._reserved_ms: float = reserved_ms
        self._reserve = reserve
        self._heard_ms = 0.0
        self.held: list[Reservation] = []
        """Beside the call's first one, which is settled for all of it."""
        self.refusal: LimitReached | None = None

    def heard(self, duration_s: float) -> None:
        """How much the engine says that it was; the only one who knows, where sound comes compressed."""
        self._heard_ms = max(self._heard_ms, duration_s * 1000)

    async def __anext__(self) -> Frame:
        frame = await anext(self._frames)
        if self.refusal is None and self._bytes_per_ms:
            self._heard_ms += len(frame.data) / self._bytes_per_ms
        while self.refusal is None and self._heard_ms > self._reserved_ms:
            await self._extend()
        if self.refusal is not None:
            raise StopAsyncIteration
        return frame

    async def _extend(self) -> None:
        needed_ms = int(self._heard_ms - self._reserved_ms) + 1
        for wanted_ms in dict.fromkeys((max(STEP_MS, needed_ms), needed_ms)):
            try:
                more = await self._reserve(wanted_ms)
            except LimitReached as error:
                refusal = error
                continue
            if more is not None:
                self.held.append(more)
            # Seconds are what limits count.
            self._reserved_ms += -(-wanted_ms // 1000) * 1000
            return
        self.refusal = refusal


def _bytes_per_ms(live: Live) -> float:
    """0 where bytes do not tell."""
    rate_hz = live.rate_hz if live.format == "pcm16" else _G711_RATE_HZ
    return _BYTES_PER_SAMPLE.get(live.format, 0) * rate_hz / 1000
