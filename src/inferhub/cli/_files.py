"""Files that people name on the command line: read whole, written whole, never over one that is there."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

from inferhub.core.errors import SetupError


def read_bytes(path: Path) -> bytes:
    """A file, or standard input for `-`. Raises `SetupError`."""
    try:
        return sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.") from error


def output(path: Path | None, *, force: bool, example: str) -> Path | None:
    """Where the result goes; None is standard output. Raises `SetupError` before any work is done."""
    if path is None or str(path) == "-":
        if sys.stdout.isatty():
            raise SetupError(f"Say where the result goes, for example `-o {example}`.", param="output")
        return None
    if path.exists() and not force:
        raise SetupError(f"{path} exists already; name another file, or add --force.", param="output")
    if not path.absolute().parent.is_dir():
        raise SetupError(f"{path.absolute().parent} is not a folder.", param="output")
    return path


async def write_pieces(path: Path | None, pieces: AsyncIterator[bytes]) -> int:
    """Bytes written, as they come. A file that could not be completed is not left behind."""
    if path is None:
        size = 0
        async for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
            size += len(piece)
        return size
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            async for piece in pieces:
                file.write(piece)
            size = file.tell()
        partial.replace(path)
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)
    return size


async def once(data: bytes) -> AsyncIterator[bytes]:
    """For `write_pieces`, what is there already."""
    yield data
