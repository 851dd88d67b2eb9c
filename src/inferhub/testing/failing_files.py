"""The spool's files with a fault at the n-th operation that changes one: an error, half a write, or death.

For sweeps: run with n = 1, 2, 3 … until a run meets no fault any more, and every write point was tried.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from inferhub.stores.spool.files import Files

Fault = Literal["error", "half", "kill", "half_kill"]
"""`half` writes the first half of the data before the fault; other operations do nothing before it."""


class FailingFiles(Files):
    """Counts from 1. `for_good` goes on failing after the first time, like a full disk."""

    def __init__(
        self, at: int = 0, fault: Fault = "error", *, for_good: bool = False, error: int = errno.ENOSPC
    ) -> None:
        self._at = at
        self._fault = fault
        self._for_good = for_good
        self._error = error
        self.operations = 0
        self.has_failed = False

    def fail_from_now(self, error: int) -> None:
        """Every operation, until `mend`."""
        self._at, self._for_good, self._error = self.operations + 1, True, error

    def mend(self) -> None:
        """The disk works again."""
        self._at = 0

    def open(self, path: Path, flags: int) -> int:
        self._meet()
        return super().open(path, flags)

    def write(self, descriptor: int, data: bytes) -> int:
        self._meet(lambda: super(FailingFiles, self).write(descriptor, data[: len(data) // 2]))
        return super().write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        self._meet()
        super().truncate(descriptor, size)

    def allocate(self, descriptor: int, size: int) -> None:
        self._meet()
        super().allocate(descriptor, size)

    def fsync(self, descriptor: int) -> None:
        self._meet()
        super().fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        self._meet()
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._meet()
        super().unlink(path)

    def _meet(self, half: Callable[[], object] = lambda: None) -> None:
        self.operations += 1
        is_due = self.operations == self._at or (self._for_good and 0 < self._at < self.operations)
        if not is_due:
            return
        self.has_failed = True
        if self._fault.startswith("half"):
            half()
        if self._fault.endswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self._error, os.strerror(self._error))
