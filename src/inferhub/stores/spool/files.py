"""Every operation of this room that changes a file, behind one seam. Reading is not among them.

`testing.failing_files` fails or kills at the n-th of them, so that no write point has to be listed by hand.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path


class Files:
    """The operating system's. Raises `OSError`."""

    def open(self, path: Path, flags: int) -> int:
        return os.open(path, flags | os.O_CLOEXEC, 0o600)

    def write(self, descriptor: int, data: bytes) -> int:
        return os.write(descriptor, data)

    def truncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)

    def allocate(self, descriptor: int, size: int) -> None:
        """Take the blocks now: a later write into them cannot find the disk full."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        elif os.pwrite(descriptor, bytes(size), 0) != size:  # macOS
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fsync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        source.replace(target)

    def unlink(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def write_whole(self, path: Path, data: bytes, *, fsync: bool) -> int:
        """Create `path` with this content or not at all; returns its descriptor, open for appending."""
        partial = path.with_name(path.name + PARTIAL)
        descriptor = self.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        try:
            if data and self.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if data and fsync:
                self.fsync(descriptor)
            # Nothing may fail after this: the caller would go on as if the file were not there.
            self.rename(partial, path)
        except OSError:
            os.close(descriptor)
            with suppress(OSError):
                self.unlink(partial)
            raise
        return descriptor

    def fsync_folder(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(descriptor)
        finally:
            os.close(descriptor)


PARTIAL = ".partial"
