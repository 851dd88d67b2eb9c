"""What a transcription session is set to, how clients change it, and the request that it makes.

Read by `session` and `secrets`' route. What cannot be done here is refused by name, never ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from inferhub.core.errors import Invalid, Unsupported
from inferhub.gateway.payload import explain
from inferhub.modalities.transcription import Endpointing, Live, TranscriptionRequest
from inferhub.modalities.transcription.request import LiveFormat

ONLY_TRANSCRIPTION = (
    "Only transcription sessions are served here: session.type is 'transcription', and there are "
    "no responses."
)


class AudioFormat(msgspec.Struct, kw_only=True, omit_defaults=False):
    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: Annotated[int, Meta(ge=8000, le=96_000)] | None = None
    """Of PCM, 24000 where it is left out. G.711 has 8000."""


class ServerVad(msgspec.Struct, tag="server_vad", kw_only=True):
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=100, le=10_000)] = 500


class Transcribing(msgspec.Struct, kw_only=True):
    model: str | None = None
    language: str | None = None
    prompt: Annotated[str, Meta(max_length=4096)] | None = None


class AudioInput(msgspec.Struct, kw_only=True):
    format: AudioFormat = msgspec.field(default_factory=lambda: AudioFormat(rate=24_000))
    transcription: Transcribing | None = msgspec.field(default_factory=Transcribing)
    noise_reduction: None = None
    turn_detection: ServerVad | None = msgspec.field(default_factory=ServerVad)


class Audio(msgspec.Struct, kw_only=True):
    input: AudioInput = msgspec.field(default_factory=AudioInput)


class Session(msgspec.Struct, kw_only=True):
    """As clients read it."""

    id: str
    object: Literal["realtime.transcription_session"] = "realtime.transcription_session"
    type: Literal["transcription"] = "transcription"
    expires_at: int = 0
    include: list[str] = []
    audio: Audio = msgspec.field(default_factory=Audio)

    def request(self) -> TranscriptionRequest:
        given = self.audio.input
        says = given.transcription or Transcribing()
        formats: dict[str, LiveFormat] = {"audio/pcmu": "g711_ulaw", "audio/pcma": "g711_alaw"}
        vad = given.turn_detection
        return TranscriptionRequest(
            model=says.model or "",
            language=says.language,
            prompt=says.prompt,
            stream=True,
            live=Live(
                format=formats.get(given.format.type, "pcm16"),
                rate_hz=given.format.rate or 24_000,
                endpointing=None
                if vad is None
                else Endpointing(
                    threshold=vad.threshold,
                    prefix_padding_ms=vad.prefix_padding_ms,
                    silence_duration_ms=vad.silence_duration_ms,
                ),
            ),
        )


# What a client sends is laid over what is set: a field that it leaves out stays as it is.


class _InputChange(msgspec.Struct):
    format: AudioFormat | UnsetType = UNSET
    transcription: Transcribing | UnsetType | None = UNSET
    noise_reduction: dict[str, Any] | UnsetType | None = UNSET
    turn_detection: dict[str, Any] | UnsetType | None = UNSET


class _AudioChange(msgspec.Struct):
    input: _InputChange = msgspec.field(default_factory=_InputChange)


class _Change(msgspec.Struct):
    type: str
    audio: _AudioChange = msgspec.field(default_factory=_AudioChange)
    include: list[str] | None = None


def changed(session: Session, wanted: Any, place: str = "session") -> Session:
    """The session with the changes of a `session.update`. Raises `Invalid` or `Unsupported`."""
    try:
        change = msgspec.convert(wanted, _Change)
        found = change.audio.input
        if change.type != "transcription":
            raise Unsupported(ONLY_TRANSCRIPTION, param=f"{place}.type")
        if change.include:
            raise Unsupported("Live transcripts have no logprobs.", param=f"{place}.include")
        given = session.audio.input
        before = given.turn_detection
        return msgspec.structs.replace(
            session,
            audio=Audio(
                input=AudioInput(
                    format=_format(given.format if found.format is UNSET else found.format),
                    transcription=given.transcription
                    if found.transcription is UNSET
                    else found.transcription,
                    turn_detection=before
                    if found.turn_detection is UNSET
                    else _vad(before, found.turn_detection, place),
                )
            ),
        )
    except msgspec.ValidationError as error:
        problem = explain(error, wanted)
        raise Invalid(
            problem.message,
            param=f"{place}.{problem.param}" if problem.param else place,
            code=problem.wire_code,
        ) from error


def _format(wanted: AudioFormat) -> AudioFormat:
    if wanted.type != "audio/pcm":
        if wanted.rate not in (None, 8000):
            raise Invalid("G.711 has 8000 samples a second.", param="session.audio.input.format.rate")
        return AudioFormat(type=wanted.type)
    return AudioFormat(type=wanted.type, rate=wanted.rate or 24_000)


def _vad(before: ServerVad | None, wanted: dict[str, Any] | None, place: str) -> ServerVad | None:
    """A turn detection that is changed in part keeps the rest."""
    if wanted is None:
        return None
    kind = wanted.get("type", "server_vad")
    if kind != "server_vad":
        raise Unsupported(
            f"Turn detection is 'server_vad' or null here, not {str(kind)[:40]!r}.",
            param=f"{place}.audio.input.turn_detection.type",
        )
    known = ServerVad.__struct_fields__
    changes = {name: value for name, value in wanted.items() if name in known and value is not None}
    kept = msgspec.structs.asdict(before or ServerVad())
    return msgspec.convert({"type": "server_vad", **kept, **changes}, ServerVad)
