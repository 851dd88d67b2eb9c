"""Contract item 65, speech, over HTTP and with the official client; voices; `/v1/tts/synthesize`."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError

from inferhub.registry.integrity import State
from inferhub.registry.weights import Weights
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.talk import Talk

SPEECH = "/v1/audio/speech"
SYNTHESIZE = "/v1/tts/synthesize"
VOICES = "/v1/audio/voices"
TEXT = "The old clock stopped, and nobody knew why. Then it began again!"

SPEC = """\
models:
  - {name: minilm, backend: onnx_embedding, weights: minilm-l6-v2}
  - {name: hibari, backend: hibari}
  - {name: kokoro, backend: kokoro, weights: kokoro-82m}
routes:
  - {name: tts-1, model: hibari}
"""


@pytest.fixture(scope="module")
def speech_cache(cache_dir: Any) -> Any:
    if Weights(cache_dir).state("kokoro-82m") is not State.PRESENT:
        pytest.fail(f"kokoro-82m is not in {cache_dir}: run `inferhub models pull kokoro-82m`", pytrace=False)
    return cache_dir


@pytest.fixture(scope="module", params=SHAPES)
def speech_hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, speech_cache: Any
) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp(f"speech-{request.param}")
    with running_hub(request.param, folder, SPEC, {"cache_dir": speech_cache}) as running:
        yield running


@pytest.fixture
def ask(speech_hub: Hub) -> Talk:
    return Talk(speech_hub.url, speech_hub.admin_key)


@pytest.fixture
async def openai(speech_hub: Hub) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=speech_hub.api, api_key=speech_hub.admin_key, max_retries=0) as client:
        yield client


async def say(talk: Talk, path: str = SPEECH, **body: Any) -> Answer:
    text = {"text": TEXT} if path == SYNTHESIZE else {"input": TEXT}
    return await talk.post(path, {"model": "hibari", **text, **body}, **{"x-inferhub-cache": "off"})


FORMATS = [
    ("mp3", "audio/mpeg", b"\xff"),
    ("opus", "audio/ogg", b"OggS"),
    ("aac", "audio/aac", b"\xff"),
    ("flac", "audio/flac", b"fLaC"),
    ("wav", "audio/wav", b"RIFF"),
    ("pcm", "audio/pcm; rate=24000; channels=1", b""),
]


@pytest.mark.parametrize(("form", "media_type", "magic"), FORMATS)
async def test_contract_065_formats(ask: Talk, form: str, media_type: str, magic: bytes) -> None:
    answer = await say(ask, response_format=form)
    assert answer.status == 200, answer.body
    assert answer.head["content-type"] == media_type
    assert answer.body.startswith(magic)
    assert len(answer.body) > 8000
    assert answer.head["x-inferhub-model"] == "hibari"


async def test_contract_065_mp3_is_the_default(ask: Talk) -> None:
    answer = await ask.post(SPEECH, {"model": "tts-1", "voice": "alloy", "input": "Hello."})
    assert (answer.status, answer.head["content-type"]) == (200, "audio/mpeg")


@pytest.mark.parametrize(("form", "_", "magic"), FORMATS)
async def test_contract_065_the_official_client(openai: AsyncOpenAI, form: Any, _: str, magic: bytes) -> None:
    answer = await openai.audio.speech.create(model="tts-1", voice="nova", input=TEXT, response_format=form)
    assert answer.content.startswith(magic)
    async with openai.audio.speech.with_streaming_response.create(
        model="tts-1", voice="nova", input=TEXT + " Again.", response_format=form
    ) as response:
        assert "content-length" not in response.headers
        pieces = [piece async for piece in response.iter_bytes()]
    assert len(b"".join(pieces)) > len(answer.content)


async def test_contract_065_events(ask: Talk) -> None:
    body = {"model": "hibari", "input": TEXT, "response_format": "wav", "stream_format": "sse"}
    events = [json.loads(e.data) for e in await ask.stream_of(SPEECH, body) if e.data]
    assert {e["type"] for e in events[:-1]} == {"speech.audio.delta"}
    assert len(events) > 3
    whole = b"".join(base64.b64decode(e["audio"], validate=True) for e in events[:-1])
    assert whole.startswith(b"RIFF")
    done = events[-1]
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["characters"] == len(TEXT)
    assert done["usage"]["audio_ms"] == pytest.approx((len(whole) - 44) / 48, abs=2)


async def test_contract_065_the_first_byte_comes_before_the_whole_is_made(ask: Talk) -> None:
    """With Kokoro, which takes seconds for a paragraph; the call is hung up on after the first piece."""
    body = {
        "model": "kokoro",
        "input": "It was late, and the house was still. " * 60,
        "response_format": "pcm",
    }
    async with ask.opened(SPEECH, body) as call:
        head = await call.head(120)
        assert head.status == 200
        # Head and sound travel together: nothing is promised before there is some.
        assert head["transfer-encoding"] == "chunked"
    again = await say(ask, model="kokoro", input="Free again.", response_format="pcm")
    assert again.status == 200


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x" * 4097}, "input"),
        ({"input": ""}, "input"),
        ({"input": " \n"}, "input"),
        ({"input": "🎉"}, "input"),
        ({"input": 7}, "input"),
        ({"voice": "nobody"}, "voice"),
        ({"voice": {}}, "voice"),
        ({"speed": 0.2}, "speed"),
        ({"speed": 4.5}, "speed"),
        ({"response_format": "ogg"}, "response_format"),
        ({"stream_format": "x"}, "stream_format"),
        ({"language": "es"}, "language"),
        ({"voice": "heart+af_heart:2", "pitch": 40}, "pitch"),
        ({"emotion": "bored"}, "emotion"),
        ({"model": "minilm"}, "model"),
    ],
)
async def test_contract_065_what_cannot_be_spoken(ask: Talk, body: dict[str, Any], param: str) -> None:
    answer = await say(ask, **body)
    assert answer.status == 400, (answer.status, answer.body[:200])
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"


async def test_contract_065_an_unknown_voice_lists_those_there_are(openai: AsyncOpenAI) -> None:
    with pytest.raises(BadRequestError, match=r"af_heart.*bm_george.*alloy") as caught:
        await openai.audio.speech.create(model="kokoro", voice="nobody", input="Hello.")
    assert caught.value.param == "voice"


async def test_4096_characters_are_spoken(ask: Talk) -> None:
    answer = await say(ask, input=("word " * 820)[:4096], response_format="mp3")
    assert answer.status == 200


async def test_instructions_without_a_mood_are_reported_as_ignored(ask: Talk) -> None:
    ignored = await say(ask, instructions="Speak like a pirate.")
    assert ignored.head["x-inferhub-ignored-params"] == "instructions"
    followed = await say(ask, instructions="Speak in a sad tone.")
    assert followed.head["x-inferhub-ignored-params"] is None
    assert len(followed.body) > len(ignored.body)


# --- voices ------------------------------------------------------------------------------------


async def test_voices_are_known_without_loading_anybody(ask: Talk) -> None:
    answer = await ask.get(VOICES)
    assert answer.status == 200
    found = {(voice["model"], voice["id"]): voice for voice in answer.json["data"]}
    assert found["hibari", "heart"]["language"] == "en-US"
    assert found["kokoro", "bf_emma"] == {
        "object": "voice",
        "id": "bf_emma",
        "name": "bf_emma",
        "model": "kokoro",
        "language": "en-GB",
        "gender": "female",
        "aliases": ["sage"],
        "emotions": ["neutral", "happy", "sad", "angry", "calm", "whisper"],
        "can_be_blended": True,
    }
    assert len([key for key in found if key[0] == "kokoro"]) == 16
    spanish = (await ask.get(f"{VOICES}?language=es")).json["data"]
    assert {voice["id"] for voice in spanish} == {"ef_dora", "em_alex"}
    routed = (await ask.get(f"{VOICES}?model=tts-1")).json["data"]
    assert [voice["id"] for voice in routed] == ["heart"]
    assert (await ask.get(f"{VOICES}?model=nobody")).status == 404


# --- our own words -----------------------------------------------------------------------------


async def test_synthesize_takes_every_control(ask: Talk) -> None:
    answer = await say(
        ask,
        SYNTHESIZE,
        model="kokoro",
        text="Good morning.",
        voice={"af_heart": 0.7, "am_michael": 0.3},
        language="en",
        emotion="happy",
        speed=1.1,
        pitch=-1,
        gain_db=2,
        format="wav",
        sample_rate_hz=16_000,
    )
    assert answer.status == 200, answer.body
    assert answer.head["content-type"] == "audio/wav"
    assert int.from_bytes(answer.body[24:28], "little") == 16_000
    plain = await say(ask, SYNTHESIZE, text="Good morning.")
    assert plain.head["content-type"] == "audio/wav"
    assert plain.body.startswith(b"RIFF")


async def test_synthesize_as_events(ask: Talk) -> None:
    events = await ask.stream_of(SYNTHESIZE, {"text": "Good morning.", "model": "hibari", "events": True})
    assert json.loads(events[-1].data)["type"] == "speech.audio.done"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"text": "x" * 4097}, "text"),
        ({"text": " "}, "text"),
        ({"voice": "nobody"}, "voice"),
        ({"format": "x"}, "format"),
    ],
)
async def test_synthesize_names_its_own_parameters(ask: Talk, body: dict[str, Any], param: str) -> None:
    answer = await say(ask, SYNTHESIZE, **body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert "'input'" not in answer.error["message"]


async def test_without_a_model_the_first_that_can_do_it_speaks(ask: Talk) -> None:
    english = await ask.post(SPEECH, {"input": "Hello."})
    assert english.head["x-inferhub-model"] == "hibari"
    blended = await ask.post(SPEECH, {"input": "Hello.", "voice": "af_heart+am_puck"})
    assert blended.head["x-inferhub-model"] == "kokoro"
