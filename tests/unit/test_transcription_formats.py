"""Transcripts in every format, to the letter; and what a request for one may and may not ask."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inferhub.core.call import Media
from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.gateway.dialects.asr_transcribe import DIALECT as ASR
from inferhub.gateway.dialects.openai_translations import DIALECT as TRANSLATIONS
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.transcription import MODALITY, Segment, TranscriptDelta, TranscriptionRequest, Word
from inferhub.modalities.transcription.languages import NAMES, code_of

ENVELOPE = Envelope("transcription-1", 1_700_000_000, "whisper-1")
USAGE = Usage(audio_ms=3_661_500)
SEGMENTS = (
    Segment(
        0,
        0.0,
        1.5,
        " Do you hear me?",
        "A",
        [Word(" Do", 0.0, 0.4, 0.9), Word(" you?", 0.4, 1.5, 0.8)],
        0,
        [1, 2],
    ),
    Segment(1, 3661.0, 3661.5, " Yes & <no>.", "B", [Word(" Yes", 3661.0, 3661.5, 0.7)], 300_000, [3]),
)
DELTAS = (
    TranscriptDelta("about", language="en", language_probability=0.98, duration_s=3661.5),
    *(TranscriptDelta("segment", segment=segment, duration_s=3661.5) for segment in SEGMENTS),
)


def folded(form: str, deltas: tuple[TranscriptDelta, ...] = DELTAS, **asked: Any) -> str:
    request = msgspec.convert({"response_format": form, **asked}, TranscriptionRequest)
    MODALITY.check(request)
    return MODALITY.fold(request, ENVELOPE, deltas, USAGE).decode()


def without_speakers() -> tuple[TranscriptDelta, ...]:
    plain = [msgspec.structs.replace(segment, speaker=None, words=None) for segment in SEGMENTS]
    return (DELTAS[0], *(TranscriptDelta("segment", segment=one, duration_s=3661.5) for one in plain))


def test_json() -> None:
    assert json.loads(folded("json")) == {
        "text": "Do you hear me? Yes & <no>.",
        "usage": {"type": "duration", "seconds": 3662},
    }


def test_json_of_a_model_that_is_billed_by_tokens() -> None:
    said = MODALITY.fold(TranscriptionRequest(), ENVELOPE, DELTAS, Usage(14, 31, audio_ms=1400))
    assert json.loads(said)["usage"] == {
        "type": "tokens",
        "input_tokens": 14,
        "input_token_details": {"audio_tokens": 14, "text_tokens": 0},
        "output_tokens": 31,
        "total_tokens": 45,
    }


def test_text() -> None:
    assert folded("text") == "Do you hear me? Yes & <no>.\n"


def test_srt() -> None:
    assert folded("srt", without_speakers()) == (
        "1\n00:00:00,000 --> 00:00:01,500\nDo you hear me?\n\n2\n01:01:01,000 --> 01:01:01,500\nYes & <no>.\n"
    )


def test_vtt() -> None:
    assert folded("vtt", without_speakers()) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nDo you hear me?\n\n"
        "01:01:01.000 --> 01:01:01.500\nYes &amp; &lt;no&gt;.\n"
    )


def test_subtitles_name_the_speaker() -> None:
    assert "\nA: Do you hear me?\n" in folded("srt", diarize=True)
    assert "\n<v B>Yes" in folded("vtt", diarize=True)


def test_a_cue_cannot_be_broken_by_its_text() -> None:
    bad = Segment(0, 0.0, 1.0, " one\n\n2\n00:00:09,000 --> 00:00:10,000\ntwo")
    said = folded("srt", (TranscriptDelta("segment", segment=bad),))
    assert said == "1\n00:00:00,000 --> 00:00:01,000\none 2 00:00:09,000 -> 00:00:10,000 two\n"


def test_verbose_json() -> None:
    said = json.loads(folded("verbose_json"))
    assert (said["task"], said["language"], said["duration"]) == ("transcribe", "english", 3661.5)
    assert said["words"] is None
    assert said["segments"][1] == {
        "id": 1,
        "seek": 300_000,
        "start": 3661.0,
        "end": 3661.5,
        "text": " Yes & <no>.",
        "tokens": [3],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }


@pytest.mark.parametrize(
    ("granularities", "has_segments", "has_words"),
    [
        (["word"], False, True),
        (["segment"], True, False),
        (["word", "segment"], True, True),
        ([], True, False),
    ],
)
def test_granularities(granularities: list[str], has_segments: bool, has_words: bool) -> None:
    said = json.loads(folded("verbose_json", timestamp_granularities=granularities))
    assert (said["segments"] is not None, said["words"] is not None) == (has_segments, has_words)
    if has_words:
        assert said["words"][0] == {"word": "Do", "start": 0.0, "end": 0.4}


def test_diarized_json() -> None:
    said = json.loads(folded("diarized_json"))
    assert said["segments"][1] == {
        "type": "transcript.text.segment",
        "id": "seg_001",
        "start": 3661.0,
        "end": 3661.5,
        "text": "Yes & <no>.",
        "speaker": "B",
    }
    assert said["usage"] == {"type": "duration", "seconds": 3662}


@pytest.mark.parametrize("form", ["json", "text", "srt", "vtt", "verbose_json", "diarized_json"])
def test_silence_has_a_form_in_every_format(form: str) -> None:
    said = folded(form, (TranscriptDelta("about", duration_s=2.0),))
    assert said.strip() in ("", "WEBVTT") or json.loads(said)["text"] == ""


@pytest.mark.parametrize(
    ("form", "kind"),
    [("json", "application/json"), ("text", "text/plain"), ("srt", "text/plain"), ("vtt", "text/plain")],
)
def test_content_type(form: Any, kind: str) -> None:
    assert MODALITY.media_type is not None
    request = TranscriptionRequest(response_format=form)
    assert MODALITY.media_type(request, False).startswith(kind)
    assert MODALITY.media_type(request, True).startswith("text/event-stream")


def events(raw: bytes) -> list[Any]:
    return [json.loads(block.removeprefix("data: ")) for block in raw.decode().split("\n\n") if block]


def test_a_stream_adds_up_to_its_end() -> None:
    assert MODALITY.writer is not None
    writer = MODALITY.writer(TranscriptionRequest(stream=True), ENVELOPE)
    pieces = [" Do you ", "hear me?\n", " Yes."]
    raw = writer.delta(DELTAS[0])
    for number, text in enumerate(pieces):
        raw += writer.delta(TranscriptDelta("segment", segment=Segment(number, 0, 1, text, tokens=[1, 2])))
    raw += writer.end(Usage(audio_ms=2000))
    found = events(raw)
    assert [event["type"] for event in found] == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
    assert [event["delta"] for event in found[:3]] == ["Do you", " hear me?", "\n Yes."]
    assert found[3]["text"] == "".join(pieces).strip()
    assert found[3]["usage"] == {
        "type": "tokens",
        "input_tokens": 100,
        "input_token_details": {"audio_tokens": 100, "text_tokens": 0},
        "output_tokens": 6,
        "total_tokens": 106,
    }


def test_a_stream_with_speakers() -> None:
    assert MODALITY.writer is not None
    writer = MODALITY.writer(TranscriptionRequest(stream=True, response_format="diarized_json"), ENVELOPE)
    found = events(b"".join(writer.delta(delta) for delta in DELTAS))
    assert found[0] == {"type": "transcript.text.delta", "delta": "Do you hear me?", "segment_id": "seg_000"}
    assert found[1]["type"] == "transcript.text.segment"
    assert found[3]["speaker"] == "B"


def test_a_stream_that_breaks() -> None:
    assert MODALITY.writer is not None
    writer = MODALITY.writer(TranscriptionRequest(stream=True), ENVELOPE)
    said = writer.fail(Problem("It broke.", "server_error", None, "internal_error"))
    assert said is not None
    assert events(said)[0]["error"]["code"] == "internal_error"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"timestamp_granularities": ["segment"], "response_format": "json"}, "timestamp_granularities"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"stream": True, "response_format": "vtt"}, "stream"),
        ({"diarize": False, "num_speakers": 2}, "diarize"),
        ({"diarize": False, "response_format": "diarized_json"}, "diarize"),
    ],
)
def test_what_contradicts_itself_is_refused(asked: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as refused:
        MODALITY.check(msgspec.convert(asked, TranscriptionRequest))
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("asked", "needs"),
    [
        ({}, {}),
        ({"task": "translate"}, {"translate": "task"}),
        ({"response_format": "diarized_json"}, {"diarize": "response_format"}),
        ({"num_speakers": 2}, {"diarize": "num_speakers"}),
        ({"diarize": True, "num_speakers": 2}, {"diarize": "diarize"}),
        ({"include": ["logprobs"]}, {"logprobs": "include"}),
        ({"stream": True}, {"stream": "stream"}),
    ],
)
def test_what_a_request_needs(asked: dict[str, Any], needs: dict[str, str]) -> None:
    assert MODALITY.requires(msgspec.convert(asked, TranscriptionRequest)) == needs


def test_more_is_reserved_for_a_longer_recording_and_never_nothing() -> None:
    assert MODALITY.estimate_media is not None
    short, long = (MODALITY.estimate_media([Media("file", bytes(size))]).audio_ms for size in (10, 100_000))
    assert 0 < short < long


@pytest.mark.parametrize("hint", ["en", "EN", "en-GB", "en_US", "English", " english "])
def test_a_language_is_known_by_several_names(hint: str) -> None:
    assert code_of(hint, NAMES) == "en"


def test_an_unknown_language_is_answered_with_those_that_are_known() -> None:
    with pytest.raises(Invalid, match="It knows: de, en") as refused:
        code_of("klingon", ["en", "de"])
    assert (refused.value.param, refused.value.wire_code) == ("language", "unsupported_language")


def test_translations_are_transcriptions_with_another_task() -> None:
    assert TRANSLATIONS.translate is not None
    asked = msgspec.convert({"model": "m", "response_format": "verbose_json"}, TRANSLATIONS.request)
    translated = TRANSLATIONS.translate(asked, b"")
    assert translated.request.task == "translate"
    assert json.loads(translated.body)["task"] == "translate"
    french = (TranscriptDelta("about", language="fr", duration_s=1.0),)
    assert json.loads(TRANSLATIONS.fold(asked, ENVELOPE, french, USAGE))["language"] == "english"


def test_our_own_answer_counts_the_speakers() -> None:
    asked = msgspec.convert({"diarize": True}, ASR.request)
    said = json.loads(ASR.fold(asked, ENVELOPE, DELTAS, USAGE))
    assert said["speakers"] == [
        {"id": "A", "seconds": 1.5, "segments": 1},
        {"id": "B", "seconds": 0.5, "segments": 1},
    ]
    assert (said["language"], said["language_probability"]) == ("en", 0.98)
    assert said["segments"][0]["words"][0] == {"word": "Do", "start": 0.0, "end": 0.4, "probability": 0.9}
    assert json.loads(ASR.fold(msgspec.convert({}, ASR.request), ENVELOPE, DELTAS, USAGE))["speakers"] is None
