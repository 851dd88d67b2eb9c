"""A chat request as a processor's template takes it: messages with places for pictures, and the pictures."""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Any, NamedTuple

from inferhub.core.call import Media
from inferhub.core.errors import Invalid
from inferhub.modalities.chat import ChatRequest, ImagePart, RefusalPart, TextPart

MAX_PICTURES = 16


class Conversation(NamedTuple):
    messages: Sequence[dict[str, Any]]
    pictures: Sequence[Media]
    """In the order of their places; the field is where each stands in the request."""

    @property
    def bare(self) -> str:
        """Of a model without a template: what was said last."""
        return _texts(self.messages[-1]) if self.messages else ""


def conversation(request: ChatRequest) -> Conversation:
    """Raises `Invalid` for a picture that is not enclosed."""
    messages: list[dict[str, Any]] = []
    pictures: list[Media] = []
    for at, message in enumerate(request.messages):
        parts = message.content if isinstance(message.content, list) else [TextPart(message.content or "")]
        said: list[dict[str, str]] = []
        for position, part in enumerate(parts):
            if isinstance(part, ImagePart):
                param = f"messages[{at}].content[{position}].image_url.url"
                pictures.append(Media(param, _enclosed(part.image_url.url, param)))
                said.append({"type": "image"})
            elif isinstance(part, TextPart):
                said.append({"type": "text", "text": part.text})
            elif isinstance(part, RefusalPart):
                said.append({"type": "text", "text": part.refusal})
        # Few templates know OpenAI's newer name for a system message.
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": said})
    if len(pictures) > MAX_PICTURES:
        raise Invalid(
            f"'messages' has {len(pictures)} pictures; at most {MAX_PICTURES} are looked at.",
            param="messages",
        )
    return Conversation(messages, pictures)


def _texts(message: dict[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _enclosed(url: str, param: str) -> bytes:
    head, _, data = url.partition(",")
    if not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise Invalid(f"'{param}' must be a data URL with base64.", param=param)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"'{param}' is not valid base64.", param=param, code="invalid_base64") from error
