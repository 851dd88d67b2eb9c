"""Files in a folder of this machine, one folder inside for each tenant."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.blobs.base import Entry

_PARTIAL = ".partial"

T = TypeVar("T")


async def open_objects(url: str) -> FileObjects:
    """`file:///ABSOLUTE/PATH`; the folder is made. Raises `SetupError`."""
    path = Path(url.removeprefix("file://"))
    if not path.is_absolute():
        raise SetupError("blobs_url needs an absolute path: file:///ABSOLUTE/PATH.", param="blobs_url")
    try:
        await asyncio.to_thread(path.mkdir, mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"The folder {path} of blobs_url cannot be made: {error.strerror}.") from error
    return FileObjects(path)


class FileObjects:
    """Answers `Objects`. Every gateway of a machine may use the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def write(self, name: str, data: bytes) -> None:
        await _done(self._write, name, data)

    async def read(self, name: str) -> tuple[Entry, bytes] | None:
        return await _done(self._read, name)

    async def remove(self, name: str) -> None:
        await _done(lambda: (self._folder / name).unlink(missing_ok=True))

    async def entries(self) -> AsyncIterator[Entry]:
        for entry in await _done(self._entries):
            yield entry

    async def close(self) -> None:
        """Nothing is open."""

    # --- in a thread ---------------------------------------------------------------------------

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_name(f"{secrets.token_hex(8)}{_PARTIAL}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def _read(self, name: str) -> tuple[Entry, bytes] | None:
        try:
            with (self._folder / name).open("rb") as file:
                status = os.fstat(file.fileno())
                return Entry(name, status.st_size, status.st_mtime), file.read()
        except FileNotFoundError:
            return None

    def _entries(self) -> list[Entry]:
        """What a killed process left half written is found here too, and so removed in the end."""
        found: list[Entry] = []
        for folder in _inside(self._folder):
            if not folder.is_dir(follow_symlinks=False):
                continue
            for file in _inside(Path(folder.path)):
                try:
                    status = file.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed by another process meanwhile
                found.append(Entry(f"{folder.name}/{file.name}", status.st_size, status.st_mtime))
        return found


def _inside(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return list(entries)


async def _done(work: Callable[..., T], *given: object) -> T:
    try:
        return await asyncio.to_thread(work, *given)
    except OSError as error:
        raise StoreFailed(f"The folder of blobs_url does not work: {error.strerror}.") from error
