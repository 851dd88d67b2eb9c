"""Reads server-sent events from raw bytes, however the network cut them.

Backends feed it what arrives and get the data of each complete event. It never decodes text, so a cut
inside a UTF-8 character cannot hurt; it never reconnects, so `id:` and `retry:` are read and dropped.
"""

from __future__ import annotations

from inferhub.core.errors import UpstreamFailed

MAX_EVENT_BYTES = 4 * 1024 * 1024
"""Bound of one line and of one event: far above any honest chunk, far below what would hurt."""

_BOM = b"\xef\xbb\xbf"


class SseParser:
    """One event stream. `feed` each piece in order; an event that never gets its blank line is dropped."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        """The start of a line whose end has not arrived yet."""
        self._data: list[bytes] = []
        """The `data:` lines of the event that has not ended yet."""
        self._data_bytes = 0
        self._skip_newline = False
        """True after a final CR: an LF that comes next belongs to it."""
        self._at_start = True

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that `piece` completed. Raises `UpstreamFailed` past the size bound."""
        if (
            # The usual case, one whole event per packet, costs a few look-ups instead of a scan.
            piece.startswith(b"data: ")
            and not self._line
            and not self._data
            and piece.find(b"\n") == len(piece) - 2
            and piece.endswith(b"\n\n")
            and b"\r" not in piece
        ):
            self._at_start = self._skip_newline = False
            self._check_size(len(piece))
            return [piece[6:-2]]
        lines = self._complete_lines(piece)
        events: list[bytes] = []
        for line in lines:
            if line:
                self._read_field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data.clear()
                self._data_bytes = 0
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
        if not line.startswith(b"data"):
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check_size(self._data_bytes)

    def _check_size(self, size_bytes: int) -> None:
        if size_bytes > self._max_event_bytes:
            raise UpstreamFailed(f"The upstream sent an event of more than {self._max_event_bytes} bytes.")
