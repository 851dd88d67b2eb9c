"""OpenAI's `POST /v1/audio/translations`: speech of any language in, English text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.core.usage import Usage
from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.base import Envelope
from inferhub.modalities.transcription import (
    MODALITY,
    TranscriptDelta,
    TranscriptionRequest,
    TranscriptionResponse,
)


class TranslationRequest(msgspec.Struct, kw_only=True):
    """Fields of the form of `POST /v1/audio/translations`."""

    model: str = ""
    prompt: str | None = None
    """In English."""
    response_format: Literal["json", "text", "srt", "vtt", "verbose_json"] = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None


def _lowered(asked: TranslationRequest) -> TranscriptionRequest:
    return TranscriptionRequest(
        model=asked.model,
        prompt=asked.prompt,
        response_format=asked.response_format,
        temperature=asked.temperature,
        task="translate",
    )


def _check(_asked: TranslationRequest) -> None:
    """Nothing that types do not say."""


def _translate(asked: TranslationRequest, _body: bytes) -> Translated:
    request = _lowered(asked)
    fields = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    # `model` may have been left out; whoever answers is named in the call.
    return Translated(request, msgspec.json.encode(fields))


def _fold(
    asked: TranslationRequest, envelope: Envelope, deltas: Sequence[TranscriptDelta], usage: Usage
) -> bytes:
    return MODALITY.fold(_lowered(asked), envelope, deltas, usage)


def _media_type(asked: TranslationRequest, is_stream: bool) -> str:
    return MODALITY.media_type(_lowered(asked), is_stream) if MODALITY.media_type else ""


DIALECT = Dialect(
    name="openai_translations",
    path="/v1/audio/translations",
    summary="Turn speech of any language into English text",
    modality=MODALITY,
    request=TranslationRequest,
    response=TranscriptionResponse,
    check=_check,
    translate=_translate,
    fold=_fold,
    writer=None,
    id_prefix="transcription-",
    example={},
    files=MODALITY.files,
    media_type=_media_type,
)
