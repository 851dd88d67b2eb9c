"""OpenAI's own client through InferHub to vendors that hear, speak and paint, on every route."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from inferhub.media import sniff
from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.strict import validate
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_sounds import picture, sound

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-canary-0123456789abcdef"
MODELS = (
    "whisper-1",
    "gpt-4o-transcribe",
    "gpt-4o-transcribe-diarize",
    "tts-1",
    "gpt-4o-mini-tts",
    "gpt-image-1",
    "tts-1-hd",
)
WAV = sound("wav", 1500)
KINDS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running
        assert await running.violations() == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hub]:
    lines = [
        f'  - {{name: {name}, backend: openai_compatible, options: {{vendor: openai, base_url: "{upstream.url}", '
        f"api_key: {KEY}}}}}"
        for name in (*MODELS, "dall-e-2")
    ]
    lines += [
        f'  - {{name: {name}, backend: gemini, options: {{base_url: "{upstream.url}", api_key: {KEY}}}}}'
        for name in ("gemini-2.5-flash", "gemini-2.5-flash-preview-tts", "gemini-2.5-flash-image")
    ]
    folder = tmp_path_factory.mktemp("media")
    with running_hub("serve", folder, "models:\n" + "\n".join(lines), {"cache_ttl_s": 0.001}) as running:
        yield running
        # The key is nobody's business, and least of all a log's.
        for log in folder.rglob("*.log"):
            assert KEY not in log.read_text(encoding="utf-8", errors="replace")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(hub: Hub) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{hub.url}/v1", api_key=hub.admin_key, max_retries=0) as running:
        yield running


def file(name: str = "speech.wav", data: bytes = WAV) -> tuple[str, bytes]:
    return (name, data)


@pytest.mark.parametrize("format_", ["json", "text", "srt", "vtt", "verbose_json"])
async def test_transcripts_in_every_format(client: AsyncOpenAI, format_: Any) -> None:
    made: Any = await client.audio.transcriptions.create(
        model="whisper-1", file=file(), response_format=format_, prompt="script:n=4"
    )
    text = made if isinstance(made, str) else made.text
    assert "word0 word1" in text
    if format_ == "srt":
        assert "00:00:00,750 --> 00:00:01,500" in text
    if format_ == "verbose_json":
        assert (made.language, made.duration, len(made.segments)) == ("english", 1.5, 2)


async def test_a_streamed_transcript_loses_nothing(client: AsyncOpenAI) -> None:
    for model in ("gpt-4o-transcribe", "whisper-1", "gemini-2.5-flash"):
        events = await client.audio.transcriptions.create(
            model=model, file=file(), prompt="script:n=5", stream=True
        )
        seen = [event async for event in events]
        deltas = [event.delta for event in seen if event.type == "transcript.text.delta"]
        done = seen[-1]
        assert done.type == "transcript.text.done"
        assert "".join(deltas) == done.text
        assert done.text.startswith("word0 word1 word2")


async def test_speakers_are_told_apart(client: AsyncOpenAI) -> None:
    made: Any = await client.audio.transcriptions.create(
        model="gpt-4o-transcribe-diarize",
        file=file(),
        response_format="diarized_json",
        prompt="script:n=3",
    )
    assert [segment.speaker for segment in made.segments][:2] == ["A", "B"]


async def test_a_translation_is_english(client: AsyncOpenAI, hub: Hub) -> None:
    import httpx

    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(
            f"{hub.url}/v1/audio/translations",
            headers={"authorization": f"Bearer {hub.admin_key}"},
            data={"model": "whisper-1", "prompt": "script:n=2"},
            files={"file": file()},
        )
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == "In English: word0 word1"


@pytest.mark.parametrize("model", ["tts-1", "gpt-4o-mini-tts", "gemini-2.5-flash-preview-tts"])
@pytest.mark.parametrize("format_", [*KINDS, "pcm"])
async def test_speech_is_what_its_format_says(client: AsyncOpenAI, model: str, format_: Any) -> None:
    voice = "Puck" if model.startswith("gemini") else "coral"
    async with client.audio.speech.with_streaming_response.create(
        model=model, voice=voice, input=f"script:n=4\nSay {format_}.", response_format=format_
    ) as answer:
        data = await answer.read()
    assert data
    if format_ != "pcm":
        assert sniff(data) == KINDS[format_]
        assert answer.headers["content-type"].startswith(KINDS[format_])


async def test_speech_as_events(hub: Hub, client: AsyncOpenAI) -> None:
    async with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="coral", input="script:n=4\nEvents.", stream_format="sse"
    ) as answer:
        lines = [line async for line in answer.iter_lines() if line.startswith("data: ")]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [e["type"] for e in events[-1:]] == ["speech.audio.done"]
    sounds = b"".join(base64.b64decode(e["audio"]) for e in events[:-1])
    assert sounds == sound("mp3", 400)
    assert events[-1]["usage"]["output_tokens"] == 101
    assert not validate("CreateSpeechResponseStreamEvent", events[0])


async def test_an_unknown_voice_lists_the_known(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.audio.speech.create(model="tts-1", voice="nobody", input="Hello")
    assert "shimmer" in str(caught.value)
    assert caught.value.param == "voice"


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-2", "gemini-2.5-flash-image"])
async def test_pictures_are_made_and_changed(client: AsyncOpenAI, model: str) -> None:
    made = await client.images.generate(
        model=model,
        prompt="script:n=1\nA circle.",
        size="1024x1024",
        **({"response_format": "b64_json"} if model == "dall-e-2" else {}),  # type: ignore[call-overload]
    )
    changed = await client.images.edit(
        model=model,
        prompt="script:n=1\nA square.",
        image=("a.png", picture(16, 16)),
        n=1,
        **({"response_format": "b64_json"} if model == "dall-e-2" else {}),  # type: ignore[call-overload]
    )
    for answer in (made, changed):
        assert sniff(base64.b64decode(answer.data[0].b64_json or "")) == "image/png"


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
async def test_variations_and_previews(client: AsyncOpenAI) -> None:
    varied = await client.images.create_variation(  # type: ignore[deprecated]
        model="dall-e-2", image=("a.png", picture(16, 16)), n=2, response_format="b64_json"
    )
    assert len(varied.data or ()) == 2
    events = await client.images.generate(
        model="gpt-image-1", prompt="script:n=1\nA circle.", stream=True, partial_images=2
    )
    assert [event.type async for event in events] == [
        "image_generation.partial_image",
        "image_generation.partial_image",
        "image_generation.completed",
    ]


async def test_a_vendor_that_fails_is_told_with_its_status(client: AsyncOpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        await client.audio.speech.create(model="tts-1-hd", voice="coral", input="script:mode=429")
    with pytest.raises(openai.InternalServerError) as caught:
        await client.images.generate(model="gpt-image-1", prompt="script:mode=html")
    assert caught.value.status_code == 502


async def test_a_recording_is_tried_again_with_all_its_bytes(client: AsyncOpenAI, upstream: Upstream) -> None:
    made = await client.audio.transcriptions.create(
        model="whisper-1", file=file(), prompt="script:mode=500,times=1,n=2"
    )
    assert made.text == "word0 word1"
    log = [r for r in await upstream.log() if "times=1,n=2" in r.body]
    assert len(log) == 2
    assert len({json.loads(r.body)["file"]["sha256"] for r in log}) == 1
    assert len({r.headers["idempotency-key"] for r in log}) == 1


async def test_a_client_that_leaves_frees_the_vendor(client: AsyncOpenAI, upstream: Upstream) -> None:
    async def ask() -> None:
        await client.audio.speech.create(model="tts-1", voice="coral", input="script:hdr_ms=60000;leaves")

    task = asyncio.create_task(ask())
    end_s = asyncio.get_running_loop().time() + 30
    while not (found := [r for r in await upstream.log() if ";leaves" in r.body]):
        assert asyncio.get_running_loop().time() < end_s
        await asyncio.sleep(0.02)
    task.cancel()
    while found[-1].abort_s is None:
        assert asyncio.get_running_loop().time() < end_s
        await asyncio.sleep(0.02)
        found = [r for r in await upstream.log() if ";leaves" in r.body]
