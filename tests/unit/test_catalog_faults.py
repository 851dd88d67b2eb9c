"""The catalog when the file or the disk is not as it should be: a clear error, never a lost row."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from inferhub.core.audit import Act
from inferhub.core.errors import CatalogCorrupt, SetupError, StoreFailed
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog import sqlite as sqlite_store
from inferhub.stores.catalog.keys import issue

PEPPER = b"0123456789abcdef"
ACT = Act("cli", "key.create", "x")


async def filled(path: Path, keys: int = 200) -> None:
    catalog = await open_catalog(f"sqlite:///{path}")
    for i in range(keys):
        await catalog.create_key(issue(f"key {i}", Role.FREE, PEPPER)[1], ACT)
    await catalog.close()


@pytest.mark.parametrize("url", ["mysql://x/y", "redis://", "catalog.db", "", "sqllite:///x"])
async def test_an_unknown_scheme_names_those_there_are(url: str) -> None:
    with pytest.raises(SetupError, match="available: postgresql, sqlite") as caught:
        await open_catalog(url)
    assert caught.value.param == "catalog_url"
    assert ("Did you mean 'sqlite'?" in caught.value.message) == (url == "sqllite:///x")


@pytest.mark.parametrize("url", ["postgres://me:sekret@h/db", "me:sekret@h/db", "postgresql:me:sekret@h"])
async def test_an_address_that_was_mistyped_does_not_give_its_password_away(url: str) -> None:
    with pytest.raises(SetupError) as caught:
        await open_catalog(url)
    assert "sekret" not in caught.value.message


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://x"])
async def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="names no file"):
        await open_catalog(url)


@pytest.mark.parametrize("name", ["a b.db", "a%20b?c=d#e.db", "ü.db"])
async def test_odd_file_names_are_taken_literally(tmp_path: Path, name: str) -> None:
    await filled(tmp_path / name, keys=1)
    assert (tmp_path / name).stat().st_size > 0


@pytest.mark.parametrize("junk", [b"not a database, only text " * 400, b"\x00" * 9000, os.urandom(9000)])
async def test_a_file_that_is_no_database(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(junk)
    with pytest.raises(CatalogCorrupt, match=f"mv {path}"):
        await open_catalog(f"sqlite:///{path}")
    assert path.read_bytes() == junk


async def test_an_overwritten_page_is_found_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await filled(path)
    content = path.read_bytes()
    assert len(content) > 40_000
    # Only the last page: opening alone would not read it.
    path.write_bytes(content[:-4096] + b"\xff" * 4096)
    with pytest.raises(CatalogCorrupt, match="Restore it from a backup"):
        await open_catalog(f"sqlite:///{path}")


async def test_a_file_damaged_while_it_is_open(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await filled(path)
    catalog = await open_catalog(f"sqlite:///{path}")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    try:
        with pytest.raises(CatalogCorrupt):
            await catalog.keys()
    finally:
        await catalog.close()


async def test_an_unknown_role_in_the_table_is_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await filled(path, keys=1)
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE api_keys SET role = 'root'")
    connection.close()
    catalog = await open_catalog(f"sqlite:///{path}")
    try:
        with pytest.raises(CatalogCorrupt, match="'root'"):
            await catalog.keys()
    finally:
        await catalog.close()


async def test_a_writer_that_never_ends_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_store, "BUSY_TIMEOUT_S", 0.1)
    path = tmp_path / "catalog.db"
    catalog = await open_catalog(f"sqlite:///{path}")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        assert await catalog.keys() == ()  # readers are not held up
        with pytest.raises(StoreFailed) as caught:
            await catalog.create_key(issue("a", Role.FREE, PEPPER)[1], ACT)
        assert caught.value.wire_code == "catalog_busy"
        assert caught.value.retryable
        blocker.execute("ROLLBACK")
        await catalog.create_key(issue("a", Role.FREE, PEPPER)[1], ACT)
    finally:
        blocker.close()
        await catalog.close()


async def test_a_new_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")  # against this lock SQLite itself would not wait
    opening = asyncio.create_task(open_catalog(f"sqlite:///{path}"))
    try:
        await asyncio.wait({opening}, timeout=0.5)
        assert not opening.done()
    finally:
        blocker.close()
        await (await opening).close()


async def test_a_path_that_cannot_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "catalog.db"):
        with pytest.raises(SetupError, match="cannot be opened for writing"):
            await open_catalog(f"sqlite:///{path}")


# Imports and migrates once before it gives up its rights: afterwards it may be unable to read code.
CHILD = """
import asyncio, os, resource, signal, sys, json
from inferhub.core.audit import Act
from inferhub.core.errors import InferHubError
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog.keys import issue

async def main(warm_up, target, limit):
    await (await open_catalog(warm_up)).close()
    if limit == "drop":
        if os.geteuid() == 0:
            os.setuid(65534)
    else:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    catalog, created, failures = None, 0, []
    try:
        catalog = await open_catalog(target)
        if limit != "drop":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
        while created < 5000:
            await catalog.create_key(issue("x" * 100, Role.FREE, b"p" * 16)[1], Act("cli", "key.create", "x"))
            created += 1
    except InferHubError as error:
        failures.append([type(error).__name__, error.wire_code, error.message])
    if catalog is not None and limit != "drop":
        readable = len(await catalog.keys())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await catalog.create_key(issue("after", Role.FREE, b"p" * 16)[1], Act("cli", "key.create", "x"))
        await catalog.close()
        failures.append(readable)
    print(json.dumps([created, failures]))

asyncio.run(main(*sys.argv[1:]))
"""


async def child(tmp_path: Path, target: Path, limit: str) -> tuple[int, list[object]]:
    command = [sys.executable, "-c", CHILD, f"sqlite:///{tmp_path}/warm-up.db", f"sqlite:///{target}", limit]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    created, failures = json.loads(done.stdout)
    return created, failures


async def test_a_full_disk_refuses_the_write_and_keeps_the_rest(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the disk; SQLite sees the same failing write."""
    path = tmp_path / "full" / "catalog.db"
    created, failures = await child(tmp_path, path, limit="600000")
    (name, code, message), readable = failures  # type: ignore[misc]
    assert (name, code) == ("SetupError", "disk_full")
    assert "Free space" in message
    assert readable == created > 10
    catalog = await open_catalog(f"sqlite:///{path}")
    try:
        assert len(await catalog.keys()) == created + 1  # it went on once there was room
        assert await catalog.revision() == created + 1
    finally:
        await catalog.close()


async def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "ro"
    folder.mkdir(mode=0o555)
    _, failures = await child(tmp_path, folder / "catalog.db", limit="drop")
    assert failures[0][0] == "SetupError"  # type: ignore[index]
    assert "Permission denied" in failures[0][2]  # type: ignore[index]
    assert "data_dir" in failures[0][2]  # type: ignore[index]
