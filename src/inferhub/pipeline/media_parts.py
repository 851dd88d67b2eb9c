"""Where a request holds pictures, files and sounds, what they must be, and how others take their places.

Pure but for one thread that decodes what is large. Used by `media`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from inferhub.core.errors import Invalid
from inferhub.modalities.chat import AudioPart, ChatRequest, FilePart, ImagePart
from inferhub.modalities.moderation import ModerationImage, ModerationRequest

Path = tuple[str | int, ...]

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
)
_ACCEPTED = {
    "image": frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"}),
    "file": frozenset({"application/pdf"}),
}
_WORDS = {"image": "a picture (PNG, JPEG, GIF or WebP)", "file": "a file of an accepted type (PDF)"}
_HEAD = re.compile(r"data:(?P<type>[a-z0-9.+-]+/[a-z0-9.+-]+)?(?:;[a-z0-9_-]+=[^;,]*)*;base64", re.IGNORECASE)
_MAX_HEAD_CHARS = 200
_SNIFFED_CHARS = 64
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


def sniff(content: bytes) -> str | None:
    """What the content itself says that it is, whatever anybody calls it."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if content.startswith(signature)), None)


async def data_url(place: Place, content: bytes) -> str:
    """Raises `Invalid` for content that is not what its place is for."""
    kind = sniff(content)
    if kind is None or kind not in _ACCEPTED[place.kind]:
        raise _wrong(place, f"does not lead to {_WORDS[place.kind]}")
    encoded = (
        await _aside(base64.b64encode, content) if len(content) > _LARGE_CHARS else base64.b64encode(content)
    )
    return f"data:{kind};base64,{encoded.decode()}"


async def check_data_url(place: Place, most_bytes: int) -> None:
    """Raises `Invalid` for one that is not base64, too large, or a picture that is none."""
    declared, data = "", place.url
    if place.kind != "audio":
        declared, data = _parts(place)
    if len(data) * 3 // 4 > most_bytes:
        raise _wrong(place, f"has more than {most_bytes} bytes", code="file_too_large")
    is_valid = await _aside(_is_base64, data) if len(data) > _LARGE_CHARS else _is_base64(data)
    if not is_valid:
        raise _wrong(place, "is not valid base64", code="invalid_base64")
    # A file may be of any type that its model reads; what it calls a PDF must be one.
    if place.kind == "image" or declared == "application/pdf":
        kind = sniff(base64.b64decode(data[:_SNIFFED_CHARS]))
        if kind not in _ACCEPTED[place.kind]:
            raise _wrong(place, f"is not {_WORDS[place.kind]}")


def _parts(place: Place) -> tuple[str, str]:
    """The declared type, and the base64."""
    head, comma, data = place.url.partition(",")
    match = _HEAD.fullmatch(head) if comma and len(head) <= _MAX_HEAD_CHARS else None
    if match is None:
        raise _wrong(place, "is not of the form data:TYPE;base64,DATA", code="invalid_base64")
    return (match["type"] or "").lower(), data


def _is_base64(data: str) -> bool:
    try:
        return bool(binascii.a2b_base64(data, strict_mode=True))
    except (binascii.Error, ValueError):
        return False


async def _aside(function: Any, given: Any) -> Any:
    return await asyncio.to_thread(function, given)


def _wrong(place: Place, what: str, code: str = "invalid_file") -> Invalid:
    return Invalid(f"'{place.param}' {what}.", param=place.param, code=code)


# --- other URLs in their places ----------------------------------------------------------------


def with_urls(request: Any, body: bytes, urls: Mapping[Path, str]) -> tuple[Any, bytes]:
    """Both with these texts at these paths; everything else of the body stays as it was written."""
    return _put(request, urls), bytes(_put_raw(msgspec.Raw(body), urls))


def _steps(changes: Mapping[Path, str]) -> Mapping[str | int, Mapping[Path, str]]:
    """By their first step."""
    found: dict[str | int, dict[Path, str]] = {}
    for path, url in changes.items():
        found.setdefault(path[0], {})[path[1:]] = url
    return found


def _put(value: Any, changes: Mapping[Path, str]) -> Any:
    if () in changes:
        return changes[()]
    steps = _steps(changes)
    if isinstance(value, list):
        return [_put(item, steps[at]) if at in steps else item for at, item in enumerate(value)]
    return msgspec.structs.replace(
        value, **{str(name): _put(getattr(value, str(name)), below) for name, below in steps.items()}
    )


def _put_raw(raw: msgspec.Raw, changes: Mapping[Path, str]) -> msgspec.Raw:
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
