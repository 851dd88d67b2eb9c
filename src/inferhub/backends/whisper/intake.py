"""What a client says, live, as samples at 16 kHz, whatever it speaks: PCM, G.711, or Opus in a container.

`live` iterates over it. Opus is decoded by the media room, in a child process; the rest is arithmetic.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from functools import cache
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from inferhub.backends.whisper.engine import RATE_HZ
from inferhub.backends.whisper.resample import Resampler
from inferhub.core.call import Frame
from inferhub.core.errors import Invalid
from inferhub.media import MediaPool
from inferhub.modalities.transcription import Live

T = TypeVar("T")

Heard = NDArray[np.int16] | str
"""Samples, or the name of an event."""

_G711_RATE_HZ = 8000
_QUEUED = 8
"""Pieces between two tasks: enough to overlap, too few to hide that the other side is slow."""


async def hear(frames: AsyncIterator[Frame], live: Live, media: MediaPool) -> AsyncGenerator[Heard, None]:
    """Everything in the order in which it came. Raises `Invalid` for what is no sound of that format."""
    if live.format == "opus":
        async with aclosing(_opus(frames, media)) as heard:
            async for item in heard:
                yield item
        return
    decoder = _decoder(live)
    async for frame in frames:
        if frame.event:
            yield frame.event
        else:
            yield decoder.take(frame.data)
    yield decoder.rest()


class _Decoder(Protocol):
    def take(self, data: bytes) -> NDArray[np.int16]: ...

    def rest(self) -> NDArray[np.int16]: ...


def _decoder(live: Live) -> _Decoder:
    if live.format == "pcm16":
        return _Pcm(live.rate_hz)
    return _G711(_ulaw() if live.format == "g711_ulaw" else _alaw())


class _Pcm:
    """Little-endian, mono. A frame may end in the middle of a sample."""

    def __init__(self, rate_hz: int) -> None:
        self._resampler = Resampler(rate_hz, RATE_HZ) if rate_hz != RATE_HZ else None
        self._odd = b""

    def take(self, data: bytes) -> NDArray[np.int16]:
        data = self._odd + data
        whole = len(data) & ~1
        self._odd = data[whole:]
        samples = np.frombuffer(data[:whole], "<i2")
        return self._resampler.take(samples) if self._resampler else samples

    def rest(self) -> NDArray[np.int16]:
        return self._resampler.rest() if self._resampler else np.zeros(0, np.int16)


class _G711:
    def __init__(self, table: NDArray[np.int16]) -> None:
        self._table = table
        self._resampler = Resampler(_G711_RATE_HZ, RATE_HZ)

    def take(self, data: bytes) -> NDArray[np.int16]:
        return self._resampler.take(self._table[np.frombuffer(data, np.uint8)])

    def rest(self) -> NDArray[np.int16]:
        return self._resampler.rest()


@cache
def _ulaw() -> NDArray[np.int16]:
    """ITU-T G.711 μ-law: what each byte stands for."""
    code = ~np.arange(256, dtype=np.uint8)
    exponent, mantissa = (code >> 4) & 7, (code & 15).astype(np.int32)
    size = (((mantissa << 3) + 132) << exponent) - 132
    return np.where(code & 128, -size, size).astype(np.int16)


@cache
def _alaw() -> NDArray[np.int16]:
    """ITU-T G.711 A-law: what each byte stands for."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    exponent, mantissa = ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    size = np.where(
        exponent == 0, (mantissa << 4) + 8, ((mantissa << 4) + 264) << np.maximum(exponent - 1, 0)
    )
    return np.where(code & 128, size, -size).astype(np.int16)


async def _opus(frames: AsyncIterator[Frame], media: MediaPool) -> AsyncGenerator[Heard, None]:
    """An event counts when it arrives: sound that the decoder still holds then belongs to what follows."""
    encoded: asyncio.Queue[bytes | None] = asyncio.Queue(_QUEUED)
    heard: asyncio.Queue[Heard] = asyncio.Queue(_QUEUED)

    async def take_in() -> None:
        async for frame in frames:
            if frame.event:
                await heard.put(frame.event)
            elif frame.data:
                await encoded.put(frame.data)
        await encoded.put(None)

    async def pieces() -> AsyncIterator[bytes]:
        while (piece := await encoded.get()) is not None:
            yield piece

    async def decode() -> None:
        odd = b""
        async with aclosing(media.decode_live(pieces(), format="opus")) as decoded:
            async for piece in decoded:
                data = odd + piece
                odd = data[len(data) & ~1 :]
                await heard.put(np.frombuffer(data[: len(data) & ~1], "<i2"))

    async def both() -> None:
        taking = asyncio.ensure_future(take_in())
        try:
            await decode()
            if not taking.done():
                raise Invalid("The sound ended before its client did: its container says that it is over.")
            taking.result()
        finally:
            taking.cancel()
            await asyncio.wait([taking])

    async with aclosing(until_done(both(), heard)) as items:
        async for item in items:
            yield item


async def until_done(work: Coroutine[Any, Any, None], out: asyncio.Queue[T]) -> AsyncGenerator[T, None]:
    """What `work` puts into `out`, until it has ended; raises what it raises. Closed early, it cancels it."""
    working = asyncio.ensure_future(work)
    getting: asyncio.Future[T] | None = None
    try:
        while not working.done() or not out.empty():
            getting = getting or asyncio.ensure_future(out.get())
            both: set[asyncio.Future[Any]] = {working, getting}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                item, getting = getting.result(), None
                yield item
            elif out.empty():
                break
        working.result()
    finally:
        working.cancel()
        if getting is not None:
            getting.cancel()
        await asyncio.wait([working])
