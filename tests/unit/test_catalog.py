"""What only the catalog in an SQLite file has: its modes, its pragmas, one file shared by processes."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inferhub.core.audit import Act
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue

PEPPER = b"0123456789abcdef"
ACT = Act("cli", "key.create", "x")


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/data/catalog.db"


@pytest.fixture
async def catalog(tmp_path: Path) -> AsyncIterator[Catalog]:
    catalog = await open_catalog(url(tmp_path))
    yield catalog
    await catalog.close()


async def test_a_new_catalog_is_empty_and_private(catalog: Catalog, tmp_path: Path) -> None:
    assert await catalog.keys() == ()
    assert await catalog.spec() is None
    assert await catalog.revision() == 0
    await catalog.create_key(issue("a", Role.FREE, PEPPER)[1], ACT)
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "data").iterdir()}
    assert modes == {"catalog.db": 0o600, "catalog.db-wal": 0o600, "catalog.db-shm": 0o600}


async def test_readers_cannot_write(catalog: Catalog) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    with pytest.raises(OperationalError, match="readonly"):
        async with catalog._database.reader.connect() as connection:  # type: ignore[attr-defined]
            await connection.execute(text("DELETE FROM api_keys"))


async def test_pragmas(catalog: Catalog) -> None:
    from sqlalchemy import text

    async with catalog._database.writer.connect() as connection:  # type: ignore[attr-defined]
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [(await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in names]
    assert found == ["wal", 1, 1, 10_000]


async def test_no_secret_reaches_the_disk(tmp_path: Path) -> None:
    catalog = await open_catalog(url(tmp_path))
    plaintext, key = issue("canary", Role.ADMIN, PEPPER)
    await catalog.check_pepper(PEPPER)
    await catalog.create_key(key, ACT)
    await catalog.replace_spec("models: [{name: a, options: {api_key: ${OPENAI_API_KEY}}}]", 0, ACT)

    def on_disk() -> bytes:
        return b"".join(file.read_bytes() for file in (tmp_path / "data").iterdir())

    for content in (on_disk(), await _closed(catalog, on_disk)):
        assert key.id.encode() in content  # the search does find what is there
        assert key.digest in content
        assert b"${OPENAI_API_KEY}" in content
        for secret in (plaintext, plaintext[16:], PEPPER.decode()):
            assert secret.encode() not in content
            assert secret.encode().hex().encode() not in content


async def _closed(catalog: Catalog, on_disk: object) -> bytes:
    await catalog.close()
    assert callable(on_disk)
    content: bytes = on_disk()
    return content


WRITER = """
import asyncio, sys
from inferhub.core.audit import Act
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog.keys import issue

async def main():
    print("up", flush=True)
    sys.stdin.readline()
    catalog = await open_catalog(sys.argv[1])
    for i in range(int(sys.argv[2])):
        await catalog.create_key(issue(f"{sys.argv[3]} {i}", Role.FREE, b"p" * 16)[1], Act("cli", "key.create", str(i)))
        print(i, flush=True)
    await catalog.close()

asyncio.run(main())
"""


def writer(target: str, count: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, target, str(count), name]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


async def test_processes_may_create_the_file_and_write_at_once(tmp_path: Path) -> None:
    processes = [writer(url(tmp_path), 40, f"process {n}") for n in range(3)]
    for process in processes:
        go(process)
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, timeout=90)
        assert (process.returncode, errors) == (0, "")
    catalog = await open_catalog(url(tmp_path))
    try:
        names = {key.name for key in await catalog.keys()}
        assert names == {f"process {n} {i}" for n in range(3) for i in range(40)}
        assert await catalog.revision() == 120 == await catalog.verify_audit()
    finally:
        await catalog.close()


@pytest.mark.parametrize("kill_after", [0, 7, 31])
async def test_a_killed_writer_loses_nothing_it_reported(tmp_path: Path, kill_after: int) -> None:
    process = writer(url(tmp_path), 10_000, "w")
    go(process)
    assert process.stdout is not None
    for i in range(kill_after + 1):
        assert process.stdout.readline() == f"{i}\n"
    process.kill()
    rest = process.communicate(timeout=60)[0]
    reported = kill_after + 1 + len(re.findall(r"^\d+$", rest, re.MULTILINE))
    catalog = await open_catalog(url(tmp_path))
    try:
        names = [key.name for key in await catalog.keys()]
        assert {f"w {i}" for i in range(reported)} <= set(names)
        assert await catalog.revision() == len(names) == await catalog.verify_audit()
        await catalog.create_key(issue("after", Role.FREE, PEPPER)[1], ACT)
    finally:
        await catalog.close()


def test_importing_stores_is_cheap() -> None:
    heavy = ["sqlalchemy", "alembic", "aiosqlite"]
    code = (
        "import inferhub.stores, inferhub.stores.catalog.keys, inferhub.stores.catalog.base, sys, json;"
        f"print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == []
