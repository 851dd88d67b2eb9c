"""Speech and pictures of the built-in models over HTTP: speed on the samples, memory, who is in whose way.

Every figure includes the whole way: upload, decoding in its process, the engine in its own, the answer.
"""

from __future__ import annotations

import http.client
import io
import json
import threading
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any
from urllib.parse import urlsplit

from benchmarks.contenders.gateway import environment, start_http
from benchmarks.contenders.weights import find_weights
from benchmarks.cpu import tree_pss_bytes
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import ROOT, Processes, Running

_SAMPLES = ROOT / "tests" / "data"
_SPEECH = _SAMPLES / "two_cities.wav"
_PAGE = _SAMPLES / "invoice.png"
_PHOTO = _SAMPLES / "coffee.png"
_TIMEOUT_S = 120
_BOUNDARY = "inferhub-benchmark"
_TOKENS = 96
_SENTENCES = "The rain has stopped, and the light comes back. We can go out now, if you like."
_GB = 1e9


def run(options: Options) -> Outcome:
    find_weights()
    rounds = options.rounds(5)
    with Processes() as processes:
        env = environment(processes, "media", ())
        # Without a spec the built-in one is served.
        del env["INFERHUB_SPEC_FILE"]
        hub = start_http(processes, "serve", env)
        speech_s = _length_s()
        asr = {name: _times(rounds, _transcribe(hub, name)) for name in ("whisper-base", "whisper-tiny.en")}
        tts = {name: _times(rounds, _first_sound(hub, name)) for name in ("hibari", "kokoro")}
        page = _times(rounds, _read_page(hub))
        style = _times(rounds, _restyle(hub))
        _times(1, _upscale(hub))
        loaded_gb = tree_pss_bytes(hub.pid) / _GB
        alone, beside = _chat_beside_transcription(hub, max(3, rounds - 2))
    figures = (
        Figure(
            "recognition, base, per second of speech",
            median(asr["whisper-base"]) / speech_s,
            "s",
            at_most(0.15),
        ),
        Figure(
            "recognition, tiny.en, per second of speech",
            median(asr["whisper-tiny.en"]) / speech_s,
            "s",
            at_most(0.06),
        ),
        Figure("first sound, hibari", median(tts["hibari"]) * 1000, "ms", at_most(60)),
        Figure("first sound, kokoro", median(tts["kokoro"]) * 1000, "ms", at_most(1000)),
        Figure("texts of a page", median(page), "s", at_most(1.2)),
        Figure("style of a picture of 512 × 512", median(style), "s", at_most(0.3)),
        Figure("memory with everything loaded", loaded_gb, "GB", at_most(2.2)),
        Figure("chat stream beside a transcription", median(beside) / median(alone), "×", at_most(2.0)),
    )
    details = {
        "speech_s": speech_s,
        "transcribe_s": asr,
        "first_sound_s": tts,
        "page_s": page,
        "style_s": style,
        "chat_alone_s": alone,
        "chat_beside_s": beside,
    }
    return Outcome(figures, details)


def _times(rounds: int, act: Callable[[], float]) -> list[float]:
    """Seconds of each round, behind one that loads the model and does not count."""
    act()
    return [act() for _ in range(rounds)]


def _length_s() -> float:
    with wave.open(str(_SPEECH)) as file:
        return file.getnframes() / file.getframerate()


def _transcribe(hub: Running, model: str) -> Callable[[], float]:
    body = _form({"model": model, "response_format": "text"}, "file", _SPEECH.read_bytes())
    return lambda: _whole(hub, "/v1/audio/transcriptions", body)


def _read_page(hub: Running) -> Callable[[], float]:
    body = _form({"features[]": "text"}, "image", _PAGE.read_bytes())
    return lambda: _whole(hub, "/v1/vision/analyze", body)


def _restyle(hub: Running) -> Callable[[], float]:
    fields = {"model": "style", "style": "19", "response_format": "b64_json"}
    body = _form(fields, "image", _square())
    return lambda: _whole(hub, "/v1/images/edits", body)


def _upscale(hub: Running) -> Callable[[], float]:
    fields = {"model": "realesrgan", "scale": "2", "response_format": "b64_json"}
    body = _form(fields, "image", _square(128))
    return lambda: _whole(hub, "/v1/images/edits", body)


def _square(side: int = 512) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.open(_PHOTO).convert("RGB").resize((side, side)).save(file, "PNG")
    return file.getvalue()


def _first_sound(hub: Running, model: str) -> Callable[[], float]:
    """To the first bytes of the answer's body, as PCM, which needs no header."""

    def take() -> float:
        body = {"model": model, "input": _SENTENCES, "voice": "alloy", "response_format": "pcm"}
        begin = time.perf_counter()
        connection, response = _post(hub, "/v1/audio/speech", json.dumps(body).encode(), "application/json")
        try:
            response.read(1)
            first_s = time.perf_counter() - begin
            response.read()
        finally:
            connection.close()
        return first_s

    return take


def _chat_beside_transcription(hub: Running, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of a streamed chat, alone and while a recording is transcribed; they take turns."""
    alone: list[float] = []
    beside: list[float] = []
    _chat(hub)
    for _ in range(rounds):
        alone.append(_chat(hub))
        is_over = threading.Event()
        transcribe = _transcribe(hub, "whisper-base")

        def busy(is_over: threading.Event = is_over, transcribe: Callable[[], float] = transcribe) -> None:
            while not is_over.is_set():
                transcribe()

        worker = threading.Thread(target=busy)
        worker.start()
        try:
            time.sleep(0.5)  # past upload and decoding
            beside.append(_chat(hub))
        finally:
            is_over.set()
            worker.join()
    return alone, beside


def _chat(hub: Running) -> float:
    body = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Write a long story about a river."}],
        "stream": True,
        "max_tokens": _TOKENS,
    }
    begin = time.perf_counter()
    connection, response = _post(hub, "/v1/chat/completions", json.dumps(body).encode(), "application/json")
    try:
        response.read()
    finally:
        connection.close()
    return time.perf_counter() - begin


def _whole(hub: Running, path: str, body: bytes) -> float:
    begin = time.perf_counter()
    connection, response = _post(hub, path, body, f"multipart/form-data; boundary={_BOUNDARY}")
    try:
        response.read()
    finally:
        connection.close()
    return time.perf_counter() - begin


def _post(
    hub: Running, path: str, body: bytes, content_type: str
) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, body, {**hub.headers, "content-type": content_type})
        response = connection.getresponse()
        if response.status != 200:
            raise CannotMeasureError(f"{path} answered {response.status}: {response.read()[:300]!r}")
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise CannotMeasureError(f"{path} did not answer: {error}") from error
        raise
    return connection, response


def _form(fields: Mapping[str, str], name: str, data: bytes) -> bytes:
    parts: Sequence[Any] = [(f'name="{field}"', value.encode()) for field, value in fields.items()]
    parts = [*parts, (f'name="{name}"; filename="sample"', data)]
    return (
        b"".join(
            f"--{_BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"
            for head, content in parts
        )
        + f"--{_BOUNDARY}--\r\n".encode()
    )


MEASURE = Measure(
    name="media",
    title="Speech and pictures on this machine",
    run=run,
    order=13,
    limit_s=300.0,
)
