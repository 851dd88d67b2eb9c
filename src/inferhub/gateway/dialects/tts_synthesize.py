"""Speech in our own words: `POST /v1/tts/synthesize`, with every control that an engine here has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from inferhub.core.usage import Usage
from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.base import Envelope, StreamWriter
from inferhub.modalities.speech import (
    DEFAULT_VOICE,
    MODALITY,
    AudioFormat,
    Emotion,
    SpeechDelta,
    SpeechRequest,
    SpeechResponse,
    check,
    fold,
    media_type,
    writer,
)


class SynthesizeRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/tts/synthesize`."""

    text: str
    model: str = ""
    voice: str | dict[str, str | float] = DEFAULT_VOICE
    """A name, or names with their shares: those voices are blended."""
    language: str | None = None
    """ISO 639-1; that of the voice where it is not said."""
    emotion: Emotion | None = None
    """A preset of voice, rate, pitch and loudness."""
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    pitch: Annotated[float, Meta(ge=-12, le=12)] | None = None
    """Semitones."""
    gain_db: Annotated[float, Meta(ge=-30, le=20)] | None = None
    format: AudioFormat = "wav"
    sample_rate_hz: Annotated[int, Meta(ge=8000, le=48_000)] | None = None
    events: bool = False
    """Answer with server-sent events instead of the file."""

    @property
    def stream(self) -> bool:
        """Sound leaves as it is made, whatever its form."""
        return True


_NAMES = {"input": "text", "response_format": "format"}
"""OpenAI's names → ours."""


def _lowered(asked: SynthesizeRequest) -> SpeechRequest:
    form: Literal["sse", "audio"] = "sse" if asked.events else "audio"
    return SpeechRequest(
        input=asked.text,
        model=asked.model,
        voice=asked.voice,
        response_format=asked.format,
        speed=asked.speed,
        stream_format=form,
        language=asked.language,
        emotion=asked.emotion,
        pitch=asked.pitch,
        gain_db=asked.gain_db,
        sample_rate_hz=asked.sample_rate_hz,
    )


def _check(asked: SynthesizeRequest) -> None:
    try:
        check(_lowered(asked))
    except Exception as error:
        raise _renamed(error) from error


def _renamed(error: Any) -> Any:
    """The error in the words of this address."""
    ours = _NAMES.get(error.param)
    if ours is None:
        return error
    return type(error)(
        error.message.replace(f"'{error.param}'", f"'{ours}'"), param=ours, code=error.wire_code
    )


def _translate(asked: SynthesizeRequest, _body: bytes) -> Translated:
    request = _lowered(asked)
    fields = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    return Translated(request, msgspec.json.encode(fields))


def _fold(asked: SynthesizeRequest, envelope: Envelope, deltas: Sequence[SpeechDelta], usage: Usage) -> bytes:
    return fold(_lowered(asked), envelope, deltas, usage)


def _writer(asked: SynthesizeRequest, envelope: Envelope) -> StreamWriter:
    return writer(_lowered(asked), envelope)


def _media_type(asked: SynthesizeRequest, is_stream: bool) -> str:
    return media_type(_lowered(asked), is_stream)


DIALECT = Dialect(
    name="tts_synthesize",
    path="/v1/tts/synthesize",
    summary="Speak a text, with every control",
    modality=MODALITY,
    request=SynthesizeRequest,
    response=SpeechResponse,
    check=_check,
    translate=_translate,
    fold=_fold,
    writer=_writer,
    id_prefix="speech-",
    example={"text": "The quick brown fox."},
    media_type=_media_type,
)
