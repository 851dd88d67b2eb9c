"""Is this file the file it must be? Hashes are remembered beside the file, so a start costs no hashing.

Called by `weights` (each resolve) and `pull`. Never changes a weight file; it only writes stamps.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from enum import StrEnum
from pathlib import Path

import msgspec

from inferhub.core.errors import SetupError
from inferhub.registry.index import WeightFile


class State(StrEnum):
    """Of a file, or of weights that are made of several."""

    MISSING = "missing"
    PRESENT = "present"
    CORRUPT = "corrupt"


class Stamp(msgspec.Struct, frozen=True):
    """A file that was hashed, as its inode looked then. Any write, copy or replacement changes one field."""

    sha256: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def check(path: Path, file: WeightFile, *, always_hash: bool = False, stamps: Path | None = None) -> State:
    """Compare with the index; hash only when the stamp, in `stamps` or beside the file, does not match.

    Raises `SetupError` if unreadable.
    """
    stamp_path = (stamps or path.parent) / f".{path.name}.verified"
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != file.size_bytes:
            return _corrupt(stamp_path)
        stamp = Stamp(file.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        if not always_hash and _read_stamp(stamp_path) == stamp:
            return State.PRESENT
        if sha256_of(path) != file.sha256:
            return _corrupt(stamp_path)
    except FileNotFoundError:
        return State.MISSING
    except OSError as error:
        raise SetupError(f"Cannot read the weight file {path}: {error.strerror}.") from error
    # A read-only cache is fine: it is then hashed at every start.
    with contextlib.suppress(OSError):
        stamp_path.parent.mkdir(parents=True, exist_ok=True)
        stamp_path.write_bytes(msgspec.json.encode(stamp))
    return State.PRESENT


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _corrupt(stamp_path: Path) -> State:
    # Without the stamp every later check sees the damage too, even one that leaves the inode's times alone.
    with contextlib.suppress(OSError):
        stamp_path.unlink()
    return State.CORRUPT


def _read_stamp(stamp_path: Path) -> Stamp | None:
    try:
        return msgspec.json.decode(stamp_path.read_bytes(), type=Stamp)
    except (OSError, msgspec.DecodeError):
        return None
