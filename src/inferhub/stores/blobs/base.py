"""What a place for files can be asked. Asked by `keeper` alone, which decides what stays for how long.

A name is `TENANT/FILE`; both were made or checked by `keeper`, so no answer meets a path of a client's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Entry:
    """A file that is there."""

    name: str
    size_bytes: int
    written_s: float
    """Unix seconds."""


class Objects(Protocol):
    """Every method raises `StoreFailed` and nothing foreign."""

    async def write(self, name: str, data: bytes) -> None:
        """All of it or nothing: nobody reads a part."""

    async def read(self, name: str) -> tuple[Entry, bytes] | None:
        """None where it is not there."""

    async def remove(self, name: str) -> None:
        """It need not be there."""

    def entries(self) -> AsyncIterator[Entry]:
        """All files, in any order."""

    async def close(self) -> None: ...
