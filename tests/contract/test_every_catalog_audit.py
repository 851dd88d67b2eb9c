"""The audit log of every catalog: append-only, chained, and checked as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from inferhub.core.audit import GENESIS, Act
from inferhub.core.errors import CatalogCorrupt
from inferhub.stores import open_catalog
from inferhub.stores.catalog.base import Catalog

ACT = Act("cli", "test.act", "anything")
NOW = int(time.time())


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    fresh: str = request.getfixturevalue("postgres").fresh()
    return fresh


@pytest.fixture
async def catalog(url: str) -> AsyncIterator[Catalog]:
    catalog = await open_catalog(url)
    yield catalog
    await catalog.close()


async def test_every_act_is_in_the_log_newest_first(catalog: Catalog) -> None:
    acts = [
        Act(f"ih_{i}", "key.create", f"t{i}", ["ten_a", "ten_b", None][i % 3], {"ü": '"\\'}, f"req_{i}")
        for i in range(9)
    ]
    for act in acts:
        await catalog.record(act)
    log = await catalog.audit()
    assert [entry.act for entry in log] == acts[::-1]
    assert [entry.seq for entry in log] == list(range(9, 0, -1))
    assert log[-1].previous_hash == GENESIS
    assert all(newer.previous_hash == older.hash for newer, older in pairwise(log))
    assert all(abs(entry.at - NOW) < 10**5 for entry in log)
    assert [entry.seq for entry in await catalog.audit(tenant_id="ten_a")] == [7, 4, 1]
    assert [entry.seq for entry in await catalog.audit(tenant_id="ten_a", before_seq=7, limit=1)] == [4]
    assert [entry.seq for entry in await catalog.audit(before_seq=3)] == [2, 1]
    assert await catalog.audit(before_seq=-5) == await catalog.audit(before_seq=1) == ()
    assert await catalog.audit(before_seq=2**80) == log
    assert await catalog.revision() == 0
    assert await catalog.verify_audit() == 9


async def test_writers_at_once_never_fork_the_chain(url: str) -> None:
    catalogs = [await open_catalog(url) for _ in range(3)]
    await asyncio.gather(*(catalogs[i % 3].record(replace(ACT, target=str(i))) for i in range(30)))
    log = await catalogs[0].audit()
    assert sorted(int(entry.act.target) for entry in log) == list(range(30))
    assert await catalogs[1].verify_audit() == 30
    for catalog in catalogs:
        await catalog.close()


async def test_a_long_log_is_verified_in_pages(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.stores.catalog.sql.audit._VERIFY_PAGE", 4)
    for i in range(13):
        await catalog.record(ACT)
        assert await catalog.verify_audit() == i + 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET actor = 'x'",
        "UPDATE audit_log SET hash = hash",
        "DELETE FROM audit_log WHERE seq = 3",
        "sqlite: INSERT OR REPLACE INTO audit_log SELECT 2, 0, 'x', 'x', 'x', NULL, '{}', NULL, '', ''",
        "postgresql: TRUNCATE audit_log",
    ],
)
async def test_the_database_itself_refuses_to_change_the_log(
    catalog: Catalog, url: str, statement: str
) -> None:
    only, _, rest = statement.rpartition(": ")
    if only and not url.startswith(only):
        return
    for _ in range(3):
        await catalog.record(ACT)
    before = await catalog.audit()
    with pytest.raises(Exception, match="append-only"):
        await run_sql(catalog, rest)
    assert await catalog.audit() == before


@pytest.mark.parametrize(
    ("tampering", "finding"),
    [
        ("UPDATE audit_log SET actor = 'ih_other' WHERE seq = 3", "Entry 3 .* was changed"),
        ("UPDATE audit_log SET at = at + 1 WHERE seq = 1", "Entry 1 .* was changed"),
        ("UPDATE audit_log SET detail = 'no json' WHERE seq = 2", "Entry 2 .* was changed"),
        ("UPDATE audit_log SET tenant_id = 'ten_x' WHERE seq = 5", "Entry 5 .* was changed"),
        ("UPDATE audit_log SET previous_hash = hash WHERE seq = 4", "Entry 4 .* does not follow"),
        ("DELETE FROM audit_log WHERE seq = 2", "Entry 2 .* is missing"),
        ("DELETE FROM audit_log WHERE seq = 5", "Entry 5 .* is missing"),
        ("DELETE FROM audit_log", "Entry 1 .* is missing"),
        (
            "INSERT INTO audit_log SELECT 6, at, actor, action, target, tenant_id, detail, request_id, "
            "previous_hash, hash FROM audit_log WHERE seq = 5",
            "Entry 6 .* was put in",
        ),
        ("UPDATE catalog_state SET audit_hash = 'x'", "Entry 5 .* written last"),
    ],
)
async def test_tampering_past_the_triggers_is_found(
    catalog: Catalog, url: str, tampering: str, finding: str
) -> None:
    for i in range(5):
        await catalog.record(replace(ACT, target=str(i), tenant_id="ten_a"))
    await without_triggers(catalog, url)
    await run_sql(catalog, tampering)
    with pytest.raises(CatalogCorrupt, match=finding):
        await catalog.verify_audit()


async def run_sql(catalog: Catalog, statement: str) -> None:
    async with catalog._database.writer.begin() as connection:  # type: ignore[attr-defined]
        await connection.exec_driver_sql(statement)


async def without_triggers(catalog: Catalog, url: str) -> None:
    if url.startswith("sqlite"):
        for name in ("no_update", "no_delete", "no_replace"):
            await run_sql(catalog, f"DROP TRIGGER audit_log_{name}")
    else:
        await run_sql(catalog, "ALTER TABLE audit_log DISABLE TRIGGER ALL")
