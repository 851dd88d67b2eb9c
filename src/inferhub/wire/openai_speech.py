"""Reads the events of speech that OpenAI-style upstreams stream: pieces of sound, then what they cost.

The openai_compatible backend feeds it. Sound that comes as plain bytes needs no reader.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error


class _Usage(msgspec.Struct):
    input_tokens: int = 0
    output_tokens: int = 0


class _Event(msgspec.Struct):
    type: str = ""
    audio: str = ""
    usage: _Usage | None = None
    error: Any = None


_read_event = json_reader(_Event, "an event that is not JSON")


class SpeechReader:
    """Follows the events of one stream. `read` each in order, then `end`."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self.is_done = False
        self._secrets = secrets
        self._usage: _Usage | None = None

    def read(self, data: bytes) -> bytes:
        """The next bytes of the sound; often none."""
        event = _read_event(data)
        match event.type:
            case "speech.audio.delta":
                return unpacked(event.audio, "sound")
            case "speech.audio.done":
                self.is_done = True
                self._usage = event.usage
                return b""
        if event.error or event.type == "error":
            raise read_stream_error(event.error or {}, self._secrets)
        return b""

    def end(self) -> Usage:
        """Tokens only. Raises `UpstreamFailed` where the upstream never said that it is done."""
        if not self.is_done:
            raise UpstreamFailed("The upstream's speech ended before it was complete.")
        given = self._usage
        return Usage(given.input_tokens, given.output_tokens) if given is not None else Usage()


def unpacked(text: str, what: str) -> bytes:
    """Base64 that an upstream sent."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UpstreamFailed(f"The upstream sent {what} that is not base64.") from error
