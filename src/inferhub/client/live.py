"""Live transcription over a WebSocket: sound goes up while events come down."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from inferhub.client.session import Problem, Session, decode, without_none
from inferhub.core.errors import EndpointLost, UpstreamFailed
from inferhub.modalities.transcription import TranscriptionRequest

_TOLD = ("model", "language", "prompt", "task", "diarize", "num_speakers")


class LiveEvent(msgspec.Struct):
    """One event of the server; `docs/reference/websockets.md` has them all."""

    type: str
    utterance: int = 0
    text: str = ""
    start: float = 0.0
    end: float = 0.0
    speaker: str | None = None
    error: Problem | None = None


@asynccontextmanager
async def listening(
    session: Session, request: TranscriptionRequest, sound: AsyncIterator[bytes]
) -> AsyncIterator[AsyncIterator[LiveEvent]]:
    """Events until everything of `sound` (PCM, 16 kHz, 16 bits, mono) is transcribed. Leaving hangs up."""
    async with session.socket("/ws/asr") as socket:
        asked = {name: value for name, value in without_none(request).items() if name in _TOLD}
        await socket.send_str(msgspec.json.encode({"type": "start", **asked}).decode())
        sending = asyncio.create_task(_send(socket, sound))
        try:
            yield _events(socket, sending)
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending


async def _send(socket: aiohttp.ClientWebSocketResponse, sound: AsyncIterator[bytes]) -> None:
    async for piece in sound:
        await socket.send_bytes(piece)
    await socket.send_str('{"type":"end"}')


async def _events(
    socket: aiohttp.ClientWebSocketResponse, sending: asyncio.Task[Any]
) -> AsyncIterator[LiveEvent]:
    async for message in socket:
        if sending.done() and not sending.cancelled() and (failure := sending.exception()) is not None:
            raise failure
        if message.type != aiohttp.WSMsgType.TEXT:
            raise UpstreamFailed("The server sent what is no event.")
        event = decode(message.data.encode(), LiveEvent)
        if event.error is not None:
            raise event.error.rebuilt()
        yield event
        if event.type == "done":
            return
    raise EndpointLost("The server closed the connection before everything was transcribed.")
