"""Pictures for a model that sees: decoded by the media room, and given to the engine as plain PNG.

The engine would read whatever it is given, with readers of its own, fetch addresses and start programs for
films; so it gets nothing that a client made. Called by `backend`.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import replace

import msgspec

from inferhub.core.call import Call
from inferhub.core.errors import Invalid
from inferhub.media import MediaPool
from inferhub.modalities.chat import ChatRequest, ImagePart, Message, Part

_MAX_SIDE = 1024
"""Encoders of such models look at a few hundred pixels; those that look at tiles, at about this many."""


async def with_plain_pictures(call: Call, pool: MediaPool) -> Call:
    """The call with each picture made anew. Raises `Invalid` for one that is none."""
    request = call.request
    if not isinstance(request, ChatRequest) or not _has_pictures(request):
        return call
    messages = [await _plain(message, f"messages[{at}]", pool) for at, message in enumerate(request.messages)]
    return replace(call, request=msgspec.structs.replace(request, messages=messages))


def _has_pictures(request: ChatRequest) -> bool:
    return any(
        isinstance(m.content, list) and any(isinstance(p, ImagePart) for p in m.content)
        for m in request.messages
    )


async def _plain(message: Message, where: str, pool: MediaPool) -> Message:
    if not isinstance(message.content, list):
        return message
    parts: list[Part] = []
    for position, part in enumerate(message.content):
        plain = part
        if isinstance(part, ImagePart):
            param = f"{where}.content[{position}].image_url.url"
            picture = await pool.decode_image(_enclosed(part, param), max_side=_MAX_SIDE, param=param)
            png = await pool.encode_image(picture, "png")
            url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            plain = msgspec.structs.replace(part, image_url=msgspec.structs.replace(part.image_url, url=url))
        parts.append(plain)
    return msgspec.structs.replace(message, content=parts)


def _enclosed(part: ImagePart, param: str) -> bytes:
    head, _, data = part.image_url.url.partition(",")
    if not head[:5].lower() == "data:" or not head.lower().endswith(";base64"):
        raise Invalid(f"'{param}' must be a data URL with base64.", param=param)
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid(f"'{param}' is not valid base64.", param=param, code="invalid_base64") from error
