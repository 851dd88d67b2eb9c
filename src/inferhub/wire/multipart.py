"""Writes `multipart/form-data`, the form in which upstreams take files.

Remote backends call it. Pure: bytes of files go on untouched, and no name or value of a field can end its
part, because names are escaped and the boundary cannot be guessed.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

_EXTENSIONS = {
    "audio/wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/mp4": "m4a",
    "audio/webm": "webm",
    "audio/aac": "aac",
    "video/mp4": "mp4",
    "video/x-matroska": "mkv",
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/bmp": "bmp",
}
_MAX_STEM_CHARS = 64
_UNWANTED = re.compile(r"[^A-Za-z0-9_-]+", re.ASCII)
_KIND = re.compile(r"[a-z0-9.+-]{1,64}/[a-z0-9.+-]{1,64}", re.ASCII)
_UNKNOWN = "application/octet-stream"
# What browsers do with the three characters that would end a quoted name.
_ESCAPES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


@dataclass(frozen=True, slots=True)
class FormFile:
    field: str
    data: bytes = dataclasses.field(repr=False)
    kind: str = ""
    """Media type, by the content."""
    name: str = ""
    """What a client called it."""


def encode_form(fields: Iterable[tuple[str, str]], files: Iterable[FormFile]) -> tuple[str, bytes]:
    """(content type, body). A field may come several times."""
    boundary = f"inferhub-{secrets.token_hex(24)}"
    mark = b"--" + boundary.encode() + b"\r\n"
    pieces: list[bytes] = []
    for name, value in fields:
        head = f'content-disposition: form-data; name="{_escaped(name)}"\r\n\r\n'
        pieces += (mark, head.encode(), value.encode("utf-8", "replace"), b"\r\n")
    for file in files:
        kind = file.kind if _KIND.fullmatch(file.kind) else _UNKNOWN
        head = (
            f'content-disposition: form-data; name="{_escaped(file.field)}"; '
            f'filename="{file_name(file.name, file.kind)}"\r\ncontent-type: {kind}\r\n\r\n'
        )
        pieces += (mark, head.encode(), file.data, b"\r\n")
    pieces.append(b"--" + boundary.encode() + b"--\r\n")
    return f"multipart/form-data; boundary={boundary}", b"".join(pieces)


def file_name(name: str, kind: str) -> str:
    """A plain name whose ending says what the file is: many upstreams go by it, whatever the content."""
    base = name.replace("\\", "/").rpartition("/")[2]
    stem = _UNWANTED.sub("_", base.rpartition(".")[0] or base).strip("_")[:_MAX_STEM_CHARS]
    return f"{stem or _UNWANTED.sub('_', kind.partition('/')[0]) or 'file'}.{_EXTENSIONS.get(kind, 'bin')}"


def _escaped(name: str) -> str:
    return name.translate(_ESCAPES).encode("utf-8", "replace").decode()
