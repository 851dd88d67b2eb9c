"""OpenAI's addresses that hear, speak and paint, which Groq, Together and others share.

Read by the scripted upstream. What a model does not take is refused in the vendor's own way: formats of
transcripts, unknown voices, `response_format` for models that always enclose their pictures.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from inferhub.testing.upstream_dialects.base import BadRequest, Event, Kind, Request, UpstreamDialect
from inferhub.testing.upstream_forms import FORM, BadForm, read_form, typed
from inferhub.testing.upstream_script import CREATED, Script, pieces
from inferhub.testing.upstream_sounds import PIECE_MS, length_s, picture, sound

HOME = "http://upstream.invalid"
"""Stands for this upstream's own address in an answer; the player puts the real one there."""
VOICES = (
    "alloy",
    "ash",
    "ballad",
    "coral",
    "echo",
    "fable",
    "nova",
    "onyx",
    "sage",
    "shimmer",
    "verse",
    "autumn",
)
INPUT_TOKENS, OUTPUT_TOKENS = 14, 101

_SCHEMAS = {
    "audio/transcriptions": "CreateTranscriptionRequest",
    "audio/translations": "CreateTranslationRequest",
    "audio/speech": "CreateSpeechRequest",
    "images/generations": "CreateImageRequest",
    "images/edits": "CreateImageEditRequest",
    "images/variations": "CreateImageVariationRequest",
}
_PATH = re.compile(rf"(?:/openai|/api)?(?:/v\d|/deployments/[^/]+)?/({'|'.join(_SCHEMAS)})")
_ENDINGS = ("flac", "mp3", "mp4", "mpeg", "mpga", "m4a", "ogg", "wav", "webm")
_KINDS = {
    "mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav",
    "pcm": "audio/pcm",
}  # fmt: skip
_encode = msgspec.json.encode
_Json = dict[str, Any]


@lru_cache(maxsize=256)
def _address(path: str) -> str:
    found = _PATH.fullmatch(path)
    return found[1] if found else ""


def _answers(path: str) -> bool:
    return bool(_address(path))


def _streams(request: Request, path: str) -> bool:
    if _address(path) == "audio/speech":
        return True
    model = str(request.get("model"))
    asked = request.get("stream") in (True, "true")
    return asked and "whisper" not in model and not model.startswith("dall-e")


def _sends_bytes(request: Request, path: str) -> bool:
    return _address(path) == "audio/speech" and request.get("stream_format") != "sse"


def _content_type(request: Request, path: str) -> str:
    if _sends_bytes(request, path):
        return _KINDS.get(str(request.get("response_format", "mp3")), "application/octet-stream")
    return "text/event-stream; charset=utf-8" if _streams(request, path) else "application/json"


def _answer(script: Script, request: Request, path: str) -> bytes:
    address = _address(path)
    if address.startswith("images/"):
        return _images(script, request, address)
    if address == "audio/speech":
        return _spoken(script, request)
    return _transcript(script, request, address)


def _events(script: Script, request: Request, path: str) -> Iterator[Event]:
    """What is refused is refused at once: before the head of a stream."""
    address = _address(path)
    if address.startswith("images/"):
        _check_image(request, address)
        return _image_events(request, address)
    if address == "audio/speech":
        return _speech_events(_spoken(script, request), script, request)
    return _transcript_events(_heard(script, request, address), script, request)


# --- hearing -------------------------------------------------------------------------------------


def _file(request: Request, name: str, endings: tuple[str, ...]) -> Mapping[str, Any]:
    given = request.get(name)
    file = given[0] if isinstance(given, list) else given
    if not isinstance(file, dict):
        raise BadRequest(f"{name!r} is a required property")
    if file["name"].rpartition(".")[2] not in endings:
        raise BadRequest(f"Invalid file format. Supported formats: {list(endings)}")
    return file


def _heard(script: Script, request: Request, address: str) -> tuple[str, float]:
    """(text, seconds). With `echo` the text is the hash of the file, so that nothing may change it."""
    file = _file(request, "file", _ENDINGS)
    text = file["sha256"] if script.echo else "".join(pieces(script, "")).strip()
    if address == "audio/translations":
        text = f"In English: {text}"
    return text, length_s(file["data"])


def _transcript(script: Script, request: Request, address: str) -> bytes:
    model, format_ = str(request.get("model")), request.get("response_format", "json")
    text, seconds = _heard(script, request, address)
    is_gpt = model.startswith("gpt-")
    allowed = {"json", "text", "diarized_json"} if "diarize" in model else {"json"}
    if is_gpt and format_ not in allowed:
        raise BadRequest(f"response_format '{format_}' is not compatible with model '{model}'.")
    usage: _Json = {"type": "duration", "seconds": math.ceil(seconds)}
    if is_gpt:
        usage = _tokens(type="tokens", input_token_details={"text_tokens": 0, "audio_tokens": INPUT_TOKENS})
    answer: _Json = {"text": text}
    if format_ == "diarized_json":
        answer = {
            "task": "transcribe",
            "duration": seconds,
            "text": text,
            "segments": _turns(script, seconds),
        }
    elif format_ == "verbose_json":
        answer = _verbose(text, seconds, request)
    elif format_ != "json":
        raise BadRequest(f"This script does not write {format_!r}.")
    return _encode(answer if script.mode == "usage_missing" else {**answer, "usage": usage})


def _verbose(text: str, seconds: float, request: Request) -> _Json:
    granularities = request.get("timestamp_granularities") or ["segment"]
    words = text.split()
    half = len(words) // 2 or 1
    step = seconds / max(len(words), 1)
    halves = [(words[:half], 0), (words[half:], half)]
    found: _Json = {"task": "transcribe", "language": "english", "duration": seconds, "text": text}
    if "segment" in granularities:
        found["segments"] = [
            {
                "id": place,
                "seek": 0,
                "start": first * step,
                "end": (first + len(said)) * step,
                "text": " " + " ".join(said),
                "tokens": [50364, 1000 + place],
                "temperature": 0.0,
                "avg_logprob": -0.25,
                "compression_ratio": 1.5,
                "no_speech_prob": 0.01,
            }
            for place, (said, first) in enumerate(halves)
            if said
        ]
    if "word" in granularities:
        found["words"] = [
            {"word": word, "start": place * step, "end": (place + 1) * step}
            for place, word in enumerate(words)
        ]
    return found


def _turns(script: Script, seconds: float) -> list[_Json]:
    """Two speakers in turn."""
    said = pieces(script, "")
    step = seconds / max(len(said), 1)
    return [
        {
            "type": "transcript.text.segment",
            "id": f"seg_{place}",
            "start": place * step,
            "end": (place + 1) * step,
            "text": text.strip(),
            "speaker": "AB"[place % 2],
        }
        for place, text in enumerate(said)
    ]


def _transcript_events(heard: tuple[str, float], script: Script, request: Request) -> Iterator[Event]:
    text, seconds = heard
    said = [text] if script.echo else pieces(script, "")
    turns = _turns(script, seconds) if request.get("response_format") == "diarized_json" else []
    for place, piece in enumerate(said):
        yield _event({"type": "transcript.text.delta", "delta": piece})
        if turns:
            yield _event(turns[place])
    done: _Json = {"type": "transcript.text.done", "text": text}
    if script.mode != "usage_missing":
        done["usage"] = _tokens(type="tokens")
    yield _event(done, Kind.TERMINAL)


def _tokens(**more: Any) -> _Json:
    counts = {"input_tokens": INPUT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    return {**counts, "total_tokens": INPUT_TOKENS + OUTPUT_TOKENS, **more}


# --- speaking ------------------------------------------------------------------------------------


def _spoken(script: Script, request: Request) -> bytes:
    voice = request.get("voice")
    if voice not in VOICES and not isinstance(voice, dict):
        # How OpenAI says it, without naming a parameter.
        raise BadRequest(f"[{{'loc': ('body', 'voice'), 'msg': \"Input should be {', '.join(VOICES)}\"}}]")
    return sound(str(request.get("response_format", "mp3")), script.n * PIECE_MS)


def _speech_events(whole: bytes, script: Script, request: Request) -> Iterator[Event]:
    size = max(len(whole) // max(script.n, 1), 1)
    for start in range(0, len(whole), size):
        piece = whole[start : start + size]
        if request.get("stream_format") == "sse":
            yield _event({"type": "speech.audio.delta", "audio": base64.b64encode(piece).decode()})
        else:
            yield Event(piece)
    if request.get("stream_format") == "sse":
        yield _event({"type": "speech.audio.done", "usage": _tokens()}, Kind.TERMINAL)


# --- painting ------------------------------------------------------------------------------------


def _side(request: Request) -> tuple[int, int]:
    size = str(request.get("size") or "1024x1024")
    if "width" in request:
        size = f"{request['width']}x{request['height']}"
    width, _, height = ("1024x1024" if size == "auto" else size).partition("x")
    # Small, whatever was asked for: what matters is the proportion.
    return max(int(width) // 16, 1), max(int(height) // 16, 1)


def _check_image(request: Request, address: str) -> None:
    model = str(request.get("model"))
    if model.startswith("gpt-image") and "response_format" in request:
        raise BadRequest("Unknown parameter: 'response_format'.")
    if model.startswith("dall-e") and {"background", "output_format", "moderation"} & request.keys():
        raise BadRequest("Unknown parameter for this model.")
    if model == "dall-e-3" and int(request.get("n") or 1) > 1:
        raise BadRequest("'n' must be 1 for dall-e-3.")
    if address != "images/generations":
        _file(request, "image", ("png", "jpg", "webp"))


def _images(script: Script, request: Request, address: str) -> bytes:
    _check_image(request, address)
    model = str(request.get("model"))
    is_enclosed = model.startswith("gpt-image") or request.get("response_format") in ("b64_json", "base64")
    data = []
    for place in range(int(request.get("n") or 1) - (script.mode == "short")):
        width, height = _side(request)
        image: _Json = {"b64_json": base64.b64encode(picture(width, height, place)).decode()}
        if script.mode == "inside_url":
            image = {"url": "http://169.254.169.254/latest/meta-data"}
        elif script.mode == "by_url" or not is_enclosed:
            image = {"url": f"{HOME}/pictures/{width}x{height}.png"}
        data.append({**image, "revised_prompt": "A better prompt."} if model == "dall-e-3" else image)
    answer: _Json = {"created": CREATED, "data": data}
    if model.startswith("gpt-image"):
        answer |= {"output_format": "png", "usage": _image_usage()}
    return _encode(answer)


def _image_usage() -> _Json:
    return _tokens(input_tokens_details={"text_tokens": INPUT_TOKENS, "image_tokens": 0})


def _image_events(request: Request, address: str) -> Iterator[Event]:
    name = "image_edit" if address == "images/edits" else "image_generation"
    width, height = _side(request)
    common = {
        "created_at": CREATED,
        "size": "1024x1024",
        "quality": "high",
        "background": "opaque",
        "output_format": "png",
    }
    for place in range(int(request.get("partial_images") or 0)):
        preview = base64.b64encode(picture(width, height, 100 + place)).decode()
        body = {"type": f"{name}.partial_image", "b64_json": preview, "partial_image_index": place}
        yield _event({**body, **common})
    for place in range(int(request.get("n") or 1)):
        done = {
            "type": f"{name}.completed",
            "b64_json": base64.b64encode(picture(width, height, place)).decode(),
        }
        yield _event({**done, **common, "usage": _image_usage()}, Kind.TERMINAL)


# --- events, errors and rules --------------------------------------------------------------------


def _event(body: _Json, kind: Kind = Kind.CONTENT) -> Event:
    return Event(_encode(body), kind, str(body["type"]))


def _idle(script: Script, request: Request, path: str) -> Event:
    if _address(path) == "audio/speech":
        return _event({"type": "speech.audio.delta", "audio": ""}, Kind.OPENING)
    if _address(path).startswith("images/"):
        return _event({"type": "image_generation.in_progress"}, Kind.OPENING)
    return _event({"type": "transcript.text.delta", "delta": ""}, Kind.OPENING)


def _padded(script: Script, request: Request, path: str, size: int) -> Event:
    if _address(path) == "audio/speech":
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(bytes(size)).decode()})
    return _event({"type": "transcript.text.delta", "delta": "x" * size})


def _broke(script: Script) -> Event:
    return Event(_problem(500, "It broke.", script), Kind.TERMINAL, "error")


def _problem(status: int, message: str, script: Script) -> bytes:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "param": script.param or None, "code": script.code or None}
    return _encode({"error": error})


def _violations(path: str, headers: Mapping[str, str], body: bytes) -> list[str]:
    from inferhub.testing.strict import validate_request

    content_type = headers.get("content-type", "")
    schema = _SCHEMAS[_address(path)]
    is_form = path.rpartition("/")[2] not in {"speech", "generations"}
    if not content_type.startswith(FORM if is_form else "application/json"):
        return [f"content-type is {content_type!r}"]
    if not is_form:
        return validate_request(schema, body)
    try:
        return validate_request(schema, _encode(typed(read_form(content_type, body))))
    except BadForm as error:
        return [str(error)]


DIALECT = UpstreamDialect(
    name="openai_media",
    answers=_answers,
    streams=_streams,
    answer=_answer,
    events=_events,
    idle=_idle,
    broke=_broke,
    problem=_problem,
    violations=_violations,
    padded=_padded,
    content_type=_content_type,
    sends_bytes=_sends_bytes,
)
