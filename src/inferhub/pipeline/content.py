"""Which pieces of an answer say something, and how much. Asked for every piece, so no loops.

A piece that only names a role, or nothing at all, is a sign of life and no content: it ends no wait for the
first token, resets no limit, and is nobody's to pay for.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from inferhub.core.call import Call
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.completion import CompletionDelta
from inferhub.modalities.image import ImageDelta
from inferhub.modalities.speech import SpeechDelta
from inferhub.modalities.transcription import TranscriptDelta


def has_content(payload: Any) -> bool:
    """Whether it is a part of the answer, beside the reason why the answer ends."""
    kind = type(payload)
    if kind is ChatDelta:
        return bool(
            payload.content
            or payload.reasoning_content
            or payload.tool_calls
            or payload.refusal
            or payload.reasoning_details
            or payload.annotations
            or payload.logprobs
        )
    if kind is CompletionDelta:
        return bool(payload.text or payload.logprobs)
    return True


def finish_of(payload: Any) -> str | None:
    """Why its choice ends, where it is the last piece of one."""
    return getattr(payload, "finish_reason", None)


def with_media(usage: Usage, payload: Any) -> Usage:
    """What a call used so far, by what it delivered, with one piece more: sound and pictures, no tokens."""
    kind = type(payload)
    if kind is SpeechDelta:
        characters = usage.characters + payload.characters
        return replace(usage, audio_ms=usage.audio_ms + payload.audio_ms, characters=characters)
    if kind is TranscriptDelta:
        return replace(usage, audio_ms=max(usage.audio_ms, round(payload.duration_s * 1000)))
    if kind is ImageDelta and payload.kind == "image":
        pixels = usage.pixels + payload.width * payload.height
        return replace(usage, images=usage.images + 1, pixels=pixels)
    return usage


def begun(usage: Usage, call: Call) -> Usage:
    """What is due for a call that broke off. Pieces of a vendor's do not say how far it came in a text, and
    it charges all of one that it has begun to speak."""
    if call.modality == "speech" and not usage.characters:
        return replace(usage, characters=len(call.request.input))
    return usage
