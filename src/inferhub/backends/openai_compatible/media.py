"""Asks an OpenAI-compatible upstream that hears, speaks or paints, and reads what it answers.

One `MediaLane` for each loaded model; `backend` hands it the calls of these modalities. Files of the client
go on untouched, an address in an answer is opened by the guarded fetcher alone.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace

from yarl import URL

from inferhub.backends.finishing import finished_picture, painted, spoken, with_length
from inferhub.backends.http import Answer
from inferhub.backends.openai_compatible.families import Family
from inferhub.backends.openai_compatible.media_requests import MediaWriter
from inferhub.backends.openai_compatible.options import OpenAICompatibleOptions
from inferhub.backends.sender import Sender
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import BackendRefused, EgressRefused, InferHubError, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.egress import Fetcher, FetchLimits
from inferhub.media import Effects, MediaPool, sniff
from inferhub.media.frames import length_ms
from inferhub.modalities.image import ImageDelta, ImageRequest
from inferhub.modalities.speech import SpeechDelta, SpeechRequest
from inferhub.modalities.transcription import TranscriptionRequest
from inferhub.wire.openai_images import ImageReader, Painted, read_images
from inferhub.wire.openai_speech import SpeechReader
from inferhub.wire.openai_transcription import TranscriptReader, read_transcript
from inferhub.wire.sse import SseParser

MAX_PICTURES_BYTES = 96 * 1024 * 1024
"""Bound of an answer with pictures, which base64 makes a third larger."""
MAX_PICTURE_BYTES = 32 * 1024 * 1024
MAX_SOUND_BYTES = 64 * 1024 * 1024
"""Bound of one spoken answer; ten minutes of WAV have less than half."""
_HEAD_BYTES = 64
"""By which the kind of a sound is known."""
_PCM_RATE_HZ = 24_000
_COUNT_RATE_HZ = 8_000
_SOUNDS = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg"}
_NO_SOUND = frozenset({"application/json", "text/html"})


class MediaLane:
    """One model of one upstream."""

    def __init__(
        self,
        options: OpenAICompatibleOptions,
        sender: Sender,
        urls: Mapping[str, URL],
        writer: MediaWriter,
        family: Family,
    ) -> None:
        self._options = options
        self._sender = sender
        self._urls = urls
        self._writer = writer
        self._family = family
        self._pool = MediaPool()
        # What the operator's own upstream names on itself may be fetched, wherever it stands.
        home = next(iter(urls.values()))
        self._fetcher = Fetcher(
            allow=(f"{_bracketed(home.host or '')}:{home.port}",),
            limits=FetchLimits(max_bytes=MAX_PICTURE_BYTES),
        )

    async def close(self) -> None:
        await self._fetcher.close()
        await self._pool.close()

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        match call.request:
            case TranscriptionRequest():
                return self._hear_stream(call) if self._writer.streams_text(call) else self._hear(call)
            case SpeechRequest():
                return self._speak(call)
        return self._paint_stream(call) if self._writer.streams_pictures(call) else self._paint(call)

    # --- transcription -----------------------------------------------------------------------

    async def _hear(self, call: Call) -> AsyncIterator[Delta | Finished]:
        url = self._urls["translation" if call.request.task == "translate" else "transcription"]
        sent = self._writer.transcription(call)
        timeout_s = self._options.answer_timeout_s
        async with self._sender.open(call, url, sent.body, timeout_s, kind=sent.kind) as answer:
            body = await answer.read_whole()
        heard = read_transcript(body, self._sender.secrets)
        usage = with_length(heard.usage, call.media)
        if heard.deltas and heard.deltas[0].kind == "about" and not heard.deltas[0].duration_s:
            heard.deltas[0].duration_s = usage.audio_ms / 1000
        for place, payload in enumerate(heard.deltas, 1):
            yield Delta(payload, more=place < len(heard.deltas))
        yield Finished(usage)

    async def _hear_stream(self, call: Call) -> AsyncIterator[Delta | Finished]:
        sent = self._writer.transcription(call)
        reader = TranscriptReader(self._sender.secrets, by_speaker=self._writer.by_speaker(call.request))
        async with aclosing(self._events(call, "transcription", sent.body, sent.kind)) as events:
            async for data in events:
                for payload in reader.read(data):
                    yield Delta(payload)
                if reader.is_done:
                    break
        yield Finished(with_length(reader.end(), call.media))

    # --- speech ------------------------------------------------------------------------------

    async def _speak(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: SpeechRequest = call.request
        sent, format_ = self._writer.speech(call)
        reader = SpeechReader(self._sender.secrets) if self._family.has_events else None
        held = bytearray()
        try:
            async with aclosing(self._sound(call, sent.body, format_, reader)) as sound:
                async for data in sound:
                    held += data
                    if len(held) > MAX_SOUND_BYTES:
                        raise UpstreamFailed(f"The upstream's speech is larger than {MAX_SOUND_BYTES} bytes.")
                    if format_ == request.response_format:
                        yield Delta(SpeechDelta(data))
        except BackendRefused as error:
            raise _about_voice(error, request) from error
        tokens = reader.end() if reader is not None else Usage()
        if not held:
            raise UpstreamFailed("The upstream sent no sound.")
        whole = bytes(held)
        if format_ != request.response_format:
            pcm = self._pool.decode_audio(whole, rate_hz=_PCM_RATE_HZ)
            async with aclosing(spoken(self._pool, pcm, _PCM_RATE_HZ, request, Effects())) as pieces:
                async for piece in pieces:
                    yield Delta(piece)
        heard_ms = len(whole) // 48 if format_ == "pcm" else await self._length_ms(whole)
        yield Finished(replace(tokens, characters=len(request.input), audio_ms=heard_ms))

    async def _length_ms(self, sound: bytes) -> int:
        """Of a file whose frames say nothing, such as a FLAC that was written before its end was known."""
        known_ms = length_ms(sound)
        if known_ms is not None:
            return known_ms
        taken_bytes = 0
        try:
            async with aclosing(self._pool.decode_audio(sound, rate_hz=_COUNT_RATE_HZ)) as pieces:
                async for piece in pieces:
                    taken_bytes += len(piece)
        except InferHubError:
            # The client has its sound; what cannot be counted is not billed.
            return 0
        return taken_bytes * 500 // _COUNT_RATE_HZ

    async def _sound(
        self, call: Call, body: bytes, format_: str, reader: SpeechReader | None
    ) -> AsyncGenerator[bytes]:
        """The bytes of the file as they come. Raises `UpstreamFailed` for what is no sound of that format."""
        parser, head, is_checked = SseParser(), b"", False
        async with self._sender.open(
            call, self._urls["speech"], body, self._options.answer_timeout_s
        ) as answer:
            is_stream = reader is not None and answer.kind == "text/event-stream"
            _check_kind(answer, is_stream=is_stream)
            while piece := await answer.read_piece():
                if reader is not None and is_stream:
                    piece = b"".join(reader.read(data) for data in parser.feed(piece))
                if not is_checked:
                    head += piece
                    if len(head) < _HEAD_BYTES:
                        continue
                    _check_sound(head, format_)
                    piece, is_checked = head, True
                if piece:
                    yield piece
                if reader is not None and reader.is_done:
                    await answer.drain()
                    break
        if reader is not None and not is_stream:
            # It knows no events and sent the file itself.
            reader.is_done = True
        if not is_checked and head:
            _check_sound(head, format_)
            yield head

    # --- pictures ----------------------------------------------------------------------------

    async def _paint(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: ImageRequest = call.request
        sent = self._writer.image(call)
        url, timeout_s = self._urls[_ADDRESSES[request.task]], self._options.answer_timeout_s
        async with self._sender.open(call, url, sent.body, timeout_s, kind=sent.kind) as answer:
            body = await answer.read_whole(MAX_PICTURES_BYTES)
        images, tokens = read_images(body, request.n, self._sender.secrets)
        finished: list[ImageDelta] = []
        for index, image in enumerate(images):
            delta = await self._finished(image, request, index)
            finished.append(delta)
            yield Delta(delta)
        yield Finished(painted(finished, tokens))

    async def _paint_stream(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request: ImageRequest = call.request
        sent = self._writer.image(call)
        reader = ImageReader(request.n, self._sender.secrets)
        finished: list[ImageDelta] = []
        address = _ADDRESSES[request.task]
        events = self._events(call, address, sent.body, sent.kind, max_event_bytes=MAX_PICTURES_BYTES)
        async with aclosing(events):
            async for data in events:
                image = reader.read(data)
                if image is None:
                    continue
                delta = await self._finished(image, request, len(finished))
                if image.preview is not None:
                    delta.kind, delta.index = "partial", image.preview
                else:
                    finished.append(delta)
                yield Delta(delta)
                if reader.is_done:
                    break
        yield Finished(painted(finished, reader.end()))

    async def _finished(self, image: Painted, request: ImageRequest, index: int) -> ImageDelta:
        data = image.data or await self._fetched(image.url)
        return await finished_picture(self._pool, data, request, index, image.revised_prompt)

    async def _fetched(self, url: str) -> bytes:
        if url.startswith("data:"):
            try:
                return base64.b64decode(url.partition(",")[2], validate=True)
            except (binascii.Error, ValueError) as error:
                raise UpstreamFailed("The upstream sent a picture that is not base64.") from error
        try:
            fetched = await self._fetcher.get(url)
        except EgressRefused as error:
            # The client named no address, so it is not for the client to mend.
            raise UpstreamFailed("The upstream's picture lies where InferHub fetches nothing.") from error
        if fetched.status != 200:
            raise UpstreamFailed(f"The upstream's picture cannot be fetched (HTTP {fetched.status}).")
        return fetched.body

    # --- all ---------------------------------------------------------------------------------

    async def _events(
        self, call: Call, address: str, body: bytes, kind: str, *, max_event_bytes: int = 4 * 1024 * 1024
    ) -> AsyncGenerator[bytes]:
        parser = SseParser(max_event_bytes)
        timeout_s = self._options.headers_timeout_s
        async with self._sender.open(call, self._urls[address], body, timeout_s, kind=kind) as answer:
            while piece := await answer.read_piece():
                for data in parser.feed(piece):
                    yield data


_ADDRESSES = {"generate": "image", "edit": "image_edit", "variation": "image_variation"}


def _about_voice(error: BackendRefused, request: SpeechRequest) -> BackendRefused:
    """Which voices there are, vendors say in the message, but rarely which parameter it is about."""
    if error.param is None and "voice" in error.message.lower() and request.voice != "default":
        return BackendRefused(error.message, param="voice", code=error.wire_code)
    return error


def _check_kind(answer: Answer, *, is_stream: bool) -> None:
    if not is_stream and answer.kind in _NO_SOUND:
        raise UpstreamFailed(f"The upstream sent {answer.kind} where sound was asked for.")


def _check_sound(head: bytes, format_: str) -> None:
    wanted = _SOUNDS.get(format_)
    if wanted is not None and sniff(head) != wanted:
        raise UpstreamFailed(f"The upstream sent something that is not {format_!r} sound.")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
