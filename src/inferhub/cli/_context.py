"""Where a verb learns about its surroundings: settings, the server to talk to, the terminal.

The only file of the CLI that looks at the environment; it hands it to the one loader of settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferhub.cli._errors import ServerRefused
from inferhub.core.errors import InferHubError, ServerUnreachable

if TYPE_CHECKING:
    from inferhub.client import Client
    from inferhub.settings import Loaded, Settings
    from inferhub.stores.catalog.base import Catalog

KEY_PREFIX = "ih_"


def load(flags: Mapping[str, Any] | None = None) -> Loaded:
    """The settings of this process. Raises `SetupError` naming everything that is wrong."""
    from inferhub.settings import load_settings

    return load_settings(flags or {}, env=os.environ, cwd=Path.cwd())


def server_address(loaded: Loaded, url: str | None) -> str:
    """The flag, else `OPENAI_BASE_URL`, else where the settings say that a server listens."""
    from inferhub.client import base_address

    return base_address(url or loaded.environment.get("OPENAI_BASE_URL") or local_address(loaded.settings))


def local_address(settings: Settings) -> str:
    """How this machine itself reaches a server with these settings."""
    wildcard = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - translated, not listened on
    host = wildcard.get(settings.host, f"[{settings.host}]" if ":" in settings.host else settings.host)
    return f"http://{host}:{settings.port}"


def server_key(loaded: Loaded, key: str | None) -> str | None:
    """The flag, else `OPENAI_API_KEY`.

    A vendor's key is not taken where nothing points at that vendor: it would be shown to a stranger.
    """
    found = loaded.environment.get("OPENAI_API_KEY") or None
    if key or found is None:
        return key
    is_meant = found.startswith(KEY_PREFIX) or bool(loaded.environment.get("OPENAI_BASE_URL"))
    return found if is_meant else None


def client_for(url: str | None, key: str | None) -> Client:
    """A client, not yet open, of the server that the user means."""
    from inferhub.client import Client

    loaded = load()
    return Client(server_address(loaded, url), server_key(loaded, key))


@contextmanager
def server_errors() -> Iterator[None]:
    """What the server refuses leaves this block as `ServerRefused`."""
    try:
        yield
    except ServerUnreachable:
        raise
    except InferHubError as error:
        raise ServerRefused(error) from error


@asynccontextmanager
async def connect(url: str | None, key: str | None) -> AsyncIterator[Client]:
    """An open client of the server that the user means, inside `server_errors`."""
    client = client_for(url, key)
    with server_errors():
        async with client:
            yield client


@asynccontextmanager
async def open_catalog(settings: Settings) -> AsyncIterator[Catalog]:
    """The catalog of this machine. Not through `assembly`, whose services take a second to import."""
    from inferhub.stores import open_catalog as open_url

    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    catalog = await open_url(settings.catalog_url)
    try:
        yield catalog
    finally:
        await catalog.close()


def read_text(path: Path) -> str:
    """A file the user names; `-` is standard input. Raises `SetupError`."""
    from inferhub.core.errors import SetupError

    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is not UTF-8 text at byte {error.start}.") from error
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}.") from error


def write_new(path: Path, text: str) -> None:
    """A file that does not exist yet. Raises `SetupError`; nothing is ever overwritten."""
    from inferhub.core.errors import SetupError

    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise SetupError(f"{path} exists already; name another file, or remove it.") from error
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}.") from error
