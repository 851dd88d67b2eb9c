"""The catalog on SQLite: keys, spec, revision, one file shared by processes."""

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

from inferhub.core.errors import Conflict, NotFound, SetupError
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog import base
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import KeyRing, issue

PEPPER = b"0123456789abcdef"


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
    await catalog.create_key(issue("a", Role.FREE, PEPPER)[1])
    modes = {f.name: stat.S_IMODE(f.stat().st_mode) for f in (tmp_path / "data").iterdir()}
    assert modes == {"catalog.db": 0o600, "catalog.db-wal": 0o600, "catalog.db-shm": 0o600}


async def test_keys_are_stored_as_issued_and_revoked_for_good(catalog: Catalog) -> None:
    issued = [issue(f"key {role}", role, PEPPER, now=i) for i, role in enumerate(Role)]
    for _, key in reversed(issued):
        await catalog.create_key(key)
    assert await catalog.keys() == tuple(key for _, key in issued)

    revoked = await catalog.revoke_key(issued[0][1].id)
    assert revoked.revoked_at is not None
    assert await catalog.revoke_key(revoked.id) == revoked
    ring = KeyRing(await catalog.keys(), PEPPER)
    assert [ring.find(plaintext) is not None for plaintext, _ in issued] == [False, True, True]


async def test_an_id_is_never_overwritten(catalog: Catalog) -> None:
    _, key = issue("free", Role.FREE, PEPPER)
    await catalog.create_key(key)
    _, other = issue("admin", Role.ADMIN, PEPPER)
    before = await catalog.revision()
    with pytest.raises(Conflict, match=key.id):
        await catalog.create_key(type(key)(key.id, "admin", Role.ADMIN, other.digest, 0))
    assert await catalog.keys() == (key,)
    assert await catalog.revision() == before


@pytest.mark.parametrize("key_id", ["ih_nope", "' OR 1=1 --", "", "\x00", "x" * 10_000])
async def test_revoking_an_unknown_key(catalog: Catalog, key_id: str) -> None:
    _, key = issue("a", Role.FREE, PEPPER)
    await catalog.create_key(key)
    with pytest.raises(NotFound, match="no API key"):
        await catalog.revoke_key(key_id)
    assert await catalog.keys() == (key,)


async def test_there_is_a_most_number_of_keys(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.stores.catalog.sql.MAX_KEYS", 2)
    assert base.MAX_KEYS == 100_000
    for _ in range(2):
        await catalog.create_key(issue("a", Role.FREE, PEPPER)[1])
    with pytest.raises(SetupError, match="2 API keys"):
        await catalog.create_key(issue("a", Role.FREE, PEPPER)[1])


async def test_spec_is_compared_and_set(catalog: Catalog) -> None:
    first = await catalog.replace_spec("models: [] # ${KEY}", expected_revision=0)
    assert first == await catalog.spec()
    assert (first.text, first.revision) == ("models: [] # ${KEY}", 1)
    second = await catalog.replace_spec("models: []", expected_revision=1)
    assert second.revision == 2
    before = await catalog.revision()
    for stale in (0, 1, 3, -1):
        with pytest.raises(Conflict, match=f"revision 2, not {stale}"):
            await catalog.replace_spec("lost", expected_revision=stale)
    assert await catalog.spec() == second
    assert await catalog.revision() == before


async def test_of_many_writers_with_one_expectation_one_wins(catalog: Catalog) -> None:
    async def replace(i: int) -> int:
        try:
            return (await catalog.replace_spec(str(i), expected_revision=0)).revision
        except Conflict:
            return 0

    assert sorted(await asyncio.gather(*map(replace, range(20)))) == [0] * 19 + [1]


async def test_every_change_is_seen_in_the_revision_by_another_connection(
    catalog: Catalog, tmp_path: Path
) -> None:
    other = await open_catalog(url(tmp_path))
    try:
        seen = [await other.revision()]
        _, key = issue("a", Role.FREE, PEPPER)
        await catalog.create_key(key)
        seen.append(await other.revision())
        await catalog.revoke_key(key.id)
        seen.append(await other.revision())
        await catalog.replace_spec("x", 0)
        seen.append(await other.revision())
        assert seen == sorted(set(seen))
        assert [k.id for k in await other.keys()] == [key.id]
    finally:
        await other.close()


async def test_another_pepper_is_noticed(catalog: Catalog) -> None:
    await catalog.check_pepper(PEPPER)
    await catalog.check_pepper(PEPPER)
    with pytest.raises(SetupError, match="INFERHUB_PEPPER"):
        await catalog.check_pepper(b"another pepper...")


async def test_readers_cannot_write(catalog: Catalog) -> None:
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    with pytest.raises(OperationalError, match="readonly"):
        async with catalog._reader.connect() as connection:  # type: ignore[attr-defined]
            await connection.execute(text("DELETE FROM api_keys"))


async def test_pragmas(catalog: Catalog) -> None:
    from sqlalchemy import text

    async with catalog._writer.connect() as connection:  # type: ignore[attr-defined]
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [(await connection.execute(text(f"PRAGMA {name}"))).scalar() for name in names]
    assert found == ["wal", 1, 1, 10_000]


async def test_a_cancelled_change_leaves_the_writer_usable(catalog: Catalog) -> None:
    for delay in range(30):
        task = asyncio.create_task(catalog.create_key(issue(f"cut {delay}", Role.FREE, PEPPER)[1]))
        for _ in range(delay):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    _, key = issue("after", Role.FREE, PEPPER)
    await catalog.create_key(key)
    keys = await catalog.keys()
    assert key in keys
    assert await catalog.revision() == len(keys)


async def test_no_secret_reaches_the_disk(tmp_path: Path) -> None:
    catalog = await open_catalog(url(tmp_path))
    plaintext, key = issue("canary", Role.ADMIN, PEPPER)
    await catalog.check_pepper(PEPPER)
    await catalog.create_key(key)
    await catalog.replace_spec("models: [{name: a, options: {api_key: ${OPENAI_API_KEY}}}]", 0)

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
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog.keys import issue

async def main():
    print("up", flush=True)
    sys.stdin.readline()
    catalog = await open_catalog(sys.argv[1])
    for i in range(int(sys.argv[2])):
        await catalog.create_key(issue(f"{sys.argv[3]} {i}", Role.FREE, b"p" * 16)[1])
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
        assert await catalog.revision() == 120
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
        assert await catalog.revision() == len(names)
        await catalog.create_key(issue("after", Role.FREE, PEPPER)[1])
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
