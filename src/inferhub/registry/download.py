"""Fetches pinned bytes into a `.part` file and goes on where an earlier try stopped, even a killed one.

Called by `pull`, under the cache's lock. Sources are http(s) and file URLs; only the pinned size and
sha256 are believed. Failures of the local disk stay `OSError`: `pull` knows what was needed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import aiohttp
from yarl import URL

from inferhub.core.errors import SetupError, WeightsCorrupt
from inferhub.registry.integrity import sha256_of
from inferhub.registry.progress import megabytes

_BLOCK_BYTES = 1 << 20
_MAX_REDIRECTS = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one download."""

    connect_s: float = 15.0
    idle_s: float = 60.0
    """Longest silence of the server."""
    total_s: float = 6 * 3600.0
    tries: int = 4
    """In a row that bring less than a megabyte each."""
    pause_s: float = 0.5
    """Before the second try; doubles each time."""


@dataclass(frozen=True, slots=True)
class Download:
    """What to fetch and where to."""

    url: str
    part: Path
    sha256: str
    size_bytes: int

    @property
    def source(self) -> str:
        """The URL as it may be shown: without credentials or query."""
        url = URL(self.url)
        return str(url.with_user(None).with_query(None).with_fragment(None) if url.host else url)


class _Interrupted(Exception):
    """This try ended early for a reason that another try may not meet."""


async def fetch(download: Download, on_bytes: Callable[[int], None], limits: Limits) -> None:
    """Return when `part` is complete and verified.

    Raises `SetupError` when the source cannot be reached and `WeightsCorrupt` when it has other content.
    """
    part = download.part
    fresh = _size(part) == 0
    await _complete(download, on_bytes, limits)
    if await _verified(download):
        return
    if not fresh:
        # The bytes an earlier try left may be the bad ones; they are gone now.
        await _complete(download, on_bytes, limits)
        if await _verified(download):
            return
    raise WeightsCorrupt(
        f"{download.source} has other content than expected: its sha256 is not {download.sha256}. Not used."
    )


async def _verified(download: Download) -> bool:
    good = await asyncio.to_thread(sha256_of, download.part) == download.sha256
    if not good:
        download.part.unlink()
    return good


async def _complete(download: Download, on_bytes: Callable[[int], None], limits: Limits) -> None:
    """Try until `part` has all its bytes, each try from where the last one stopped."""
    if _size(download.part) > download.size_bytes:
        download.part.unlink()
    failed = 0
    try:
        async with asyncio.timeout(limits.total_s), _session(limits) as session:
            while (before := _size(download.part)) < download.size_bytes:
                try:
                    await _stream(session, download, on_bytes)
                except _Interrupted as error:
                    failed = 1 if _size(download.part) - before >= _BLOCK_BYTES else failed + 1
                    if failed >= limits.tries:
                        raise SetupError(f"Downloading {download.source} failed: {error}.") from error
                    await asyncio.sleep(limits.pause_s * 2 ** (failed - 1))
    except TimeoutError as error:
        raise SetupError(f"{download.source} did not arrive within {limits.total_s:.0f} s.") from error


async def _stream(
    session: aiohttp.ClientSession, download: Download, on_bytes: Callable[[int], None]
) -> None:
    """One try. Raises `_Interrupted` if it ends early; what arrived is in `part`."""
    done = _size(download.part)
    async with _blocks(session, download, done) as (start, blocks):
        with download.part.open("ab" if start else "wb", buffering=0) as file:
            done = start
            on_bytes(done)
            async for block in blocks:
                if done + len(block) > download.size_bytes:
                    download.part.unlink()
                    raise WeightsCorrupt(
                        f"{download.source} sends more than its {megabytes(download.size_bytes)}. Not used."
                    )
                # Into the page cache, well under a millisecond; a thread could outlive a cancelled task.
                file.write(block)
                done += len(block)
                on_bytes(done)
    if done < download.size_bytes:
        raise _Interrupted(f"it ended after {done} of {download.size_bytes} bytes")


@asynccontextmanager
async def _blocks(
    session: aiohttp.ClientSession, download: Download, done: int
) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """(offset of the first byte, the bytes from there), from a file or a server."""
    if urlsplit(download.url).scheme == "file":
        async with aclosing(_file_blocks(download, done)) as blocks:
            yield done, blocks
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        async with session.get(download.url, headers=headers, max_redirects=_MAX_REDIRECTS) as response:
            start = _start(response, download, done)
            yield start, response.content.iter_chunked(_BLOCK_BYTES)
    except TimeoutError as error:
        raise _Interrupted("the server went silent") from error
    except aiohttp.ClientSSLError as error:
        raise SetupError(
            f"Downloading {download.source} failed: {_words(error)}. "
            "Where the network has its own certificate authority, set SSL_CERT_FILE to its bundle."
        ) from error
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects) as error:
        # Their own texts hold whole URLs, which may be signed.
        reason = "it is no valid URL" if isinstance(error, aiohttp.InvalidURL) else "too many redirects"
        raise SetupError(f"Downloading {download.source} failed: {reason}.") from error
    except (aiohttp.ClientError, ConnectionError) as error:
        raise _Interrupted(_words(error)) from error


def _start(response: aiohttp.ClientResponse, download: Download, done: int) -> int:
    """Where in the file this answer begins. Servers without ranges send the whole file again."""
    if response.status == 206 and done:
        wanted = f"bytes {done}-{download.size_bytes - 1}/"
        if response.headers.get("Content-Range", "").startswith(wanted):
            return done
    if response.status in {206, 416}:
        # Not the range that was asked for: begin again. A content of another size is found out then.
        download.part.unlink(missing_ok=True)
        raise _Interrupted(f"the server answered {response.status} to a range it does not have")
    if response.status in {408, 425, 429} or response.status >= 500:
        raise _Interrupted(f"the server answered {response.status}")
    if response.status != 200:
        raise SetupError(f"Downloading {download.source} failed: the server answered {response.status}.")
    if response.content_length not in {None, download.size_bytes}:
        raise WeightsCorrupt(
            f"{download.source} has {response.content_length} bytes, not {download.size_bytes}. Not used."
        )
    return 0


async def _file_blocks(download: Download, done: int) -> AsyncGenerator[bytes]:
    for block in _read(Path(unquote(urlsplit(download.url).path)), download.size_bytes, done):
        yield block
        await asyncio.sleep(0)  # a cancel gets through between blocks


def _read(path: Path, size_bytes: int, offset: int) -> Iterator[bytes]:
    try:
        found = path.stat().st_size
        if found != size_bytes:
            raise WeightsCorrupt(f"{path} has {found} bytes, not {size_bytes}. Not used.")
        with path.open("rb") as file:
            file.seek(offset)
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise SetupError(f"Cannot read {path}: {error.strerror}.") from error


def _session(limits: Limits) -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=limits.connect_s, connect=limits.connect_s, sock_read=limits.idle_s
    )
    # trust_env: the proxy and netrc variables that pip heeds too.
    return aiohttp.ClientSession(timeout=timeout, trust_env=True, auto_decompress=False)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:300]
