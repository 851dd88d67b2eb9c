"""Reads pictures as OpenAI-style upstreams send them: enclosed or by address, whole or as a stream of events.

The openai_compatible backend feeds it. It opens no address: who does decides which are safe.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error
from inferhub.wire.openai_speech import unpacked

_MAX_PROMPT_CHARS = 32_000


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Image(msgspec.Struct):
    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = None


class _Answer(msgspec.Struct):
    data: list[_Image] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    b64_json: str | None = None
    partial_image_index: int = 0
    usage: _Usage | None = None
    error: Any = None


class Painted(msgspec.Struct):
    """One picture, or a preview of one."""

    data: bytes = b""
    url: str = ""
    """Where there is no `data`."""
    revised_prompt: str | None = None
    preview: int | None = None
    """Which preview it is; None for a finished picture."""


_read_answer = json_reader(_Answer, "something that is not a list of pictures")
_read_event = json_reader(_Event, "an event that is not JSON")


def read_images(body: bytes, most: int, secrets: Collection[str] = ()) -> tuple[list[Painted], Usage]:
    """At least one picture and at most as many as were asked for, and the tokens they cost. Raises
    `UpstreamFailed` for anything else."""
    answer = _read_answer(body)
    if answer.error:
        raise read_stream_error(answer.error, secrets)
    images = answer.data or []
    if not 1 <= len(images) <= most:
        raise UpstreamFailed(f"The upstream sent {len(images)} pictures where {most} were asked for.")
    return [_painted(image) for image in images], _usage(answer.usage)


class ImageReader:
    """Follows the events of one stream. `read` each in order, then `end`."""

    def __init__(self, most: int, secrets: Collection[str] = ()) -> None:
        self._most = most
        self._secrets = secrets
        self._finished = 0
        self._usage = Usage()

    @property
    def is_done(self) -> bool:
        return self._finished == self._most

    def read(self, data: bytes) -> Painted | None:
        event = _read_event(data)
        match event.type.rpartition(".")[2]:
            case "partial_image" if event.b64_json:
                preview = min(max(event.partial_image_index, 0), 99)
                return Painted(unpacked(event.b64_json, "a preview"), preview=preview)
            case "completed":
                self._finished += 1
                if self._finished > self._most:
                    raise UpstreamFailed("The upstream sent more pictures than were asked for.")
                used = _usage(event.usage)
                self._usage = Usage(
                    self._usage.input_tokens + used.input_tokens,
                    self._usage.output_tokens + used.output_tokens,
                )
                return _painted(_Image(b64_json=event.b64_json))
        if event.error or event.type == "error":
            raise read_stream_error(event.error or {}, self._secrets)
        return None

    def end(self) -> Usage:
        """Tokens only. Raises `UpstreamFailed` where no picture was finished."""
        if not self._finished:
            raise UpstreamFailed("The upstream's pictures ended before one was complete.")
        return self._usage


def _painted(image: _Image) -> Painted:
    prompt = image.revised_prompt[:_MAX_PROMPT_CHARS] if image.revised_prompt else None
    if image.b64_json:
        return Painted(unpacked(image.b64_json, "a picture"), revised_prompt=prompt)
    if not image.url:
        raise UpstreamFailed("The upstream sent a picture that is neither enclosed nor has an address.")
    return Painted(url=image.url, revised_prompt=prompt)


def _usage(given: _Usage | None) -> Usage:
    return Usage() if given is None else Usage(given.input_tokens, given.output_tokens)
