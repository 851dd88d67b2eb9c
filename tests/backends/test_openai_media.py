"""Hearing, speaking and painting behind OpenAI's API, against the scripted upstream that really misbehaves."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends import backend_class
from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished, Media
from inferhub.core.errors import (
    BackendRefused,
    EndpointStalled,
    InferHubError,
    Invalid,
    Overloaded,
    Unsupported,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.media import sniff
from inferhub.testing.calls import make_call
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_sounds import PIECE_MS, picture, sound

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-canary-0123456789abcdef"
WAV = sound("wav", 1500)
PNG = picture(40, 30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running


@asynccontextmanager
async def loaded(upstream: Upstream, model: str, **options: Any) -> AsyncIterator[Backend]:
    given = {"base_url": upstream.url, "api_key": KEY, "vendor": "openai", "upstream_model": model, **options}
    backend = backend_class("openai_compatible")(ModelSpec("m", "openai_compatible", options=given), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


def recording(script: str = "n=4", data: bytes = WAV, name: str = "a b.bin", **params: Any) -> Call:
    media = (Media("file", data, sniff(data) or "", name),)
    return make_call("transcription", media=media, **{"prompt": f"script:{script}", **params})


def text(script: str = "n=4", **params: Any) -> Call:
    return make_call("speech", **{"input": f"script:{script}\nSay it.", **params})


def prompt(script: str = "n=1", media: tuple[Media, ...] = (), **params: Any) -> Call:
    return make_call("image", media=media, **{"prompt": f"script:{script}\nA circle.", **params})


def shown(data: bytes = PNG, field: str = "image") -> Media:
    return Media(field, data, sniff(data) or "", "../../x.png")


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


def said(deltas: list[Any]) -> str:
    return "".join(delta.segment.text for delta in deltas if delta.segment is not None).strip()


async def sent(upstream: Upstream, call: Call) -> dict[str, Any]:
    """What the upstream was sent, which must be what the vendor publishes."""
    record = (await upstream.records(call.key))[-1]
    assert record.violations == []
    body: dict[str, Any] = json.loads(record.body)
    return {**body, "_path": record.path}


# --- hearing ---------------------------------------------------------------------------------------


async def test_a_recording_goes_up_untouched_and_comes_back_with_times(upstream: Upstream) -> None:
    call = recording("n=4", temperature=0.25, language="en")
    async with loaded(upstream, "whisper-1") as backend:
        deltas, usage = await answer(backend, call)
    form = await sent(upstream, call)
    assert form["_path"] == "/v1/audio/transcriptions"
    assert form["file"]["sha256"] == hashlib.sha256(WAV).hexdigest()
    # Vendors go by the ending, so it says what the file is, whatever it was called.
    assert (form["file"]["name"], form["file"]["kind"]) == ("a_b.wav", "audio/wav")
    assert {"model": "whisper-1", "response_format": "verbose_json", "language": "en"}.items() <= form.items()
    assert form["temperature"] == "0.25"
    about, *rest = deltas
    assert (about.kind, about.language, about.duration_s) == ("about", "en", 1.5)
    assert [(d.segment.id, d.segment.start, d.segment.end) for d in rest] == [(0, 0.0, 0.75), (1, 0.75, 1.5)]
    assert said(deltas) == "word0 word1 word2 word3"
    # What the vendor bills: whole seconds.
    assert usage == Usage(audio_ms=2000)


async def test_words_find_their_segments(upstream: Upstream) -> None:
    call = recording("n=5", response_format="verbose_json", timestamp_granularities=["word"])
    async with loaded(upstream, "whisper-1") as backend:
        deltas, _ = await answer(backend, call)
    assert (await sent(upstream, call))["timestamp_granularities"] == ["segment", "word"]
    words = [[w.word for w in d.segment.words] for d in deltas if d.segment]
    assert words == [["word0", "word1"], ["word2", "word3", "word4"]]


async def test_translation_has_its_own_address(upstream: Upstream) -> None:
    call = recording("n=2", task="translate")
    async with loaded(upstream, "whisper-1") as backend:
        deltas, _ = await answer(backend, call)
    assert (await sent(upstream, call))["_path"] == "/v1/audio/translations"
    assert said(deltas) == "In English: word0 word1"


@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_without_times_answers_with_text_and_tokens(upstream: Upstream, stream: bool) -> None:
    call = recording("n=3", stream=stream)
    async with loaded(upstream, "gpt-4o-transcribe") as backend:
        deltas, usage = await answer(backend, call)
        refused = await failure(backend, recording("n=3", response_format="srt"))
    assert (await sent(upstream, call))["response_format"] == "json"
    assert said(deltas) == "word0 word1 word2"
    assert len([d for d in deltas if d.segment]) == (3 if stream else 1)
    assert usage == Usage(14, 101, audio_ms=1500)
    assert isinstance(refused, Unsupported)
    assert refused.param == "response_format"


@pytest.mark.parametrize("stream", [True, False])
async def test_speakers_are_told_apart(upstream: Upstream, stream: bool) -> None:
    call = recording("n=3", response_format="diarized_json", stream=stream)
    async with loaded(upstream, "gpt-4o-transcribe-diarize") as backend:
        deltas, _ = await answer(backend, call)
    form = await sent(upstream, call)
    assert (form["response_format"], form["chunking_strategy"]) == ("diarized_json", "auto")
    segments = [d.segment for d in deltas if d.segment]
    assert [s.speaker for s in segments] == ["A", "B", "A"]
    assert said(deltas) == "word0 word1 word2"


@pytest.mark.parametrize(("format_", "known"), [("mp3", True), ("flac", True), ("opus", True), ("aac", True)])
async def test_length_is_counted_where_only_tokens_are_told(
    upstream: Upstream, format_: str, known: bool
) -> None:
    data = sound(format_, 2000)
    async with loaded(upstream, "gpt-4o-transcribe", modalities=["transcription"]) as backend:
        if format_ == "aac":
            # OpenAI does not take it; the vendor's own words arrive.
            assert "Invalid file format" in (await failure(backend, recording(data=data))).message
            return
        _, usage = await answer(backend, recording(data=data))
    assert abs(usage.audio_ms - 2000) < 120
    assert usage.source == "reported"


async def test_bytes_and_large_files_arrive_as_they_are(upstream: Upstream) -> None:
    """Larger than what fits into one piece of the network, with every byte in it."""
    data = WAV + bytes(range(256)) * 12_000
    async with loaded(upstream, "whisper-1") as backend:
        deltas, _ = await answer(backend, recording("echo=1", data=data))
    assert said(deltas) == hashlib.sha256(data).hexdigest()


async def test_names_cannot_break_the_form(upstream: Upstream) -> None:
    evil = 'x"; filename="y\r\ncontent-type: text/html\r\n\r\n<b>\r\n--'
    call = make_call(
        "transcription",
        media=(Media("file", WAV, "audio/wav", evil),),
        prompt="script:n=1\n" + evil,
        **{'a"\r\nx': "unknown", "languages": ["en", "de"]},
    )
    async with loaded(upstream, "whisper-1") as backend:
        deltas, _ = await answer(backend, call)
    record = (await upstream.records(call.key))[-1]
    form = json.loads(record.body)
    assert said(deltas) == "word0"
    assert form["file"]["name"].endswith(".wav")
    assert set(form["file"]["name"]) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-.")
    assert form["prompt"] == "script:n=1\n" + evil
    assert form["a%22%0D%0Ax"] == "unknown"
    assert form["languages"] == ["en", "de"]


# --- speaking --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["tts-1", "gpt-4o-mini-tts"])
@pytest.mark.parametrize("format_", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
async def test_sound_passes_through_in_every_format(upstream: Upstream, model: str, format_: str) -> None:
    call = text("n=6", response_format=format_, voice="coral", instructions="Softly.")
    async with loaded(upstream, model) as backend:
        deltas, usage = await answer(backend, call)
    whole, expected = b"".join(d.data for d in deltas), sound(format_, 6 * PIECE_MS)
    # A file of Ogg has a random serial number.
    assert len(whole) == len(expected) if format_ == "opus" else whole == expected
    asked = await sent(upstream, call)
    assert (asked["voice"], asked["response_format"]) == ("coral", format_)
    is_gpt = model.startswith("gpt")
    assert ("instructions" in asked) == is_gpt == (asked.get("stream_format") == "sse")
    assert usage.characters == len(call.request.input)
    assert (usage.input_tokens, usage.output_tokens) == ((14, 101) if is_gpt else (0, 0))
    assert abs(usage.audio_ms - 6 * PIECE_MS) < 120


@pytest.mark.parametrize("model", ["tts-1", "gpt-4o-mini-tts"])
async def test_first_sound_leaves_before_the_last_is_there(upstream: Upstream, model: str) -> None:
    async with loaded(upstream, model) as backend:
        call = text("n=40,mode=hang,fail_at=20")
        async with asyncio.timeout(30), aclosing(backend.run(call)) as chunks:  # type: ignore[type-var]
            first = await anext(chunks)
            assert isinstance(first, Delta)
            assert sniff(first.payload.data) == "audio/mpeg"
        record = await upstream.wait_for(call.key, lambda r: r.abort_s is not None)
    assert record.done_s is None


async def test_a_voice_is_chosen_where_none_is_named_and_an_unknown_one_is_refused(
    upstream: Upstream,
) -> None:
    call = text()
    async with loaded(upstream, "tts-1") as backend:
        assert [v.id for v in backend.capabilities[0].voices][:2] == ["alloy", "ash"]
        await answer(backend, call)
        assert (await sent(upstream, call))["voice"] == "alloy"
        refused = await failure(backend, text(voice="nobody"))
        custom = text(voice={"id": "voice_1"})
        await answer(backend, custom)
    assert (await upstream.records(custom.key))[-1].violations == []
    assert isinstance(refused, BackendRefused)
    assert (refused.http, refused.param) == (400, "voice")
    assert "shimmer" in refused.message
    async with loaded(upstream, "my-tts", vendor=None) as backend:
        assert isinstance(await failure(backend, text()), Invalid)
    async with loaded(upstream, "my-tts", vendor=None, voices=["echo"]) as backend:
        await answer(backend, text())


async def test_groq_speaks_wav_only_and_the_rest_is_made_of_it(upstream: Upstream) -> None:
    call = text("n=5", response_format="opus")
    async with loaded(upstream, "canopylabs/orpheus-v1-english", vendor="groq") as backend:
        deltas, usage = await answer(backend, call)
    assert json.loads((await upstream.records(call.key))[-1].body)["response_format"] == "wav"
    assert sniff(b"".join(d.data for d in deltas)) == "audio/ogg"
    assert sum(d.audio_ms for d in deltas) == usage.audio_ms == 5 * PIECE_MS


# --- painting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-image-1", "dall-e-2", "dall-e-3"])
async def test_each_family_is_asked_as_it_wants(upstream: Upstream, model: str) -> None:
    count = 1 if model == "dall-e-3" else 2
    call = prompt(n=count, size="1024x512", response_format="b64_json", background="auto", moderation="low")
    async with loaded(upstream, model) as backend:
        deltas, usage = await answer(backend, call)
    asked = json.loads((await upstream.records(call.key))[-1].body)
    assert asked.get("response_format") == (None if model == "gpt-image-1" else "b64_json")
    assert ("moderation" in asked) == (model == "gpt-image-1")
    assert [(d.kind, d.index, d.width, d.height) for d in deltas] == [
        ("image", i, 64, 32) for i in range(count)
    ]
    assert all(sniff(d.data) == "image/png" for d in deltas)
    assert (usage.images, usage.pixels) == (count, count * 64 * 32)
    assert usage.output_tokens == (101 if model == "gpt-image-1" else 0)
    assert deltas[0].revised_prompt == ("A better prompt." if model == "dall-e-3" else None)


async def test_previews_come_before_the_picture(upstream: Upstream) -> None:
    call = prompt(stream=True, partial_images=2, output_format="webp")
    async with loaded(upstream, "gpt-image-1") as backend:
        deltas, usage = await answer(backend, call)
    asked = await sent(upstream, call)
    assert (asked["stream"], asked["partial_images"], asked["output_format"]) == (True, 2, "webp")
    assert [(d.kind, d.index) for d in deltas] == [("partial", 0), ("partial", 1), ("image", 0)]
    # The upstream sent PNGs all the same.
    assert {sniff(d.data) for d in deltas} == {"image/webp"}
    assert (usage.images, usage.pixels) == (1, deltas[-1].width * deltas[-1].height)


@pytest.mark.parametrize("many", [False, True])
async def test_edits_send_pictures_and_mask(upstream: Upstream, many: bool) -> None:
    pictures = (shown(), *([shown(picture(8, 8))] if many else []), shown(picture(40, 30, 9), "mask"))
    call = prompt(media=pictures, task="edit", seed=None)
    async with loaded(upstream, "gpt-image-1") as backend:
        deltas, _ = await answer(backend, call)
    form = await sent(upstream, call)
    assert form["_path"] == "/v1/images/edits"
    images = form["image"] if many else [form["image"]]
    assert images[0]["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert (images[0]["name"], form["mask"]["kind"]) == ("x.png", "image/png")
    assert [d.kind for d in deltas] == ["image"]


async def test_variations_need_no_prompt(upstream: Upstream) -> None:
    call = make_call("image", media=(shown(),), prompt="", task="variation", n=2, user="script:n=1")
    async with loaded(upstream, "dall-e-2") as backend:
        deltas, _ = await answer(backend, call)
    form = await sent(upstream, call)
    assert form["_path"] == "/v1/images/variations"
    assert "prompt" not in form
    assert len(deltas) == 2


async def test_a_picture_by_address_is_fetched_and_one_inside_the_network_is_not(upstream: Upstream) -> None:
    async with loaded(upstream, "dall-e-2") as backend:
        deltas, _ = await answer(backend, prompt("mode=by_url"))
        error = await failure(backend, prompt("mode=inside_url"))
    assert (sniff(deltas[0].data), deltas[0].url) == ("image/png", "")
    assert isinstance(error, UpstreamFailed)
    assert "169.254" not in error.message


async def test_together_is_told_width_height_and_its_own_names(upstream: Upstream) -> None:
    call = prompt(size="512x256", seed=7, guidance=3.5, steps=4)
    async with loaded(upstream, "black-forest-labs/FLUX.1-schnell", vendor="together") as backend:
        deltas, _ = await answer(backend, call)
    asked = json.loads((await upstream.records(call.key))[-1].body)
    expected = {"width": 512, "height": 256, "seed": 7, "guidance_scale": 3.5, "response_format": "base64"}
    assert expected.items() <= asked.items()
    assert "size" not in asked
    assert (deltas[0].width, deltas[0].height) == (32, 16)
    async with loaded(upstream, "grok-2-image", vendor="xai") as backend:
        refused = await failure(backend, prompt(size="512x256"))
        assert isinstance(refused, Unsupported)
        await answer(backend, prompt(size="auto"))


# --- failures --------------------------------------------------------------------------------------


MODELS = ["whisper-1", "gpt-4o-transcribe", "tts-1", "gpt-4o-mini-tts", "dall-e-2", "gpt-image-1"]
EXPECTED: list[tuple[str, type[InferHubError]]] = [
    ("mode=429,retry_after_s=7", UpstreamRateLimited),
    ("mode=500", UpstreamFailed),
    ("mode=503", Overloaded),
    ("mode=401,leak=1", UpstreamDenied),
    ("mode=400,leak=1", BackendRefused),
    ("mode=html", UpstreamFailed),
    ("mode=empty", UpstreamFailed),
    ("mode=drop", UpstreamFailed),
    ("mode=cut,fail_at=1", UpstreamFailed),
    ("mode=rst,fail_at=1", UpstreamFailed),
]


def asked_of(model: str, script: str) -> Call:
    if "tts" in model:
        return text(script)
    is_stream = model.startswith("gpt")
    if "image" in model or "dall" in model:
        return prompt(script, stream=is_stream, **({"partial_images": 3} if is_stream else {}))
    return recording(script, stream=is_stream)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("script", "kind"), EXPECTED, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_every_failure_is_told_as_what_it_is(
    upstream: Upstream, model: str, script: str, kind: type[InferHubError]
) -> None:
    async with loaded(upstream, model) as backend:
        error = await failure(backend, asked_of(model, script))
    assert type(error) is kind
    assert error.retry_after_s == (7.0 if "429" in script else None)


@pytest.mark.parametrize("model", ["gpt-4o-transcribe", "gpt-4o-mini-tts", "gpt-image-1"])
@pytest.mark.parametrize("mode", ["error", "garbage", "noterm", "half_json", "bad_chunk"])
async def test_a_stream_that_breaks_is_never_a_clean_end(upstream: Upstream, model: str, mode: str) -> None:
    async with loaded(upstream, model) as backend:
        error = await failure(backend, asked_of(model, f"n=4,mode={mode},fail_at=2"))
    assert isinstance(error, UpstreamFailed)


@pytest.mark.parametrize("model", ["whisper-1", "dall-e-2"])
@pytest.mark.parametrize("mode", ["garbage", "half_json", "error"])
async def test_a_whole_answer_that_is_none_is_a_failure(upstream: Upstream, model: str, mode: str) -> None:
    async with loaded(upstream, model) as backend:
        assert isinstance(await failure(backend, asked_of(model, f"mode={mode}")), UpstreamFailed)


@pytest.mark.parametrize("model", MODELS)
async def test_silence_ends_at_the_limit_and_the_upstream_is_let_go(upstream: Upstream, model: str) -> None:
    async with loaded(upstream, model, headers_timeout_s=0.3, answer_timeout_s=0.3) as backend:
        call = asked_of(model, "hdr_ms=30000")
        assert isinstance(await failure(backend, call), EndpointStalled)
        await upstream.wait_for(call.key, lambda r: r.abort_s is not None)


async def test_fewer_pictures_than_asked_for_are_still_pictures_and_none_is_a_failure(
    upstream: Upstream,
) -> None:
    async with loaded(upstream, "dall-e-2") as backend:
        deltas, usage = await answer(backend, prompt("mode=short", n=3))
        assert (len(deltas), usage.images) == (2, 2)
        assert isinstance(await failure(backend, prompt("mode=short")), UpstreamFailed)


async def test_another_key_takes_the_whole_form_again(upstream: Upstream) -> None:
    call = recording("n=2,mode=429,times=1")
    async with loaded(
        upstream, "whisper-1", api_key=None, api_keys=["sk-first-000000", "sk-second-00000"]
    ) as hub:
        deltas, _ = await answer(hub, call)
    records = await upstream.records(call.key)
    assert said(deltas) == "word0 word1"
    assert [r.headers["authorization"][-5:] for r in records] == ["00000", "00000"]
    assert len({r.id for r in records}) == 1
    assert {json.loads(r.body)["file"]["sha256"] for r in records} == {hashlib.sha256(WAV).hexdigest()}
    boundaries = {r.headers["content-type"] for r in records}
    assert len(boundaries) == 1
