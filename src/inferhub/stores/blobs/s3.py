"""Files in a bucket of S3, or of a server that speaks its protocol, through `obstore`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.blobs.base import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping

_OPTIONS = ("endpoint", "region")
_DEFAULT_REGION = "us-east-1"
_TIMEOUT = timedelta(seconds=20)
_CONNECT_TIMEOUT = timedelta(seconds=3)
_RETRIES = 2
_RETRY_FOR = timedelta(seconds=10)


async def open_objects(url: str) -> S3Objects:
    """`s3://[KEY:SECRET@]BUCKET[/PREFIX][?endpoint=URL&region=NAME]`. Raises `SetupError`.

    Without a key, the places that the tools of AWS know are asked. A server that is away is no error.
    """
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(options.keys() - set(_OPTIONS))
    if unknown or not parts.hostname:
        problem = f"does not know the option {unknown[0]!r}" if unknown else "names no bucket"
        raise SetupError(
            f"blobs_url {problem}: s3://[KEY:SECRET@]BUCKET[/PREFIX][?endpoint=URL&region=NAME].",
            param="blobs_url",
        )
    # `hostname` is in small letters, as every bucket's name is.
    return S3Objects(_store(parts.hostname, parts.path.strip("/"), parts.username, parts.password, options))


def _store(
    bucket: str, prefix: str, key: str | None, secret: str | None, options: Mapping[str, str]
) -> S3Store:
    given: dict[str, Any] = {"region": options.get("region", _DEFAULT_REGION)}
    endpoint = options.get("endpoint")
    if endpoint:
        given["endpoint"] = endpoint
    if key and secret:
        given["access_key_id"], given["secret_access_key"] = unquote(key), unquote(secret)
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            client_options={
                "allow_http": endpoint is not None and endpoint.startswith("http://"),
                "timeout": _TIMEOUT,
                "connect_timeout": _CONNECT_TIMEOUT,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_FOR},
            **given,
        )
    except BaseError as error:
        raise SetupError("blobs_url is no address of a bucket.", param="blobs_url") from error


class S3Objects:
    """Answers `Objects`."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    async def write(self, name: str, data: bytes) -> None:
        try:
            await obstore.put_async(self._store, name, data)
        except BaseError as error:
            raise _failed(error) from error

    async def read(self, name: str) -> tuple[Entry, bytes] | None:
        try:
            found = await obstore.get_async(self._store, name)
            data = bytes(await found.bytes_async())
        except (NotFoundError, FileNotFoundError):
            return None
        except BaseError as error:
            raise _failed(error) from error
        return _entry(found.meta), data

    async def remove(self, name: str) -> None:
        try:
            await obstore.delete_async(self._store, name)
        except (NotFoundError, FileNotFoundError):
            return
        except BaseError as error:
            raise _failed(error) from error

    async def entries(self) -> AsyncIterator[Entry]:
        try:
            async for page in obstore.list(self._store):
                for meta in page:
                    yield _entry(meta)
        except BaseError as error:
            raise _failed(error) from error

    async def close(self) -> None:
        """The library keeps its connections, and drops them with the store."""


def _entry(meta: Any) -> Entry:
    return Entry(meta["path"], meta["size"], meta["last_modified"].timestamp())


def _failed(error: BaseError) -> StoreFailed:
    """Without the library's words: they hold addresses."""
    return StoreFailed(f"The bucket of blobs_url does not answer as it should ({type(error).__name__}).")
