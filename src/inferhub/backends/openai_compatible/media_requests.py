"""What an upstream is sent that hears, speaks or paints: the client's fields in the form that it reads.

Called once for each request. Pure: knows the vendor's facts and the model's family, and no connection. What
neither of them knows is refused by name (`Unsupported`), never dropped, unless nothing depends on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from inferhub.backends.openai_compatible.families import Family
from inferhub.backends.openai_compatible.requests import DROPPED_FIELDS
from inferhub.backends.vendors import Vendor
from inferhub.core.call import Call
from inferhub.core.errors import Invalid, Unsupported
from inferhub.modalities.image import ImageRequest
from inferhub.modalities.speech import SpeechRequest
from inferhub.modalities.transcription import TranscriptionRequest, wants_speakers
from inferhub.wire.foreign import NOT_JSON
from inferhub.wire.multipart import FormFile, encode_form

Fields = dict[str, Any]

_OWN: Mapping[str, frozenset[str]] = {
    "transcription": frozenset({"task", "diarize", "num_speakers", "vad", "live"}),
    "speech": frozenset({"language", "emotion", "pitch", "gain_db", "sample_rate_hz"}),
    "image": frozenset(
        {"task", "seed", "steps", "guidance", "negative_prompt", "strength", "scale", "preserve_color"}
    ),
}
"""Fields that OpenAI does not have."""
_SAID_OTHERWISE = frozenset({"task", "diarize", "live"})
"""Those of them that the address and the format say."""
_NEEDS_TIMES = frozenset({"srt", "vtt", "verbose_json"})
_HINTS = frozenset({"quality", "style", "moderation", "input_fidelity"})
_DEFAULT_VOICE = "default"
_JSON = "application/json"
_encode = msgspec.json.encode
_decode_fields = msgspec.json.Decoder(Fields).decode


class Sent(NamedTuple):
    kind: str
    """Content type."""
    body: bytes


class MediaWriter:
    """Writes requests to one model of one upstream."""

    def __init__(self, row: Vendor, model: str, family: Family) -> None:
        self._row = row
        self._model = model
        self._family = family

    # --- sound in ----------------------------------------------------------------------------

    def transcription(self, call: Call) -> Sent:
        request: TranscriptionRequest = call.request
        if request.include:
            raise Unsupported("What is heard here has no 'include'.", param="include")
        if request.vad is False and "vad" not in self._row.extras.get("transcription", ()):
            raise Unsupported("This model cannot be told to listen to silence, too.", param="vad")
        fields = self._fields(call, drop=("response_format", "timestamp_granularities", "stream", "vad"))
        if "vad" in self._row.extras.get("transcription", ()) and request.vad is not None:
            fields["vad"] = request.vad
        wants_words = "word" in (request.timestamp_granularities or ())
        wants_times = wants_words or request.response_format in _NEEDS_TIMES
        if self.by_speaker(request):
            fields["response_format"] = "diarized_json"
            # Without it, OpenAI refuses what is longer than half a minute.
            fields.setdefault("chunking_strategy", "auto")
        elif self.streams_text(call):
            fields["response_format"] = "json"
        elif self._family.has_times:
            is_rich = wants_times or self._is_known or self._family.has_events
            fields["response_format"] = "verbose_json" if is_rich else "json"
            if wants_times:
                fields["timestamp_granularities"] = ["segment", *(["word"] if wants_words else [])]
        elif wants_times:
            raise Unsupported(
                f"This model knows no times, so it cannot answer in {request.response_format!r}; "
                "ask for 'json' or 'text'.",
                param="response_format",
            )
        else:
            fields["response_format"] = "json"
        if self.streams_text(call):
            fields["stream"] = True
        for name in self._row.form_drops:
            fields.pop(name, None)
        return self._form(call, fields, {"file": "file"})

    def by_speaker(self, request: TranscriptionRequest) -> bool:
        can = self._family.is_ours or "diarize" in self._family.features
        return can and wants_speakers(request)

    def streams_text(self, call: Call) -> bool:
        """Whether the upstream itself is asked for a stream: only of it are pieces heard early."""
        request: TranscriptionRequest = call.request
        wants_times = request.response_format in _NEEDS_TIMES or bool(request.timestamp_granularities)
        return call.stream and self._family.has_events and request.task == "transcribe" and not wants_times

    @property
    def _is_known(self) -> bool:
        """Whether it is a Whisper, whose richest answer costs no more than its poorest."""
        return "whisper" in self._model.lower()

    # --- sound out ---------------------------------------------------------------------------

    def speech(self, call: Call) -> tuple[Sent, str]:
        """The request, and the format in which the sound will come."""
        request: SpeechRequest = call.request
        fields = self._fields(call, drop=("voice", "stream", "stream_format", "response_format"))
        if not self._family.is_ours and "instructions" not in self._family.features:
            fields.pop("instructions", None)
        fields["input"] = request.input
        voice = self._voice(request)
        if voice is not None:
            fields["voice"] = voice
        format_ = request.response_format
        if self._row.speech_formats and format_ not in self._row.speech_formats:
            format_ = "wav" if "wav" in self._row.speech_formats else self._row.speech_formats[0]  # type: ignore[assignment]
        fields["response_format"] = format_
        if self._family.has_events:
            # They say what was used, which plain bytes do not.
            fields["stream_format"] = "sse"
        return Sent(_JSON, _encode(fields)), format_

    @property
    def voices(self) -> tuple[str, ...]:
        return self._row.voices or self._family.voices

    def _voice(self, request: SpeechRequest) -> Any:
        if request.voice != _DEFAULT_VOICE:
            return request.voice
        if self.voices:
            return self.voices[0]
        if self._row.family is not None:
            return None
        raise Invalid("'voice' is missing, and this model has none of its own.", param="voice")

    # --- pictures ----------------------------------------------------------------------------

    def image(self, call: Call) -> Sent:
        request: ImageRequest = call.request
        fields = self._fields(call, drop=("response_format", "stream"))
        if not self._family.is_ours:
            for name in _HINTS - self._family.features:
                # Reported as ignored by whoever chose this model for the request.
                fields.pop(name, None)
        if not self._family.has_events:
            # These make opaque PNGs or JPEGs; another format is made of what comes.
            for name in ("background", "output_format", "output_compression"):
                fields.pop(name, None)
        if not self._family.is_encoded and self._row.image_format != "none":
            fields["response_format"] = self._row.image_format
        self._size(request, fields)
        if self.streams_pictures(call):
            fields["stream"] = True
        else:
            fields.pop("partial_images", None)
        for name, theirs in self._row.renames.items():
            if name in fields:
                fields[theirs] = fields.pop(name)
        if request.task == "generate":
            return Sent(_JSON, _encode(fields))
        if request.task == "variation":
            fields.pop("prompt", None)
        many = sum(file.field == "image" for file in call.media) > 1
        return self._form(call, fields, {"image": "image[]" if many else "image", "mask": "mask"})

    def streams_pictures(self, call: Call) -> bool:
        request: ImageRequest = call.request
        return call.stream and self._family.has_events and request.task != "variation"

    def _size(self, request: ImageRequest, fields: Fields) -> None:
        if self._row.image_size == "size" or request.size is None:
            return
        del fields["size"]
        if request.size == "auto":
            return
        if self._row.image_size == "none":
            raise Unsupported("This model chooses the size of its pictures itself.", param="size")
        width, _, height = request.size.partition("x")
        fields["width"], fields["height"] = int(width), int(height)

    # --- both --------------------------------------------------------------------------------

    def _fields(self, call: Call, drop: Iterable[str]) -> Fields:
        try:
            given = _decode_fields(call.body)
        except NOT_JSON as error:
            raise Invalid("The fields of the request are not a JSON object.") from error
        extras = self._row.extras.get(call.modality, ())
        fields: Fields = {}
        unwanted = {*DROPPED_FIELDS, *drop}
        for name, value in given.items():
            if value is None or name in unwanted:
                continue
            if name in _OWN[call.modality] and name not in extras:
                if name in _SAID_OTHERWISE:
                    continue
                raise Unsupported(f"This model has no '{name}'.", param=name)
            fields[name] = value
        fields["model"] = self._model
        return fields

    def _form(self, call: Call, fields: Mapping[str, Any], names: Mapping[str, str]) -> Sent:
        files = [
            FormFile(names[file.field], file.data, file.kind, file.name)
            for file in call.media
            if file.field in names
        ]
        if not files:
            raise Invalid("The request has no file.", param=next(iter(names)))
        return Sent(*encode_form(_flat(fields), files))


def _flat(fields: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Fields of a form are texts; a list is one field for each of its items."""
    for name, value in fields.items():
        if isinstance(value, list):
            for item in value:
                yield f"{name}[]", _text(item)
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _encode(value).decode()
