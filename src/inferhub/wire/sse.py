"""Reads server-sent events from raw bytes, however the network cut them.

Backends feed it what arrives and get the data of each complete event, or the event with its name. It
never decodes text, so a cut inside a UTF-8 character cannot hurt; it never reconnects, so `id:` and
`retry:` are read and dropped. `event_bytes` writes an event again, its data untouched.
"""

from __future__ import annotations

from typing import NamedTuple

from inferhub.core.errors import UpstreamFailed

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Bound of one line and of one event: far above any honest chunk, far below what would hurt."""

_BOM = b"\xef\xbb\xbf"
_MAX_NAME_BYTES = 256


class SseEvent(NamedTuple):
    """One event of a stream."""

    name: bytes
    """What its `event:` line said; empty without one."""
    data: bytes

    @property
    def raw(self) -> bytes:
        return event_bytes(self.data, self.name)


def event_bytes(data: bytes, name: bytes = b"") -> bytes:
    """An event as it is sent: the data as it stands, in the plainest framing."""
    head = b"event: " + name + b"\n" if name else b""
    if b"\n" in data:
        data = data.replace(b"\n", b"\ndata: ")
    return b"%bdata: %b\n\n" % (head, data)


class SseParser:
    """One event stream. `feed` each piece in order; an event that never gets its blank line is dropped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        """The start of a line whose end has not arrived yet."""
        self._data: list[bytes] = []
        """The `data:` lines of the event that has not ended yet."""
        self._data_bytes = 0
        self._name = b""
        self._skip_newline = False
        """True after a final CR: an LF that comes next belongs to it."""
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` completed. Raises `UpstreamFailed` past the size bound."""
        end = piece.rfind(b"\n\n")
        if end < 0 or self._data or self._name or self._skip_newline or b"\r" in piece:
            return [event.data for event in self.feed_events(piece)]
        if self._line:
            # The usual cut: the start of an event ended the piece before.
            end += len(self._line)
            piece = bytes(self._line) + piece
            self._line.clear()
        datas: list[bytes] = []
        for block in piece[:end].split(b"\n\n"):
            # The usual event, one line of data, costs a look instead of a scan line by line.
            if block.startswith(b"data: ") and b"\n" not in block:
                self._at_start = False
                self._check_size(len(block))
                datas.append(block[6:])
            else:
                datas += [event.data for event in self.feed_events(block + b"\n\n")]
        if end + 2 < len(piece):
            datas += [event.data for event in self.feed_events(piece[end + 2 :])]
        return datas

    def feed_events(self, piece: bytes) -> list[SseEvent]:
        """The same with names, for dialects that tell their events apart by them."""
        events: list[SseEvent] = []
        for line in self._complete_lines(piece):
            if line:
                self._read_field(line)
                continue
            if self._data:
                events.append(SseEvent(self._name, b"\n".join(self._data)))
                self._data.clear()
                self._data_bytes = 0
            self._name = b""
        return events

    def _complete_lines(self, piece: bytes) -> list[bytes]:
        """Cut at LF, CRLF and CR, and keep the unfinished rest for the next piece."""
        if self._skip_newline and piece:
            self._skip_newline = False
            piece = piece.removeprefix(b"\n")
        if b"\r" in piece:
            self._skip_newline = piece.endswith(b"\r")
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = piece.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._line:
                lines[0] = bytes(self._line) + lines[0]
                self._line.clear()
            self._check_size(max(map(len, lines)))
            if self._at_start:
                self._at_start = False
                lines[0] = lines[0].removeprefix(_BOM)
        self._line += rest
        self._check_size(len(self._line))
        return lines

    def _read_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check_size(self._data_bytes)
        elif name == b"event":
            self._name = value.removeprefix(b" ")[:_MAX_NAME_BYTES]

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_event_bytes:
            raise UpstreamFailed(f"The upstream sent an event of more than {self._max_event_bytes} bytes.")
