"""Where a request holds pictures, files and sounds, what they must be, and how others take their places.

Pure but for one thread that decodes what is large. Used by `media`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import msgspec

from inferhub.core.call import Call
from inferhub.core.errors import Invalid
from inferhub.media import sniff
from inferhub.modalities.chat import AudioPart, ChatRequest, FilePart, ImagePart
from inferhub.modalities.moderation import ModerationImage, ModerationRequest
from inferhub.modalities.vision import VisionRequest

Path = tuple[str | int, ...]

PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_ACCEPTED = {
    "image": PICTURES,
    "file": frozenset({"application/pdf"}),
}
_WORDS = {"image": "a picture (PNG, JPEG, GIF or WebP)", "file": "a file of an accepted type (PDF)"}
_HEAD = re.compile(r"data:(?P<type>[a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9_-]+=[^;,]*)*;base64", re.IGNORECASE)
_MAX_HEAD_CHARS = 200
_LARGE_CHARS = 256 * 1024
"""From here on decoding would hold up the event loop for longer than a token."""


class Place(NamedTuple):
    """One URL in a request, or the base64 of a sound, which is never named by address."""

    path: Path
    url: str
    kind: Literal["image", "file", "audio"]

    @property
    def param(self) -> str:
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path)[1:]

    @property
    def is_data(self) -> bool:
        return self.kind == "audio" or self.url[:5].lower() == "data:"


def places_of(request: Any) -> Sequence[Place]:
    """In the order of the request. A file named by its id, or enclosed without a type, has no place."""
    if isinstance(request, ChatRequest):
        return _in_chat(request)
    if isinstance(request, ModerationRequest) and isinstance(request.input, list):
        return [
            Place(("input", at, "image_url", "url"), item.image_url.url, "image")
            for at, item in enumerate(request.input)
            if isinstance(item, ModerationImage)
        ]
    if isinstance(request, VisionRequest) and request.image is not None:
        return [Place(("image",), request.image, "image")]
    return ()


def _in_chat(request: ChatRequest) -> Sequence[Place]:
    found: list[Place] = []
    for at, message in enumerate(request.messages):
        if not isinstance(message.content, list):
            continue
        for position, part in enumerate(message.content):
            path: Path = ("messages", at, "content", position)
            if isinstance(part, ImagePart):
                found.append(Place((*path, "image_url", "url"), part.image_url.url, "image"))
            elif isinstance(part, AudioPart):
                found.append(Place((*path, "input_audio", "data"), part.input_audio.data, "audio"))
            elif isinstance(part, FilePart) and ":" in (part.file.file_data or "")[:_MAX_HEAD_CHARS]:
                found.append(Place((*path, "file", "file_data"), part.file.file_data or "", "file"))
    return found


def check_fetched(place: Place, content: bytes) -> str:
    """Its media type. Raises `Invalid` for content that is not what its place is for."""
    kind = sniff(content)
    if kind is None or kind not in _ACCEPTED[place.kind]:
        raise _wrong(place, f"does not lead to {_WORDS[place.kind]}")
    return kind


async def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{await _encoded(content)}"


async def with_content(place: Place, content: bytes) -> str:
    """The data URL of a place with another content, called what it was called."""
    return f"{place.url.partition(',')[0]},{await _encoded(content)}"


async def check_data_url(place: Place, most_bytes: int) -> bytes | None:
    """The picture in it; None for what is no picture. Raises `Invalid` for one that is not base64 or too
    large, and for a picture that is none."""
    declared, data = "", place.url
    if place.kind != "audio":
        declared, data = _parts(place)
    if len(data) * 3 // 4 > most_bytes:
        raise _wrong(place, f"has more than {most_bytes} bytes", code="file_too_large")
    content = await _aside(_decoded, data) if len(data) > _LARGE_CHARS else _decoded(data)
    if not content:
        raise _wrong(place, "is not valid base64", code="invalid_base64")
    # A file may be of any type that its model reads; what it calls a PDF must be one.
    if (place.kind == "image" or declared == "application/pdf") and sniff(content) not in _ACCEPTED[
        place.kind
    ]:
        raise _wrong(place, f"is not {_WORDS[place.kind]}")
    return content if place.kind == "image" else None


def _parts(place: Place) -> tuple[str, str]:
    """The declared type, and the base64."""
    head, comma, data = place.url.partition(",")
    match = _HEAD.fullmatch(head) if comma and len(head) <= _MAX_HEAD_CHARS else None
    if match is None:
        raise _wrong(place, "is not of the form data:TYPE;base64,DATA", code="invalid_base64")
    return (match["type"] or "").lower(), data


def _decoded(data: str) -> bytes:
    """Empty for what is not base64."""
    try:
        return binascii.a2b_base64(data, strict_mode=True)
    except (binascii.Error, ValueError):
        return b""


async def _encoded(content: bytes) -> str:
    is_large = len(content) > _LARGE_CHARS
    return (await _aside(base64.b64encode, content) if is_large else base64.b64encode(content)).decode()


async def _aside(function: Any, given: Any) -> Any:
    return await asyncio.to_thread(function, given)


def _wrong(place: Place, what: str, code: str = "invalid_file") -> Invalid:
    return Invalid(f"'{place.param}' {what}.", param=place.param, code=code)


# --- other URLs in their places ----------------------------------------------------------------


def with_pictures(call: Call, places: Sequence[Place], urls: Mapping[Path, str]) -> Call:
    """The call with these `data:` URLs for those at these paths, in its client's own dialect as well."""
    request, body = with_urls(call.request, call.body, urls)
    native = call.native
    if native is not None:
        # Every dialect encloses the same base64, each in words of its own.
        found = native.body
        for old, new in {(place.url, urls[place.path]) for place in places if place.path in urls}:
            enclosed = old.partition(",")[2].encode()
            if enclosed not in found:  # written in another way: the translation stands for it now
                return replace(call, request=request, body=body, native=None)
            found = found.replace(enclosed, new.partition(",")[2].encode())
        native = replace(native, body=found)
    return replace(call, request=request, body=body, native=native)


def with_urls(request: Any, body: bytes, urls: Mapping[Path, Any]) -> tuple[Any, bytes]:
    """Both with these at these paths, mostly URLs; everything else of the body stays as it was written."""
    return _put(request, urls), bytes(_put_raw(msgspec.Raw(body), urls))


def _steps(changes: Mapping[Path, Any]) -> Mapping[str | int, Mapping[Path, Any]]:
    """By their first step."""
    found: dict[str | int, dict[Path, Any]] = {}
    for path, url in changes.items():
        found.setdefault(path[0], {})[path[1:]] = url
    return found


def _put(value: Any, changes: Mapping[Path, Any]) -> Any:
    if () in changes:
        return changes[()]
    steps = _steps(changes)
    if isinstance(value, list):
        return [_put(item, steps[at]) if at in steps else item for at, item in enumerate(value)]
    return msgspec.structs.replace(
        value, **{str(name): _put(getattr(value, str(name)), below) for name, below in steps.items()}
    )


def _put_raw(raw: msgspec.Raw, changes: Mapping[Path, Any]) -> msgspec.Raw:
    if () in changes:
        return msgspec.Raw(msgspec.json.encode(changes[()]))
    steps = _steps(changes)
    if isinstance(next(iter(steps)), int):
        items = msgspec.json.decode(raw, type=list[msgspec.Raw])
        below: Any = [_put_raw(item, steps[at]) if at in steps else item for at, item in enumerate(items)]
    else:
        fields = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        below = fields | {str(name): _put_raw(fields[str(name)], inner) for name, inner in steps.items()}
    return msgspec.Raw(msgspec.json.encode(below))
