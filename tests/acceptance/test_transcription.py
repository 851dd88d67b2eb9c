"""Speech to text through the door, in both shapes, as OpenAI's own client asks for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import BadRequestError, OpenAI

from inferhub.testing.servers import SHAPES, Hub, running_hub

DATA = Path(__file__).parents[1] / "data"
CITIES = DATA / "two_cities.wav"
DIALOGUE = DATA / "endgame_nagg_nell.wav"
SPEC = """\
models:
  - {name: tiny, backend: whisper, weights: whisper-tiny.en}
  - {name: base, backend: whisper, weights: whisper-base}
"""
TIME = r"\d\d:\d\d:\d\d"


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp(f"asr-{request.param}")
    with running_hub(request.param, folder, SPEC, {"cache_dir": cache_dir}) as running:
        yield running


@pytest.fixture(scope="module")
def client(hub: Hub) -> Iterator[OpenAI]:
    headers = {"x-inferhub-cache": "off"}
    with OpenAI(base_url=hub.api, api_key=hub.admin_key, default_headers=headers, max_retries=0) as made:
        yield made


def post(hub: Hub, path: str, file: Path | bytes, **fields: str) -> httpx.Response:
    data = file if isinstance(file, bytes) else file.read_bytes()
    return httpx.post(
        f"{hub.api}{path}",
        headers={"authorization": f"Bearer {hub.admin_key}", "x-inferhub-cache": "off"},
        data=fields,
        files={"file": ("sound", data)},
        timeout=120,
    )


def test_json_has_the_text_and_the_seconds(client: OpenAI) -> None:
    with CITIES.open("rb") as file:
        said = client.audio.transcriptions.create(model="tiny", file=file)
    assert said.text.startswith("It was the best of times")
    assert said.text.endswith("comparison only.")
    assert said.usage is not None
    assert said.usage.to_dict() == {"seconds": 45, "type": "duration"}


def test_text_is_bare_text(client: OpenAI) -> None:
    said = client.audio.transcriptions.create(model="tiny", file=DIALOGUE, response_format="text")
    assert isinstance(said, str)
    assert said.startswith("Do you hear me?")


@pytest.mark.parametrize(
    ("form", "head", "time"), [("srt", "1\n", TIME + ",\\d{3}"), ("vtt", "WEBVTT\n\n", TIME + "\\.\\d{3}")]
)
def test_subtitles(client: OpenAI, form: Any, head: str, time: str) -> None:
    said = client.audio.transcriptions.create(model="tiny", file=DIALOGUE, response_format=form)
    assert isinstance(said, str)
    assert re.match(f"{head}{time} --> {time}\nDo you hear me", said)
    assert "\n\n" in said.strip()


def test_words_without_segments_and_segments_without_words(client: OpenAI) -> None:
    words = client.audio.transcriptions.create(
        model="tiny", file=CITIES, response_format="verbose_json", timestamp_granularities=["word"]
    )
    assert words.segments is None
    assert words.words is not None
    assert words.language == "english"
    assert float(words.duration) == pytest.approx(44.374, abs=0.01)
    moments = [moment for word in words.words for moment in (word.start, word.end)]
    assert moments == sorted(moments)
    assert moments[-1] <= 44.374
    plain = client.audio.transcriptions.create(model="tiny", file=CITIES, response_format="verbose_json")
    assert plain.words is None
    assert plain.segments
    assert "".join(segment.text for segment in plain.segments).strip() == plain.text


def test_two_speakers_are_told_apart(client: OpenAI) -> None:
    said = client.audio.transcriptions.create(
        model="base", file=DIALOGUE, response_format="diarized_json", extra_body={"num_speakers": 2}
    )
    assert {segment.speaker for segment in said.segments} == {"A", "B"}
    turns = [(segment.speaker, segment.text) for segment in said.segments]
    assert turns[0] == ("A", "Do you hear me?")
    assert turns[1][0] == "B"


def test_a_stream_loses_no_text(client: OpenAI) -> None:
    events = list(client.audio.transcriptions.create(model="tiny", file=CITIES, stream=True))
    pieces = [event.delta for event in events if event.type == "transcript.text.delta"]
    done = events[-1]
    assert done.type == "transcript.text.done"
    assert len(pieces) > 3
    assert "".join(pieces) == done.text
    assert done.text.endswith("comparison only.")
    assert done.usage is not None
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0


def test_speakers_in_a_stream(client: OpenAI) -> None:
    events = list(
        client.audio.transcriptions.create(
            model="base",
            file=DIALOGUE,
            response_format="diarized_json",
            stream=True,
            chunking_strategy="auto",
        )
    )
    segments = [event for event in events if event.type == "transcript.text.segment"]
    assert {segment.speaker for segment in segments} >= {"A", "B"}
    assert [event.segment_id for event in events if event.type == "transcript.text.delta"] == [
        segment.id for segment in segments
    ]


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_translation(client: OpenAI) -> None:
    with DIALOGUE.open("rb") as file:
        said = client.audio.translations.create(model="base", file=file, response_format="verbose_json")
    assert said.language == "english"
    assert "do you hear me" in said.text.lower()


def test_our_own_address_tells_everything(hub: Hub) -> None:
    answer = post(hub, "/asr/transcribe", DIALOGUE, model="base", num_speakers="2")
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["object"], said["language"], said["model"], said["task"]) == (
        "transcription",
        "en",
        "base",
        "transcribe",
    )
    assert said["language_probability"] > 0.9
    assert [speaker["id"] for speaker in said["speakers"]] == ["A", "B"]
    assert all(segment["words"] for segment in said["segments"])
    assert said["usage"] == {"audio_seconds": pytest.approx(28.277)}


def test_our_own_address_streams(hub: Hub) -> None:
    answer = post(hub, "/asr/transcribe", DIALOGUE, model="tiny", words="false", stream="true")
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert [events[0]["type"], events[-1]["type"]] == ["transcription.started", "transcription.done"]
    found = [event["segment"] for event in events if event["type"] == "transcription.segment"]
    assert found == events[-1]["transcription"]["segments"]


def test_the_model_may_be_left_out(hub: Hub) -> None:
    answer = post(hub, "/audio/transcriptions", DIALOGUE)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-inferhub-model"] in ("tiny", "base")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"timestamp_granularities[]": "word"}, "timestamp_granularities"),
        ({"stream": "true", "response_format": "srt"}, "stream"),
        ({"language": "xx"}, "language"),
        ({"include[]": "logprobs"}, "include"),
        ({"num_speakers": "0"}, "num_speakers"),
        ({"response_format": "csv"}, "response_format"),
        ({"diarize": "false", "num_speakers": "2"}, "diarize"),
    ],
)
def test_what_cannot_be_is_refused(hub: Hub, fields: dict[str, str], param: str) -> None:
    answer = post(hub, "/audio/transcriptions", DIALOGUE, model="base", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_an_english_model_says_that_it_does_not_translate(client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused, DIALOGUE.open("rb") as file:
        client.audio.translations.create(model="tiny", file=file)
    assert refused.value.code == "unsupported_parameter"


def test_broken_sound_is_refused_and_the_next_one_is_heard(hub: Hub) -> None:
    whole = DIALOGUE.read_bytes()
    for broken in (
        b"RIFF\x00\x00\x00\x00WAVEfmt " + bytes(40),
        b"fLaC" + whole[:5000],
        b"OggS" + bytes(3000),
    ):
        answer = post(hub, "/audio/transcriptions", broken, model="tiny")
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_audio"), answer.text
    assert post(hub, "/audio/transcriptions", DIALOGUE, model="tiny").status_code == 200


def test_more_than_25_megabytes_are_refused(hub: Hub) -> None:
    answer = post(hub, "/audio/transcriptions", CITIES.read_bytes() + bytes(25 * 1024 * 1024), model="tiny")
    assert answer.status_code == 413
