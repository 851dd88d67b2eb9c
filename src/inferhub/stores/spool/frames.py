"""One record as bytes: length, checksum, kind, progress entry, JSON. Pure; used by `spool` and `drain`.

A damaged stretch is stepped over, not the end: whatever can still be read is billed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import msgspec

from inferhub.core.usage import Begin, LostEvent, UsageEvent

BEGIN = 66  # "B"
CARRIED = 67  # "C": a begin said again at the head of a new segment
END = 69  # "E"
LOST = 76  # "L"

MAX_PAYLOAD_BYTES = 64 * 1024
_HEAD = struct.Struct("<II")
_PREFIX = struct.Struct("<BI")
_JSON_AT = _HEAD.size + _PREFIX.size
MAX_FRAME_BYTES = _HEAD.size + MAX_PAYLOAD_BYTES

Record = Begin | UsageEvent

encode: Any = msgspec.json.Encoder().encode
_decoders: dict[int, msgspec.json.Decoder[Any]] = {
    BEGIN: msgspec.json.Decoder(Begin),
    CARRIED: msgspec.json.Decoder(Begin),
    END: msgspec.json.Decoder(UsageEvent),
    LOST: msgspec.json.Decoder(LostEvent),
}


@dataclass(frozen=True, slots=True)
class Frame:
    """Where one good record lies in a piece of a segment."""

    start: int
    end: int
    kind: int
    entry: int


@dataclass(frozen=True, slots=True)
class Parsed:
    frames: list[Frame]
    end: int
    """Everything before it was read or stepped over."""
    damaged_bytes: int


def pack(kind: int, entry: int, body: bytes) -> bytes:
    payload = _PREFIX.pack(kind, entry) + body
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a ledger record of {len(payload)} bytes")
    return _HEAD.pack(len(payload), crc32(payload)) + payload


def decode(data: bytes, frame: Frame) -> Record:
    """Raises `msgspec.MsgspecError` for a record that another version wrote."""
    record: Record = _decoders[frame.kind].decode(data[frame.start + _JSON_AT : frame.end])
    return record


def parse(data: bytes, *, is_whole: bool, limit: int | None = None) -> Parsed:
    """The good frames of `data`. Unless it is whole, a last frame that is cut is left for later."""
    frames: list[Frame] = []
    view = memoryview(data)
    # Zeros at the end are what a power failure leaves; no frame ends in one, and they need no search.
    size = len(data.rstrip(b"\0")) if is_whole else len(data)
    at, damaged = 0, len(data) - size
    while at < size and (limit is None or len(frames) < limit):
        end = _frame_end(view, at)
        if end:
            kind, entry = _PREFIX.unpack_from(data, at + _HEAD.size)
            frames.append(Frame(at, end, kind, entry))
            at = end
            continue
        if not is_whole and size - at < MAX_FRAME_BYTES:
            break
        after = _next_frame(view, at + 1, size, is_whole=is_whole)
        damaged += after - at
        at = after
    return Parsed(frames, len(data) if at >= size else at, damaged)


def _frame_end(view: memoryview, at: int) -> int:
    """0 unless a good frame begins at `at`."""
    if at + _JSON_AT > len(view):
        return 0
    length, checksum = _HEAD.unpack_from(view, at)
    start = at + _HEAD.size
    end: int = start + length
    if not _PREFIX.size < length <= MAX_PAYLOAD_BYTES or end > len(view):
        return 0
    return end if crc32(view[start:end]) == checksum and view[start] in _decoders else 0


def _next_frame(view: memoryview, start: int, size: int, *, is_whole: bool) -> int:
    """Where the next good frame begins, or where looking for it goes on."""
    for at in range(start, size - _JSON_AT + 1):
        if _frame_end(view, at):
            return at
    return size if is_whole else max(size - MAX_FRAME_BYTES, start)
