"""Every change of the catalog fails at its n-th statement, for every n: nothing is ever half-written."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from inferhub.core.audit import Act
from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Quota, Unit, Window
from inferhub.core.tenancy import Project, Role, Tenant, User
from inferhub.stores import open_catalog
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue, reissue

PEPPER = b"0123456789abcdef"
NOW = int(time.time())
ACT = Act("cli", "test.act", "anything")

TENANT = Tenant("ten_a", "a", NOW)
PROJECT = Project("prj_a", "ten_a", "a", NOW)
USER = User("usr_a", "ten_a", "prj_a", "https://id.example", "alice", "Alice", Role.FREE, NOW)
KEY = issue("a", Role.FREE, PEPPER, tenant_id="ten_a", project_id="prj_a")[1]
QUOTA = Quota("quo_a", "ten_a", "tenant", "ten_a", Unit.TOKENS, Window.DAY, 100)

CHANGES: dict[str, Callable[[Catalog], Awaitable[object]]] = {
    "create_tenant": lambda catalog: catalog.create_tenant(replace(TENANT, id="ten_b", name="b"), ACT),
    "replace_tenant": lambda catalog: catalog.replace_tenant(replace(TENANT, name="c"), ACT),
    "create_project": lambda catalog: catalog.create_project(replace(PROJECT, id="prj_b", name="b"), ACT),
    "replace_project": lambda catalog: catalog.replace_project(replace(PROJECT, disabled_at=NOW), ACT),
    "create_user": lambda catalog: catalog.create_user(replace(USER, id="usr_b", subject="bob"), ACT),
    "replace_user": lambda catalog: catalog.replace_user(replace(USER, role=Role.TENANT_ADMIN), ACT),
    "create_key": lambda catalog: catalog.create_key(issue("b", Role.FREE, PEPPER)[1], ACT),
    "revoke_key": lambda catalog: catalog.revoke_key(KEY.id, ACT),
    "rotate_key": lambda catalog: catalog.rotate_key(KEY.id, reissue(KEY, PEPPER)[1], NOW + 10**6, ACT),
    "note_key_use": lambda catalog: catalog.note_key_use({KEY.id: NOW}),
    "set_quota": lambda catalog: catalog.set_quota(replace(QUOTA, id="quo_b", window=Window.MONTH), ACT),
    "set_quota again": lambda catalog: catalog.set_quota(replace(QUOTA, limit=7), ACT),
    "delete_quota": lambda catalog: catalog.delete_quota(QUOTA.id, ACT),
    "record": lambda catalog: catalog.record(ACT),
    "replace_spec": lambda catalog: catalog.replace_spec("x", 0, ACT),
}


@pytest.fixture(params=["sqlite", "postgresql"])
async def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Catalog]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/catalog.db"
    else:
        url = request.getfixturevalue("postgres").fresh()
    catalog = await open_catalog(url)
    await catalog.create_tenant(TENANT, ACT)
    await catalog.create_project(PROJECT, ACT)
    await catalog.create_user(USER, ACT)
    await catalog.create_key(KEY, ACT)
    await catalog.set_quota(QUOTA, ACT)
    yield catalog
    await catalog.close()


async def everything(catalog: Catalog) -> tuple[object, ...]:
    return (
        await catalog.tenants(),
        await catalog.projects(),
        await catalog.users(),
        await catalog.keys(),
        await catalog.quotas(),
        await catalog.spec(),
        await catalog.revision(),
        await catalog.audit(),
        await catalog.verify_audit(),
    )


@contextmanager
def failing(catalog: Any, nth: int) -> Iterator[list[str]]:
    """Fail the n-th statement or commit of the writer. Yields what was tried."""
    engine = catalog._database.writer.sync_engine
    tried: list[str] = []

    def count(what: str) -> None:
        tried.append(what)
        if len(tried) == nth:
            raise OperationalError(what, None, Exception("made to fail"))

    def on_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith("BEGIN"):
            count(statement)

    def on_commit(_connection: Any) -> None:
        count("COMMIT")

    event.listen(engine, "before_cursor_execute", on_statement)
    event.listen(engine, "commit", on_commit)
    try:
        yield tried
    finally:
        event.remove(engine, "before_cursor_execute", on_statement)
        event.remove(engine, "commit", on_commit)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_fails_anywhere_leaves_everything_as_it_was(catalog: Catalog, name: str) -> None:
    before = await everything(catalog)
    nth = 0
    while True:
        nth += 1
        with failing(catalog, nth) as tried:
            try:
                await CHANGES[name](catalog)
                break
            except StoreFailed:
                assert len(tried) == nth, tried
        assert await everything(catalog) == before, tried
    # Written wherever nothing fails, in one commit, and the last thing that could fail is that one.
    assert tried[-1] == "COMMIT"
    assert tried.count("COMMIT") == 1
    assert nth == len(tried) + 1
    assert nth > 2
    assert await everything(catalog) != before
