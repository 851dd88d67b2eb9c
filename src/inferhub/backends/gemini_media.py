"""Hearing, speaking and painting by models of the Gemini API. `gemini` hands it such calls.

Gemini speaks in bare samples and paints what it likes: both leave in the format that the client asked for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
from yarl import URL

from inferhub.backends.finishing import finished_picture, painted, pieces_of, spoken, with_length
from inferhub.backends.remote import RemoteOptions
from inferhub.backends.sender import Sender
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import ContentFiltered, Invalid, Unsupported, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.media import Effects, MediaPool
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.image import ImageDelta, ImageRequest
from inferhub.modalities.speech import SpeechRequest
from inferhub.modalities.transcription import Segment, TranscriptDelta, TranscriptionRequest
from inferhub.wire.gemini.errors import read_stream_error
from inferhub.wire.gemini.media import (
    content_of,
    lift_hearing,
    lift_imagen,
    lift_painting,
    lift_speaking,
    rate_hz_of,
    read_imagen,
    read_made,
)
from inferhub.wire.gemini.reader import GeminiReader, parse_chunk
from inferhub.wire.gemini.request import Target
from inferhub.wire.sse import SseParser

FEATURES = {
    "transcription": frozenset({"stream", "translate"}),
    "speech": frozenset({"stream", "instructions", "pitch", "gain"}),
    "image": frozenset({"stream", "generate", "edit", "n", "seed"}),
}
IMAGEN_FEATURES = frozenset({"stream", "generate", "n"})
_MAX_ANSWER_BYTES = 96 * 1024 * 1024
_NEEDS_TIMES = ("srt", "vtt", "verbose_json", "diarized_json")
_encode = msgspec.json.encode


class GeminiMedia:
    """One model of the Gemini API."""

    def __init__(
        self, options: RemoteOptions, sender: Sender, urls: Mapping[str, URL], target: Target
    ) -> None:
        self._options = options
        self._sender = sender
        self._urls = urls
        self._target = target
        self._pool = MediaPool()

    async def close(self) -> None:
        await self._pool.close()

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        match call.request:
            case TranscriptionRequest():
                return self._hear(call)
            case SpeechRequest():
                return self._speak(call)
        return self._imagen(call) if is_imagen(self._target.model) else self._paint(call)

    # --- hearing -----------------------------------------------------------------------------

    async def _hear(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: TranscriptionRequest = call.request
        if request.response_format in _NEEDS_TIMES:
            raise Unsupported(
                f"This model knows no times, so it cannot answer in {request.response_format!r}; "
                "ask for 'json' or 'text'.",
                param="response_format",
            )
        sound = next((file for file in call.media if file.field == "file"), None)
        if sound is None:
            raise Invalid("The request has no recording.", param="file")
        body = _encode(lift_hearing(request, sound, self._target))
        reader, parser, count = GeminiReader(), SseParser(), 0
        url = self._urls["streamGenerateContent?alt=sse"]
        async with self._sender.open(call, url, body, self._options.headers_timeout_s) as answer:
            while piece := await answer.read_piece():
                for data in parser.feed(piece):
                    for text in self._texts(reader, data):
                        yield Delta(TranscriptDelta("segment", segment=Segment(count, 0.0, 0.0, text)))
                        count += 1
        finishes, usage = reader.end()
        _check_end(finishes)
        yield Finished(with_length(replace(usage, audio_ms=0), call.media))

    def _texts(self, reader: GeminiReader, data: bytes) -> list[str]:
        chunk = parse_chunk(data)
        if chunk.error:
            raise read_stream_error(chunk.error, self._sender.secrets)
        return [delta.content for delta in reader.read(chunk) if delta.content]

    # --- speaking ----------------------------------------------------------------------------

    async def _speak(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: SpeechRequest = call.request
        body = await self._ask(call, "generateContent", lift_speaking(request))
        made, tokens = read_made(body, self._sender.secrets)
        pcm = b"".join(content_of(piece) for piece in made)
        effects = Effects(
            pitch_semitones=request.pitch or 0.0, speed=request.speed, gain_db=request.gain_db or 0.0
        )
        heard_ms = 0
        sound = spoken(self._pool, pieces_of(pcm), rate_hz_of(made[0]), request, effects)
        async with aclosing(sound):
            async for piece in sound:
                heard_ms += piece.audio_ms
                yield Delta(piece)
        if not heard_ms:
            raise UpstreamFailed("The upstream sent no sound.")
        yield Finished(replace(tokens, characters=len(request.input), audio_ms=heard_ms))

    # --- painting ----------------------------------------------------------------------------

    async def _paint(self, call: Call) -> AsyncIterator[Delta | Finished]:
        """One request for each picture: these models make one at a time."""
        request: ImageRequest = call.request
        lifted = lift_painting(request, [file for file in call.media if file.field == "image"])
        finished: list[ImageDelta] = []
        tokens = Usage()
        for index in range(request.n):
            made, used = read_made(await self._ask(call, "generateContent", lifted), self._sender.secrets)
            delta = await finished_picture(self._pool, content_of(made[-1]), request, index)
            finished.append(delta)
            tokens = Usage(tokens.input_tokens + used.input_tokens, tokens.output_tokens + used.output_tokens)
            yield Delta(delta)
        yield Finished(painted(finished, tokens))

    async def _imagen(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: ImageRequest = call.request
        body = await self._ask(call, "predict", lift_imagen(request))
        finished: list[ImageDelta] = []
        for index, data in enumerate(read_imagen(body, request.n, self._sender.secrets)):
            delta = await finished_picture(self._pool, data, request, index)
            finished.append(delta)
            yield Delta(delta)
        yield Finished(painted(finished, Usage()))

    async def _ask(self, call: Call, method: str, body: Mapping[str, Any]) -> bytes:
        timeout_s = self._options.answer_timeout_s
        async with self._sender.open(call, self._urls[method], _encode(body), timeout_s) as answer:
            return await answer.read_whole(_MAX_ANSWER_BYTES)


def media_of(model: str) -> str | None:
    """The one modality of a model that does not chat."""
    if "-tts" in model:
        return "speech"
    return "image" if is_imagen(model) or "-image" in model else None


def is_imagen(model: str) -> bool:
    return model.rpartition("/")[2].startswith("imagen")


def _check_end(finishes: list[ChatDelta]) -> None:
    reasons = {finish.finish_reason for finish in finishes}
    if "content_filter" in reasons:
        raise ContentFiltered("The upstream's filter stopped the transcript.")
    if "length" in reasons:
        raise UpstreamFailed("The upstream's transcript ended before it was complete.")
