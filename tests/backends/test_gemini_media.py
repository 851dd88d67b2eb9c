"""Hearing, speaking and painting by Gemini's models, against the strict scripted upstream."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends import backend_class
from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import (
    ContentFiltered,
    EndpointStalled,
    InferHubError,
    Invalid,
    Unsupported,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import sniff
from inferhub.testing.calls import make_call
from inferhub.testing.upstream_gemini_media import MADE_TOKENS
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS
from inferhub.testing.upstream_sounds import PIECE_MS, picture, sound, tone

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "AIzaSyCanary0123456789abcdef"
HEARS, SPEAKS, PAINTS = "gemini-2.5-flash", "gemini-2.5-flash-preview-tts", "gemini-2.5-flash-image"
IMAGEN = "imagen-4.0-generate-001"
MP3 = sound("mp3", 2000)
PNG = picture(40, 30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running
        assert await running.violations() == []


@asynccontextmanager
async def loaded(upstream: Upstream, name: str, **options: Any) -> AsyncIterator[Backend]:
    given = {"base_url": upstream.url, "api_key": KEY, **options}
    backend = backend_class("gemini")(ModelSpec(name, "gemini", options=given), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


def recording(data: bytes = MP3, **params: Any) -> Call:
    return make_call("transcription", media=(Media("file", data, sniff(data) or "", "x"),), **params)


def text(script: str = "n=5", **params: Any) -> Call:
    return make_call("speech", **{"input": f"script:{script}\nSay it.", **params})


def prompt(script: str = "n=1", media: tuple[Media, ...] = (), **params: Any) -> Call:
    return make_call("image", media=media, **{"prompt": f"script:{script}\nA circle.", **params})


async def answer(backend: Backend, call: Call) -> tuple[list[Any], Usage]:
    async with asyncio.timeout(60):
        items = [item async for item in backend.run(call)]
    assert [type(item) for item in items] == [Delta] * (len(items) - 1) + [Finished]
    return [item.payload for item in items[:-1]], items[-1].usage


async def failure(backend: Backend, call: Call) -> InferHubError:
    with pytest.raises(InferHubError) as caught:
        await answer(backend, call)
    assert KEY not in str(caught.value)
    return caught.value


async def sent(upstream: Upstream, call: Call) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((await upstream.records(call.key))[-1].body)
    return body


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        (HEARS, ["chat", "token_count", "transcription"]),
        (SPEAKS, ["speech"]),
        (PAINTS, ["image"]),
        (IMAGEN, ["image"]),
        ("gemini-embedding-001", ["embedding"]),
        ("gemma-3-27b-it", ["chat", "token_count"]),
    ],
)
async def test_a_model_offers_what_its_name_says(upstream: Upstream, name: str, offered: list[str]) -> None:
    async with loaded(upstream, name) as backend:
        assert [c.modality for c in backend.capabilities] == offered


async def test_a_recording_is_heard_piece_by_piece(upstream: Upstream) -> None:
    call = recording(task="translate", language="fr", prompt="Kyiv", stream=True)
    await upstream.plays("n=3")
    async with loaded(upstream, HEARS) as backend:
        deltas, usage = await answer(backend, call)
        assert [d.segment.text for d in deltas] == ["word0 ", "word1 ", "word2 "]
        assert usage == Usage(PROMPT_TOKENS, 3, 3, audio_ms=usage.audio_ms)
        assert abs(usage.audio_ms - 2000) < 120
        silent = recording(sound("wav", 500))
        await upstream.plays("n=0")
        assert (await answer(backend, silent))[0] == []
        assert isinstance(await failure(backend, recording(response_format="srt")), Unsupported)
    await upstream.plays("")
    body = await sent(upstream, call)
    part = body["contents"][0]["parts"][0]["inlineData"]
    assert (part["mimeType"], base64.b64decode(part["data"])) == ("audio/mp3", MP3)
    instruction = body["systemInstruction"]["parts"][0]["text"]
    assert all(word in instruction for word in ("English", "french", "Kyiv"))
    assert body["generationConfig"] == {"temperature": 0.0, "thinkingConfig": {"thinkingBudget": 0}}


@pytest.mark.parametrize("format_", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_samples_become_the_file_that_was_asked_for(upstream: Upstream, format_: str) -> None:
    call = text("n=8", response_format=format_, voice="puck", instructions="Say cheerfully:")
    async with loaded(upstream, SPEAKS) as backend:
        assert backend.capabilities[0].voices[0].id == "Kore"
        deltas, usage = await answer(backend, call)
    whole = b"".join(d.data for d in deltas)
    if format_ == "pcm":
        assert whole == tone(8 * PIECE_MS)
    else:
        kinds = {"mp3": "mpeg", "opus": "ogg"}
        assert sniff(whole) == f"audio/{kinds.get(format_, format_)}"
    length = len(call.request.input)
    assert usage == Usage(PROMPT_TOKENS, MADE_TOKENS, characters=length, audio_ms=8 * PIECE_MS)
    body = await sent(upstream, call)
    assert body["contents"][0]["parts"][0]["text"].startswith("Say cheerfully:\nscript:")
    config = body["generationConfig"]
    assert config["responseModalities"] == ["AUDIO"]
    assert config["speechConfig"]["voiceConfig"]["prebuiltVoiceConfig"]["voiceName"] == "Puck"


async def test_speed_is_ours_and_an_unknown_voice_lists_the_known(upstream: Upstream) -> None:
    async with loaded(upstream, SPEAKS) as backend:
        _, usage = await answer(backend, text(response_format="pcm", speed=2.0))
        error = await failure(backend, text(voice="alloy"))
    assert abs(usage.audio_ms - 5 * PIECE_MS / 2) < 60
    assert isinstance(error, Invalid)
    assert "Sulafat" in error.message


async def test_pictures_are_painted_one_by_one(upstream: Upstream) -> None:
    source = Media("image", PNG, "image/png", "x.png")
    call = prompt(media=(source,), task="edit", n=2, size="1536x1024", output_format="jpeg")
    async with loaded(upstream, PAINTS) as backend:
        deltas, usage = await answer(backend, call)
        assert isinstance(await failure(backend, prompt(size="1792x1024")), Unsupported)
    assert [(d.index, d.width, d.height, sniff(d.data)) for d in deltas] == [
        (0, 64, 43, "image/jpeg"),
        (1, 64, 43, "image/jpeg"),
    ]
    assert usage == Usage(2 * PROMPT_TOKENS, 2 * MADE_TOKENS, images=2, pixels=2 * 64 * 43)
    body = await sent(upstream, call)
    assert base64.b64decode(body["contents"][0]["parts"][1]["inlineData"]["data"]) == PNG
    assert body["generationConfig"]["imageConfig"] == {"aspectRatio": "3:2"}


async def test_imagen_paints_them_at_once(upstream: Upstream) -> None:
    call = prompt(n=3, size="1024x1024")
    async with loaded(upstream, IMAGEN) as backend:
        deltas, usage = await answer(backend, call)
        filtered = await failure(backend, prompt("finish=content_filter"))
        assert isinstance(await failure(backend, prompt(n=5)), Unsupported)
    assert (len(deltas), usage) == (3, Usage(images=3, pixels=3 * 64 * 64))
    assert (await sent(upstream, call))["parameters"] == {"sampleCount": 3, "aspectRatio": "1:1"}
    assert isinstance(filtered, ContentFiltered)


FAILURES: list[tuple[str, type[InferHubError]]] = [
    ("mode=429", UpstreamRateLimited),
    ("mode=500", UpstreamFailed),
    ("mode=403,leak=1", UpstreamDenied),
    ("mode=html", UpstreamFailed),
    ("mode=empty", UpstreamFailed),
    ("mode=cut", UpstreamFailed),
    ("mode=garbage", UpstreamFailed),
    ("mode=error", UpstreamFailed),
    ("finish=blocked", ContentFiltered),
    ("finish=content_filter", ContentFiltered),
]


@pytest.mark.parametrize("name", [HEARS, SPEAKS, PAINTS])
@pytest.mark.parametrize(("script", "kind"), FAILURES, ids=[script for script, _ in FAILURES])
async def test_every_failure_is_told_as_what_it_is(
    upstream: Upstream, name: str, script: str, kind: type[InferHubError]
) -> None:
    calls = {HEARS: recording(), SPEAKS: text(), PAINTS: prompt()}
    call = calls[name]
    if name == HEARS:
        await upstream.plays(f"n=3,fail_at=1,{script}" if "mode=c" in script else script)
    else:
        call = text(script) if name == SPEAKS else prompt(script)
    async with loaded(upstream, name) as backend:
        error = await failure(backend, call)
    await upstream.plays("")
    assert type(error) is kind


async def test_words_instead_of_a_picture_are_a_failure(upstream: Upstream) -> None:
    async with loaded(upstream, PAINTS, answer_timeout_s=0.5) as backend:
        assert isinstance(await failure(backend, prompt("finish=words")), UpstreamFailed)
        call = prompt("hdr_ms=30000")
        assert isinstance(await failure(backend, call), EndpointStalled)
        await upstream.wait_for(call.key, lambda r: r.abort_s is not None)
