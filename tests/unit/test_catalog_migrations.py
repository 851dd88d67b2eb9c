"""The catalog's schema: up, down, and what a running InferHub does with what it finds. On both databases."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from inferhub.core.audit import Act
from inferhub.core.errors import SetupError
from inferhub.core.tenancy import DEFAULT_PROJECT, DEFAULT_TENANT, Project, Role, Tenant
from inferhub.stores import open_catalog
from inferhub.stores.catalog import migrations
from inferhub.stores.catalog.keys import issue
from inferhub.stores.catalog.tables import metadata

PEPPER = b"0123456789abcdef"
ACT = Act("cli", "test.act", "anything")
NOW = int(time.time())
T = TypeVar("T")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/catalog.db"
    fresh: str = request.getfixturevalue("postgres").fresh()
    return fresh


class Db:
    """The database apart from the catalog: transactions begin when we say so, and hold schema changes too."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def run(self, work: Callable[[Connection], T]) -> T:
        async with self.engine.begin() as connection:
            return await connection.run_sync(work)

    async def up(self, target: str = "head") -> None:
        await self.run(lambda connection: migrations.upgrade(connection, target))

    async def down(self, target: str) -> None:
        await self.run(lambda connection: migrations.downgrade(connection, target))

    async def sql(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        async with self.engine.begin() as connection:
            done = await connection.execute(text(statement), values)
            return [tuple(row) for row in done] if done.returns_rows else []


@pytest.fixture
async def db(url: str) -> AsyncIterator[Db]:
    driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}
    scheme, _, rest = url.partition("://")
    engine = create_async_engine(f"{driver[scheme]}://{rest}")
    if scheme == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def _connect(connection, _record):  # type: ignore[no-untyped-def]
            connection.isolation_level = None
            connection.cursor().execute("PRAGMA foreign_keys=ON")

        @event.listens_for(engine.sync_engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    yield Db(engine)
    await engine.dispose()


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_head_is_stated_right() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [migrations.HEAD]
    assert migrations.HEAD in migrations.known()


async def test_up_down_up(db: Db) -> None:
    assert await db.run(migrations.current) is None
    await db.up()
    assert await db.run(migrations.current) == migrations.HEAD
    assert await db.run(tables) == set(metadata.tables)
    await db.down("base")
    assert await db.run(tables) == set()
    assert await db.run(migrations.current) is None
    await db.up()
    await db.up()  # nothing left to do
    assert await db.sql("SELECT revision FROM catalog_state") == [(0,)]


async def test_every_revision_can_be_left_and_reached_again(db: Db) -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    for revision in reversed(list(script.walk_revisions())):
        await db.up(revision.revision)
        await db.down(str(revision.down_revision or "base"))
        await db.up(revision.revision)


async def test_the_migrated_schema_is_the_one_in_tables(db: Db) -> None:
    await db.up()

    def compare(connection: Connection) -> None:
        options = {"compare_type": True, "compare_server_default": True}
        assert compare_metadata(MigrationContext.configure(connection, opts=options), metadata) == []
        for name in metadata.tables:
            checks = {check["name"] for check in inspect(connection).get_check_constraints(name)}
            wanted = {c.name for c in metadata.tables[name].constraints if str(c.name).startswith("ck_")}
            assert checks == wanted
            assert inspect(connection).get_pk_constraint(name)["name"] == f"pk_{name}"

    await db.run(compare)


@pytest.mark.parametrize("blocked", ["specs", "audit_log"])
async def test_a_migration_that_fails_leaves_nothing_behind(db: Db, blocked: str) -> None:
    await db.sql(f"CREATE TABLE {blocked} (x INTEGER)")  # towards the end of a revision
    with pytest.raises(Exception, match=blocked):
        await db.up()
    assert await db.run(tables) == {blocked}
    assert await db.run(migrations.current) is None


async def test_a_newer_schema_is_refused(db: Db, url: str) -> None:
    await (await open_catalog(url)).close()
    await db.sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SetupError, match=r"newer InferHub.*9999.*Upgrade InferHub"):
        await open_catalog(url)


async def test_a_catalog_that_was_downgraded_is_upgraded_at_the_next_start(db: Db, url: str) -> None:
    await (await open_catalog(url)).close()
    await db.down("base")
    catalog = await open_catalog(url)
    await catalog.create_key(issue("a", Role.FREE, PEPPER)[1], ACT)
    assert len(await catalog.keys()) == 1
    await catalog.close()


async def test_gateways_that_start_at_once_migrate_once(db: Db, url: str) -> None:
    catalogs = await asyncio.gather(*(open_catalog(url) for _ in range(6)))
    assert {len(await catalog.tenants()) for catalog in catalogs} == {1}
    assert await db.run(migrations.current) == migrations.HEAD
    await asyncio.gather(*(catalog.close() for catalog in catalogs))


# --- revision 0001, as its code spoke to it -----------------------------------------------------------

OLD_INSERT = (
    "INSERT INTO api_keys (id, name, role, digest, created_at, revoked_at) "
    "VALUES (:id, :name, :role, :digest, :created_at, :revoked_at)"
)
OLD_SELECT = (
    "SELECT api_keys.id, api_keys.name, api_keys.role, api_keys.digest, api_keys.created_at, "
    "api_keys.revoked_at FROM api_keys ORDER BY api_keys.created_at, api_keys.id"
)
OLD_BUMP = "UPDATE catalog_state SET revision=(catalog_state.revision + 1)"
OLD_STATE = "SELECT catalog_state.revision, catalog_state.pepper_check FROM catalog_state"
OLD_SPEC = "SELECT specs.id, specs.revision, specs.text, specs.applied_at FROM specs"


def old_key(number: int, role: str = "free", revoked_at: int | None = None) -> dict[str, Any]:
    digest = hashlib.sha256(str(number).encode()).digest()
    key_id, name = f"ih_{number:012}", f"key {number}"
    return {
        "id": key_id,
        "name": name,
        "role": role,
        "digest": digest,
        "created_at": number,
        "revoked_at": revoked_at,
    }


async def fill_0001(db: Db) -> list[list[tuple[Any, ...]]]:
    await db.up("0001")
    for key in (old_key(1, "admin"), old_key(2, "enterprise"), old_key(3, "free", 77)):
        await db.sql(OLD_INSERT, **key)
        await db.sql(OLD_BUMP)
    await db.sql("INSERT INTO specs (id, revision, text, applied_at) VALUES (1, 4, 'models: []', 99)")
    await db.sql("UPDATE catalog_state SET pepper_check = :check", check=b"abcd")
    return await read_0001(db)


async def read_0001(db: Db) -> list[list[tuple[Any, ...]]]:
    return [await db.sql(OLD_SELECT), await db.sql(OLD_STATE), await db.sql(OLD_SPEC)]


async def test_the_data_of_0001_survives_the_way_up_and_down(db: Db, url: str) -> None:
    before = await fill_0001(db)
    catalog = await open_catalog(url)
    keys = await catalog.keys()
    assert [(key.id, key.role, key.revoked_at) for key in keys] == [
        ("ih_000000000001", Role.ADMIN, None),
        ("ih_000000000002", Role.ENTERPRISE, None),
        ("ih_000000000003", Role.FREE, 77),
    ]
    assert {(key.tenant_id, key.project_id, key.scopes) for key in keys} == {
        (DEFAULT_TENANT, DEFAULT_PROJECT, None)
    }
    stored = await catalog.spec()
    assert stored is not None
    assert (stored.text, stored.revision, await catalog.revision()) == ("models: []", 4, 3)
    await catalog.close()
    assert await read_0001(db) == before
    await db.down("0001")
    assert await read_0001(db) == before
    await db.up()
    assert await read_0001(db) == before


async def test_the_code_of_0001_goes_on_working_beside_the_new_one(db: Db, url: str) -> None:
    await fill_0001(db)
    catalog = await open_catalog(url)
    _, new = issue("new", Role.FREE, PEPPER, expires_at=NOW + 10**6)
    await catalog.create_key(new, ACT)
    await db.sql(OLD_INSERT, **old_key(4))
    await db.sql(OLD_BUMP)
    await db.sql("UPDATE api_keys SET revoked_at=5 WHERE api_keys.id = 'ih_000000000004'")
    await db.sql("UPDATE specs SET revision=5, text='x', applied_at=6 WHERE specs.revision = 4")
    assert len(await db.sql(OLD_SELECT)) == 5
    by_id = {key.id: key for key in await catalog.keys()}
    assert (by_id["ih_000000000004"].tenant_id, by_id["ih_000000000004"].revoked_at) == (DEFAULT_TENANT, 5)
    assert by_id[new.id] == new
    assert await catalog.revision() == 5
    assert (await catalog.replace_spec("y", 5, ACT)).revision == 6
    assert await catalog.verify_audit() == 2
    await catalog.close()


async def test_no_key_can_do_more_on_the_way_down(db: Db, url: str) -> None:
    catalog = await open_catalog(url)
    owner, closed = Tenant("ten_x", "x", NOW), Project("prj_closed", DEFAULT_TENANT, "closed", NOW)
    open_project = Project("prj_open", DEFAULT_TENANT, "open", NOW)
    theirs = Project("prj_x", "ten_x", "x", NOW)
    await catalog.create_tenant(owner, ACT)
    for project in (closed, open_project, theirs):
        await catalog.create_project(project, ACT)
    await catalog.replace_project(replace(closed, disabled_at=NOW), ACT)
    kept = {
        "plain": issue("plain", Role.FREE, PEPPER)[1],
        "admin": issue("admin", Role.ADMIN, PEPPER)[1],
        "open": issue("open", Role.FREE, PEPPER, project_id="prj_open")[1],
    }
    closed_down = {
        "scopes": issue("scopes", Role.ADMIN, PEPPER, scopes=["models:read"])[1],
        "models": issue("models", Role.FREE, PEPPER, models=["a"])[1],
        "expires": issue("expires", Role.FREE, PEPPER, expires_at=NOW + 10**6)[1],
        "tenant": issue("tenant", Role.FREE, PEPPER, tenant_id="ten_x", project_id="prj_x")[1],
        "disabled": issue("disabled", Role.FREE, PEPPER, project_id="prj_closed")[1],
        "role": issue("role", Role.TENANT_ADMIN, PEPPER)[1],
    }
    for key in (kept | closed_down).values():
        await catalog.create_key(key, ACT)
    await catalog.close()
    await db.down("0001")
    rows = {name: (role, revoked_at) for _, name, role, _, _, revoked_at in await db.sql(OLD_SELECT)}
    assert {name for name, (_, revoked_at) in rows.items() if revoked_at is None} == set(kept)
    assert set(rows) == set(kept) | set(closed_down)
    assert {role for role, _ in rows.values()} <= {"admin", "enterprise", "free"}
    catalog = await open_catalog(url)
    assert {key.name for key in await catalog.keys() if key.revoked_at is None} == set(kept)
    await catalog.close()


async def test_the_database_keeps_keys_in_projects_of_their_tenant(db: Db) -> None:
    await db.up()
    await db.sql("INSERT INTO tenants (id, name, created_at) VALUES ('ten_x', 'x', 1)")
    with pytest.raises(DBAPIError, match=r"(?i)foreign key"):
        await db.sql(
            OLD_INSERT.replace("revoked_at)", "revoked_at, tenant_id)", 1).replace(
                ":revoked_at)", ":revoked_at, 'ten_x')"
            ),
            **old_key(1),
        )
