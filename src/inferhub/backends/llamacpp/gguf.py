"""Reads the header of a GGUF file: what has to be known before the engine loads it.

Only metadata is read, never a tensor; a damaged header is a `WeightsCorrupt`, not a crash later.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from inferhub.core.errors import WeightsCorrupt

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct(f"<{code}")
    for kind, code in {
        0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"
    }.items()
}  # fmt: skip
_MAX_KEYS = 10_000
_MAX_ITEMS = 10_000_000
_MAX_STRING_BYTES = 16 * 1024 * 1024

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of its model; None where it says nothing."""

    context_tokens: int | None
    """The length it was trained for."""
    vocabulary: int
    chat_template: str | None
    key_length: int | None
    """Size of one attention head's keys."""


def read_header(path: Path) -> Header:
    """Raises `WeightsCorrupt` when this is no GGUF file or its header is damaged."""
    try:
        with path.open("rb") as file:
            values = _read(file)
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise WeightsCorrupt(
            f"{path.name} is not a readable GGUF file ({error}). Fetch it again; a model that InferHub "
            f"knows by name is mended by `inferhub models pull`.",
            param="weights",
        ) from error
    return _header(values)


def _header(values: Mapping[str, Value]) -> Header:
    def number(name: str) -> int | None:
        found = values.get(f"{values.get('general.architecture')}.{name}")
        return found if isinstance(found, int) else None

    template = values.get("tokenizer.chat_template")
    heads, width = number("attention.head_count"), number("embedding_length")
    vocabulary = values.get("tokenizer.ggml.tokens")
    return Header(
        context_tokens=number("context_length"),
        vocabulary=vocabulary if isinstance(vocabulary, int) else 0,
        chat_template=template if isinstance(template, str) else None,
        key_length=number("attention.key_length") or (width // heads if width and heads else None),
    )


def _read(file: BinaryIO) -> dict[str, Value]:
    if file.read(4) != _MAGIC:
        raise ValueError("it does not begin with 'GGUF'")
    version, _tensors, keys = struct.unpack("<IQQ", _take(file, 20))
    if version not in (2, 3) or keys > _MAX_KEYS:
        raise ValueError(f"version {version} with {keys} keys")
    values: dict[str, Value] = {}
    for _ in range(keys):
        key = _string(file)
        (kind,) = struct.unpack("<I", _take(file, 4))
        if kind == _ARRAY:
            # How many there are is all that anyone asks of an array.
            values[key] = _skip_array(file)
        else:
            values[key] = _string(file) if kind == _STRING else _scalar(file, kind)
    return values


def _scalar(file: BinaryIO, kind: int) -> Value:
    form = _SCALARS[kind]
    value: Value = form.unpack(_take(file, form.size))[0]
    return value


def _string(file: BinaryIO) -> str:
    return _take(file, _length(file)).decode(errors="replace")


def _length(file: BinaryIO) -> int:
    (length,) = struct.unpack("<Q", _take(file, 8))
    if length > _MAX_STRING_BYTES:
        raise ValueError(f"a text of {length} bytes")
    return int(length)


def _skip_array(file: BinaryIO) -> int:
    kind, count = struct.unpack("<IQ", _take(file, 12))
    if count > _MAX_ITEMS:
        raise ValueError(f"a list of {count} items")
    if kind == _STRING:
        for _ in range(count):
            _take(file, _length(file))
    else:
        file.seek(count * _SCALARS[kind].size, 1)
    return int(count)


def _take(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it ends in the middle of its header")
    return data
