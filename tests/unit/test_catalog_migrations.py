"""The catalog's schema: up, down, and what a running InferHub does with what it finds."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text

from inferhub.core.errors import SetupError
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog import migrations
from inferhub.stores.catalog.keys import issue
from inferhub.stores.catalog.tables import metadata


def engine(path: Path) -> Engine:
    """Like the catalog's own: transactions begin when we say so, and then hold schema changes too."""
    made = create_engine(f"sqlite:///{path}")

    @event.listens_for(made, "connect")
    def _connect(connection, _record):  # type: ignore[no-untyped-def]
        connection.isolation_level = None

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return made


def tables(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_head_is_stated_right() -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    assert script.get_heads() == [migrations.HEAD]
    assert migrations.HEAD in migrations.known()


def test_up_down_up(tmp_path: Path) -> None:
    db = engine(tmp_path / "catalog.db")
    with db.begin() as connection:
        assert migrations.current(connection) is None
        migrations.upgrade(connection)
        assert migrations.current(connection) == migrations.HEAD
        assert tables(connection) == set(metadata.tables)
    with db.begin() as connection:
        migrations.downgrade(connection, "base")
        assert tables(connection) == set()
        assert migrations.current(connection) is None
    with db.begin() as connection:
        migrations.upgrade(connection)
        migrations.upgrade(connection)  # nothing left to do
        assert connection.execute(text("SELECT revision FROM catalog_state")).all() == [(0,)]
    db.dispose()


def test_every_revision_can_be_left_and_reached_again(tmp_path: Path) -> None:
    script = ScriptDirectory(str(Path(migrations.__file__).parent))
    db = engine(tmp_path / "catalog.db")
    for revision in reversed(list(script.walk_revisions())):
        with db.begin() as connection:
            migrations.upgrade(connection, revision.revision)
            migrations.downgrade(connection, str(revision.down_revision or "base"))
            migrations.upgrade(connection, revision.revision)
    db.dispose()


def test_the_migrated_schema_is_the_one_in_tables(tmp_path: Path) -> None:
    db = engine(tmp_path / "catalog.db")
    with db.begin() as connection:
        migrations.upgrade(connection)
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        for name in metadata.tables:
            checks = {check["name"] for check in inspect(connection).get_check_constraints(name)}
            wanted = {c.name for c in metadata.tables[name].constraints if str(c.name).startswith("ck_")}
            assert checks == wanted
    db.dispose()


def test_a_migration_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    db = engine(tmp_path / "catalog.db")
    with db.begin() as connection:
        connection.execute(text("CREATE TABLE specs (x)"))  # the last table of the first revision
    with pytest.raises(Exception, match="specs"), db.begin() as connection:
        migrations.upgrade(connection)
    with db.begin() as connection:
        assert tables(connection) == {"specs"}
        assert migrations.current(connection) is None
    db.dispose()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await (await open_catalog(f"sqlite:///{path}")).close()
    db = engine(path)
    with db.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    db.dispose()
    with pytest.raises(SetupError, match=r"newer InferHub.*9999.*Upgrade InferHub"):
        await open_catalog(f"sqlite:///{path}")


async def test_a_catalog_that_was_downgraded_is_upgraded_at_the_next_start(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    await (await open_catalog(f"sqlite:///{path}")).close()
    db = engine(path)
    with db.begin() as connection:
        migrations.downgrade(connection, "base")
    db.dispose()
    catalog = await open_catalog(f"sqlite:///{path}")
    try:
        await catalog.create_key(issue("a", Role.FREE, b"p" * 16)[1])
        assert len(await catalog.keys()) == 1
    finally:
        await catalog.close()
