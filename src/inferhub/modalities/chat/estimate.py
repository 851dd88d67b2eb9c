"""What a chat call will use at most, guessed from its request without a tokenizer. Read by admission only.

Errs upwards: a limit reserves this much before the call and gives back what was not used after it. What no
request says, how long the answer gets, `cap` settles.
"""

from __future__ import annotations

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.chat.request import (
    AudioPart,
    ChatRequest,
    FilePart,
    ImagePart,
    Message,
    Part,
    SchemaFormat,
    TextPart,
)
from inferhub.modalities.tokens import DEFAULT_OUTPUT_TOKENS, bytes_tokens, text_tokens, with_field

IMAGE_TOKENS = 1500
"""A large picture at high detail, for the common vision models."""
LOW_DETAIL_TOKENS = 300
FILE_TOKENS = 4000
"""A file that is named by id or address, so that its length is unknown."""
AUDIO_TOKENS_PER_S = 32
_BYTES_PER_AUDIO_S = {"wav": 16_000, "mp3": 4_000}
# Speech at its smallest: 8 kHz of 16 bits, and 32 kbit/s.

_encode = msgspec.json.Encoder().encode


def estimate(request: ChatRequest, _body_bytes: int) -> Usage:
    tokens = audio_ms = 0
    for message in request.messages:
        content = message.content
        if isinstance(content, str):
            tokens += text_tokens(content)
        elif content:
            for part in content:
                more, sound_ms = _part(part)
                tokens += more
                audio_ms += sound_ms
        if message.tool_calls or message.refusal or message.reasoning_content or message.name:
            tokens += _rest(message)
    tokens += _forms(request)
    each = request.max_output_tokens or DEFAULT_OUTPUT_TOKENS
    return Usage(tokens, each * (request.n or 1), source="estimated", audio_ms=audio_ms)


def cap(request: ChatRequest, body: bytes) -> tuple[ChatRequest, bytes]:
    """Both with an end to the answer where the client set none."""
    if request.max_output_tokens is not None:
        return request, body
    capped = msgspec.structs.replace(request, max_completion_tokens=DEFAULT_OUTPUT_TOKENS)
    return capped, with_field(body, "max_completion_tokens", DEFAULT_OUTPUT_TOKENS)


def _part(part: Part) -> tuple[int, int]:
    """Tokens, and milliseconds of sound."""
    if isinstance(part, TextPart):
        return text_tokens(part.text), 0
    if isinstance(part, ImagePart):
        return (LOW_DETAIL_TOKENS if part.image_url.detail == "low" else IMAGE_TOKENS), 0
    if isinstance(part, AudioPart):
        # Base64: four characters hold three bytes.
        size = len(part.input_audio.data) * 3 // 4
        audio_ms = size * 1000 // _BYTES_PER_AUDIO_S[part.input_audio.format] + 1
        return audio_ms * AUDIO_TOKENS_PER_S // 1000 + 1, audio_ms
    if isinstance(part, FilePart):
        data = part.file.file_data
        is_enclosed = data is not None and not data.startswith(("http:", "https:"))
        return (bytes_tokens(len(data or "") * 3 // 4) if is_enclosed else FILE_TOKENS), 0
    return text_tokens(part.refusal), 0


def _rest(message: Message) -> int:
    said = [message.refusal, message.reasoning_content, message.name]
    for call in message.tool_calls or ():
        said += [call.function.name, call.function.arguments]
    return sum(text_tokens(text) for text in said if text)


def _forms(request: ChatRequest) -> int:
    """Tools and schemas become a part of the prompt, about as long as their JSON."""
    forms = [request.tools, request.functions, request.prediction]
    if isinstance(request.response_format, SchemaFormat):
        forms.append(request.response_format.json_schema.schema)
    return sum(bytes_tokens(len(_encode(form))) for form in forms if form)
