"""A microphone, as far as a server can tell: real sound, paced at real time, through the door in both shapes."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from websockets.asyncio.client import ClientConnection, connect

from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.words import word_error_rate

DATA = Path(__file__).parents[1] / "data"
SPEC = """\
models:
  - {name: tiny, backend: whisper, weights: whisper-tiny.en, load: start, slots: 2}
"""
WORDS = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness"


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp(f"live-{request.param}")
    with running_hub(request.param, folder, SPEC, {"cache_dir": cache_dir}) as running:
        yield running


def sound(seconds: float) -> tuple[bytes, int]:
    with wave.open(str(DATA / "two_cities.wav")) as file:
        return file.readframes(round(file.getframerate() * seconds)), file.getframerate()


async def spoken(data: bytes, rate_hz: int) -> AsyncIterator[bytes]:
    """A tenth of a second, every tenth of a second."""
    size, begin_s = rate_hz // 5, time.monotonic()
    for number, at in enumerate(range(0, len(data), size)):
        await asyncio.sleep(max(0.0, begin_s + number / 10 - time.monotonic()))
        yield data[at : at + size]


async def events(connection: ClientConnection, last: str) -> AsyncIterator[tuple[float, dict[str, Any]]]:
    """(when, what) up to the first event of this kind."""
    async with asyncio.timeout(90):
        async for message in connection:
            event = json.loads(message)
            assert event["type"] != "error", event
            yield time.monotonic(), event
            if event["type"] == last:
                return


def opened(hub: Hub) -> Any:
    headers = {"Authorization": f"Bearer {hub.admin_key}"}
    return connect(f"{hub.url.replace('http', 'ws')}/ws/asr", additional_headers=headers)


async def test_words_appear_while_they_are_spoken(hub: Hub) -> None:
    data, rate_hz = sound(9.0)
    async with opened(hub) as connection:
        await connection.send(json.dumps({"type": "start", "model": "tiny", "rate_hz": rate_hz}))

        async def speak() -> float:
            async for piece in spoken(data, rate_hz):
                await connection.send(piece)
            await connection.send('{"type": "end"}')
            return time.monotonic()

        speaking = asyncio.ensure_future(speak())
        heard = [item async for item in events(connection, "done")]
        silent_at = await speaking
    partials = [event for at, event in heard if event["type"] == "partial" and at < silent_at]
    assert len(partials) >= 3
    assert any("best of times" in partial["text"] for partial in partials)
    finals = " ".join(event["text"] for _, event in heard if event["type"] == "final")
    assert word_error_rate(WORDS, finals) < 0.15
    assert heard[-1][1]["usage"]["audio_ms"] == 9000


async def test_openais_client_hears_the_same(hub: Hub) -> None:
    data, rate_hz = sound(9.0)
    client = AsyncOpenAI(api_key=hub.admin_key, base_url=hub.api)
    kinds: list[str] = []
    told: dict[str, str] = {}
    transcripts: list[str] = []
    async with client, client.realtime.connect(model="tiny", extra_query={"intent": "transcription"}) as talk:
        assert (await talk.recv()).type == "session.created"
        given: Any = {"format": {"type": "audio/pcm", "rate": rate_hz}}
        await talk.session.update(session={"type": "transcription", "audio": {"input": given}})

        async def speak() -> None:
            async for piece in spoken(data + bytes(rate_hz * 2), rate_hz):
                await talk.input_audio_buffer.append(audio=base64.b64encode(piece).decode())
            # What was said before a change is transcribed before the change is confirmed.
            off: Any = {"turn_detection": None}
            await talk.session.update(session={"type": "transcription", "audio": {"input": off}})

        speaking = asyncio.ensure_future(speak())
        async with asyncio.timeout(90):
            async for event in talk:
                assert event.type != "error", event
                kinds.append(event.type)
                if event.type == "conversation.item.input_audio_transcription.delta":
                    told[event.item_id] = told.get(event.item_id, "") + (event.delta or "")
                elif event.type == "conversation.item.input_audio_transcription.completed":
                    transcripts.append(event.transcript)
                    assert event.usage.type == "duration"
                if kinds.count("session.updated") == 2:
                    break
        await speaking
    assert word_error_rate(WORDS, " ".join(transcripts)) < 0.15
    # What grew is, but for words that were misheard at first, what it has become.
    assert word_error_rate(" ".join(transcripts), " ".join(told.values())) < 0.5
    order = [kind for kind in kinds if kind != "conversation.item.input_audio_transcription.delta"]
    assert order[:5] == [
        "session.updated",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
    ]


async def test_a_whole_recording_at_once_is_taken_as_fast_as_it_is_understood(hub: Hub) -> None:
    data, rate_hz = sound(44.0)
    async with opened(hub) as connection:
        await connection.send(json.dumps({"type": "start", "rate_hz": rate_hz, "partials": False}))
        for at in range(0, len(data), 96_000):
            await connection.send(data[at : at + 96_000])
        await connection.send('{"type": "end"}')
        heard = [event async for _, event in events(connection, "done")]
    text = " ".join(event["text"] for event in heard if event["type"] == "final")
    assert text.startswith("It was the best of times")
    assert re.search("comparison only", text)


async def test_those_who_hang_up_leave_room_for_the_next(hub: Hub) -> None:
    """There are two slots."""
    data, rate_hz = sound(20.0)
    for _ in range(4):
        async with opened(hub) as connection:
            await connection.send(json.dumps({"type": "start", "rate_hz": rate_hz}))
            await connection.send(data)
            async for _, event in events(connection, "speech_started"):
                assert event["type"] in ("ready", "speech_started")
    async with opened(hub) as connection:
        await connection.send(json.dumps({"type": "start", "rate_hz": rate_hz}))
        await connection.send(data[: rate_hz * 8])
        await connection.send('{"type": "end"}')
        heard = [event async for _, event in events(connection, "done")]
    assert any(event["type"] == "final" for event in heard)
