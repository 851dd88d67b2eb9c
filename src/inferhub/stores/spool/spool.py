"""The ledger's write-ahead log: one synchronous append before a call is dispatched and one after it ended.

Written by the meter ring, emptied by `drain`. A segment begins with the calls that are open, so the
newest one alone tells a restart what a crash cut off. Never waits, except for the disk where fsync is on.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from inferhub.core.errors import Conflict, LedgerFull, SetupError
from inferhub.core.usage import Begin, UsageEvent
from inferhub.stores.spool.files import PARTIAL, Files
from inferhub.stores.spool.frames import BEGIN, CARRIED, END, encode, pack
from inferhub.stores.spool.progress import NO_ENTRY, Progress
from inferhub.stores.spool.recovery import Bill, free_of_charge, recover
from inferhub.stores.spool.segments import Segment, next_segment, segments_of

_log = logging.getLogger(__name__)

SEGMENT_BYTES = 8 * 1024**2
RESERVE_BYTES = 1024**2
"""Blocks held back on the disk, given up so that calls that have begun can still be written down."""
END_ROOM_BYTES = 2048
"""Kept free of `max_bytes` for each open call: its end, and its begin once more in a new segment."""
_QUIET_S = 10.0


class Spool:
    """One folder, one process, one event loop. Opening it recovers what an earlier process left."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        *,
        fsync: bool = False,
        bill: Bill = free_of_charge,
        segment_bytes: int = SEGMENT_BYTES,
        files: Files | None = None,
    ) -> None:
        """Raises `Conflict` where another process has the folder, `SetupError` where it cannot be used."""
        self.folder = folder
        self.fsync = fsync
        self._max_bytes = max_bytes
        self._segment_bytes = segment_bytes
        self.files = files or Files()
        self._open: dict[str, tuple[int, bytes]] = {}
        self._unwritten: deque[tuple[str, bytes]] = deque()
        self._is_torn = False
        self._is_folder_synced = True
        self._written = self._synced = 0
        self._syncing: asyncio.Task[None] | None = None
        self._told_at = -_QUIET_S
        self._descriptor = self._reserve = -1
        self._progress: Progress | None = None
        self.refused = 0
        """Calls that were not begun because they could not be written down."""
        try:
            # `parents` would make them with the default mode, and one names who calls.
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            self._lock = _lock(folder)
        except OSError as error:
            raise _unusable(folder, error) from error
        try:
            self._start(bill)
        except OSError as error:
            self.close()
            raise _unusable(folder, error) from error

    def _start(self, bill: Bill) -> None:
        for partial in self.folder.glob(f"*{PARTIAL}"):
            self.files.unlink(partial)
        self.segments: list[Segment] = segments_of(self.folder)
        self._progress = progress = Progress(self.folder / "progress", self.files)
        self.marks = progress.marks
        lost = recover(self.segments, progress, self.files, bill)
        self._used = sum(segment.size for segment in self.segments)
        self.lost = len(lost)
        # A new segment holds all their ends or does not exist: each is closed once, whenever this dies.
        # It is new even where nothing was lost: a position is never written twice.
        self._add_segment(b"".join(lost))
        self._hold_reserve()

    # --- what the meter ring asks -----------------------------------------------------------------

    def begin(self, begin: Begin) -> int:
        """The entry of `marks` that this call counts its deliveries in. Raises `LedgerFull`."""
        if self._unwritten or self._reserve < 0:
            self.retry()
        if not self.has_room:
            self._refuse(f"{self._used} of {self._max_bytes} bytes are in use")
        if self._progress is None:
            self._refuse("it is closed")
        entry = self._progress.take(begin.id)
        body = encode(begin)
        try:
            self._append(pack(BEGIN, entry, body))
        except OSError as error:
            self._progress.free(entry)
            self._refuse(error.strerror or "it cannot be written", error)
        self._open[begin.id] = (entry, body)
        return entry

    def end(self, event: UsageEvent) -> None:
        """Never fails: what the disk does not take waits in memory, and no new call begins meanwhile."""
        frame = pack(END, 0, encode(event))
        try:
            if self._unwritten:
                raise OSError(errno.ENOSPC, "earlier events wait")
            self._append(frame)
        except OSError:
            self._unwritten.append((event.id, frame))
            self._give_up_reserve()
            self._write_waiting()
            return
        self._close_call(event.id)

    async def sync(self) -> None:
        """Wait until all that was appended so far survives a power failure. Raises `LedgerFull`."""
        target = self._written
        while self._synced < target:
            if self._syncing is None:
                self._syncing = asyncio.create_task(self._sync())
            try:
                await asyncio.shield(self._syncing)
            except OSError as error:
                self._refuse(error.strerror or "it cannot be synced", error)

    # --- what the drain asks ----------------------------------------------------------------------

    def retry(self) -> None:
        """Write down what had to wait in memory, and hold the reserve again."""
        self._write_waiting()
        if self._reserve < 0 and not self._unwritten:
            try:
                self._hold_reserve()
            except OSError as error:
                self._tell(error.strerror or "no reserve can be held")

    def release(self, before: int) -> None:
        """Delete the segments that no consumer needs any more; never the newest."""
        while len(self.segments) > 1 and self.segments[0].number < before:
            try:
                self.files.unlink(self.segments[0].path)
            except OSError as error:
                self._tell(error.strerror or "a segment cannot be deleted")
                return
            self._used -= self.segments.pop(0).size

    @property
    def used_bytes(self) -> int:
        return self._used

    @property
    def has_room(self) -> bool:
        """Whether a call may begin; any thread may ask."""
        needed = END_ROOM_BYTES * (len(self._open) + 2)
        return not self._unwritten and self._reserve >= 0 and self._used + needed <= self._max_bytes

    @property
    def is_closed(self) -> bool:
        return self._progress is None

    @property
    def open_calls(self) -> int:
        return len(self._open)

    @property
    def unwritten(self) -> int:
        """Events that wait in memory for the disk."""
        return len(self._unwritten)

    def close(self) -> None:
        """Give the folder back; calls that are still open will be closed by whoever opens it next."""
        for descriptor in (self._descriptor, self._reserve, self._lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._reserve = self._lock = -1
        self._progress = None

    def clear(self) -> None:
        """Close for good, everything having been taken. The newest file stays, empty: numbers go on."""
        with suppress(OSError):
            self.release(self.segments[-1].number)
            self.files.truncate(self._descriptor, 0)
        self.close()

    # --- writing ----------------------------------------------------------------------------------

    def _append(self, frame: bytes) -> None:
        """All of the frame or nothing of it. Raises `OSError`."""
        if self._progress is None:
            raise OSError(errno.EBADF, "the ledger is closed")
        segment = self.segments[-1]
        if self._is_torn or segment.size >= self._segment_bytes:
            segment = self._rotate()
        try:
            written = self.files.write(self._descriptor, frame)
        except OSError:
            self._cut(segment)
            raise
        if written != len(frame):
            self._cut(segment)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        segment.size += written
        self._used += written
        self._written += written

    def _cut(self, segment: Segment) -> None:
        """Take away what a failed write may have left; where even that fails, go on in a new file."""
        try:
            self.files.truncate(self._descriptor, segment.size)
        except OSError:
            self._is_torn = True

    def _rotate(self) -> Segment:
        carried = (pack(CARRIED, entry, body) for entry, body in self._open.values())
        try:
            self._add_segment(b"".join(carried))
        except OSError as error:
            if self._is_torn:
                raise
            self._tell(error.strerror or "no new segment can be made")
        return self.segments[-1]

    def _add_segment(self, content: bytes) -> None:
        segment = next_segment(self.folder, self.segments[-1].number + 1 if self.segments else 1)
        if self.fsync and self._descriptor >= 0:
            self.files.fsync(self._descriptor)
        descriptor = self.files.write_whole(segment.path, content, fsync=self.fsync)
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._is_torn, self._is_folder_synced = descriptor, False, False
        segment.size = len(content)
        self._used += segment.size
        self.segments.append(segment)

    def _write_waiting(self) -> None:
        try:
            while self._unwritten:
                call_id, frame = self._unwritten[0]
                self._append(frame)
                self._unwritten.popleft()
                self._close_call(call_id)
        except OSError as error:
            self._tell(error.strerror or "it cannot be written")

    def _close_call(self, call_id: str) -> None:
        entry, _ = self._open.pop(call_id, (NO_ENTRY, b""))
        if self._progress:
            self._progress.free(entry)

    async def _sync(self) -> None:
        position, segment = self._written, self.segments[-1]
        # A copy, because the segment may be rotated and closed meanwhile.
        descriptor = os.dup(self._descriptor)
        try:
            if not self._is_folder_synced:
                await asyncio.to_thread(self.files.fsync_folder, self.folder)
                self._is_folder_synced = segment is self.segments[-1]
            await asyncio.to_thread(self.files.fsync, descriptor)
            self._synced = max(self._synced, position)
        except OSError:
            # The system may have dropped what it could not write and call a second try a success.
            self._is_torn = True
            raise
        finally:
            self._syncing = None
            os.close(descriptor)

    def _hold_reserve(self) -> None:
        descriptor = self.files.open(self.folder / "reserve", os.O_RDWR | os.O_CREAT)
        try:
            self.files.allocate(descriptor, RESERVE_BYTES)
        except OSError:
            # Some blocks may have been taken, and those that end calls need them more.
            with suppress(OSError):
                self.files.truncate(descriptor, 0)
            os.close(descriptor)
            raise
        self._reserve = descriptor

    def _give_up_reserve(self) -> None:
        if self._reserve < 0:
            return
        descriptor, self._reserve = self._reserve, -1
        try:
            self.files.truncate(descriptor, 0)
        except OSError as error:
            self._tell(error.strerror or "the reserve cannot be used")
        finally:
            os.close(descriptor)

    def _refuse(self, reason: str, cause: OSError | None = None) -> NoReturn:
        self.refused += 1
        self._tell(reason)
        raise LedgerFull(retry_after_s=5.0) from cause

    def _tell(self, reason: str) -> None:
        """At most one line every few seconds: a full disk must not be filled with lines about it."""
        if time.monotonic() - self._told_at < _QUIET_S:
            return
        self._told_at = time.monotonic()
        _log.error("the ledger in %s is in trouble: %s; %d events wait", self.folder, reason, self.unwritten)


def _lock(folder: Path) -> int:
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Conflict(f"Another process writes its ledger to {folder}.", param="spool_dir") from error
    return descriptor


def _unusable(folder: Path, error: OSError) -> SetupError:
    return SetupError(
        f"The ledger cannot be kept in {folder}: {error.strerror}. Choose another spool_dir.",
        param="spool_dir",
    )
