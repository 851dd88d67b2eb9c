"""One consumer on one spool: reads the next batch, offers it, remembers how far it came. Used by `drain`.

The end of a batch is on disk before the batch is offered: after a crash the same records come again under
the same token.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from inferhub.core.errors import InferHubError
from inferhub.stores.spool.cursor import Cursor, Position
from inferhub.stores.spool.frames import BEGIN, CARRIED, MAX_FRAME_BYTES, Parsed, Record, decode, parse
from inferhub.stores.spool.segments import Segment
from inferhub.stores.spool.spool import Spool

_log = logging.getLogger(__name__)

_WINDOW_BYTES = 2 * 1024**2
_THREAD_BYTES = 256 * 1024
"""A read beyond it may have to come from the disk, which must not stop the loop."""
_SLICE_RECORDS = 200
"""Decoded at a stretch, about half a millisecond; between two slices the loop serves requests."""


class Consumer(Protocol):
    """Where records go. `name` is also the name of its cursor file: keep it."""

    @property
    def name(self) -> str: ...

    @property
    def wants_begins(self) -> bool:
        """Whether it takes `Begin` too, or only `UsageEvent` (of which `LostEvent` is one)."""

    async def take(self, records: Sequence[Record], token: str) -> None:
        """Returns when it has them all; the same token comes with the same records. Raises `StoreFailed`."""


class Feed:
    """Moves one batch a `step`."""

    def __init__(self, spool: Spool, consumer: Consumer, batch_records: int) -> None:
        self._spool = spool
        self._consumer = consumer
        self.batch_records = batch_records
        self._cursor = Cursor(spool.folder, consumer.name, spool.files, fsync=spool.fsync)
        if self._cursor.position.segment > spool.segments[-1].number:
            _log.error("%s: segments were removed; %s begins again", spool.folder, consumer.name)
            self._cursor.position = Position()
        self._oldest: tuple[Position, int] | None = None
        self.is_failing = False
        """Whether the last batch did not get through."""

    @property
    def name(self) -> str:
        return self._consumer.name

    @property
    def segment(self) -> int:
        return self._cursor.position.segment

    @property
    def behind_bytes(self) -> int:
        at = self._cursor.position
        return sum(
            segment.size - (min(at.start, segment.size) if segment.number == at.segment else 0)
            for segment in self._spool.segments
            if segment.number >= at.segment
        )

    def oldest_ms(self) -> int | None:
        """When the oldest call began that still has to be taken; None while that cannot be read."""
        at = self._cursor.position
        if self._oldest is None or self._oldest[0] != at:
            try:
                found = self._look()
            except (OSError, msgspec.MsgspecError):
                return None
            if found is None:
                return None
            self._oldest = (at, found)
        return self._oldest[1]

    async def step(self) -> int | None:
        """How many records were moved, 0 where nothing is left, None where it failed."""
        try:
            moved = await self._move()
        except InferHubError as error:
            _log.warning("%s does not take usage: %s", self._consumer.name, error.message)
        except OSError as error:
            _log.warning("the spool %s cannot be read: %s", self._spool.folder, error.strerror)
        except Exception:
            # A bug in one store must neither end the gateway nor lose an event.
            _log.exception("%s failed to take usage", self._consumer.name)
        else:
            self.is_failing = False
            return moved
        self.is_failing = True
        return None

    async def _move(self) -> int:
        segment, at = self._place()
        if segment is None:
            if at != self._cursor.position:
                self._cursor.save(at)
            return 0
        stop = min(at.end or at.start + _WINDOW_BYTES, segment.size)
        if stop - at.start > _THREAD_BYTES:
            data = await asyncio.to_thread(segment.read, at.start, stop)
        else:
            data = segment.read(at.start, stop)
        is_repeated = at.end > 0
        limit = None if is_repeated else self.batch_records
        parsed = parse(data, is_whole=is_repeated or stop == segment.size, limit=limit)
        end = at.start + parsed.end
        if parsed.damaged_bytes:
            _log.error("%s: %d damaged bytes were stepped over", segment.path, parsed.damaged_bytes)
        records = await self._decode(segment, data, parsed)
        if records:
            self._save(Position(segment.number, at.start, end))
            await self._consumer.take(records, f"{segment.id}-{at.start}-{end}")
        self._save(Position(segment.number, end))
        return len(parsed.frames)

    async def _decode(self, segment: Segment, data: bytes, parsed: Parsed) -> list[Record]:
        records = []
        for count, frame in enumerate(parsed.frames, 1):
            if frame.kind == CARRIED or (frame.kind == BEGIN and not self._consumer.wants_begins):
                continue
            try:
                records.append(decode(data, frame))
            except msgspec.MsgspecError as error:
                _log.error("%s: a record is of another version: %s", segment.path, error)
            if count % _SLICE_RECORDS == 0:
                await asyncio.sleep(0)
        return records

    def _save(self, position: Position) -> None:
        if position != self._cursor.position:
            self._cursor.save(position)

    def _place(self) -> tuple[Segment | None, Position]:
        """Where to go on: in the segment of the cursor, or at the head of a later one."""
        at = self._cursor.position
        for segment in self._spool.segments:
            if segment.number > at.segment:
                at = Position(segment.number)
            if segment.number == at.segment and at.start < segment.size:
                return segment, at
        return None, at

    def _look(self) -> int | None:
        segment, at = self._place()
        if segment is None:
            return None
        data = segment.read(at.start, min(segment.size, at.start + 2 * MAX_FRAME_BYTES))
        frames = parse(data, is_whole=False, limit=1).frames
        return decode(data, frames[0]).at_ms if frames else None
