"""Schema changes of the catalog, run by Alembic inside one transaction.

`sqlite` and `postgres` ask `current` and upgrades; downgrades are for tests and for operators who go back.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import inspect, text

from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection

HEAD = "0002"
"""The newest revision. Stated, so that an up-to-date catalog opens without importing Alembic."""


def current(connection: Connection) -> str | None:
    """The revision the database is at; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def known() -> frozenset[str]:
    """Every revision this InferHub can start from."""
    from alembic.script import ScriptDirectory

    return frozenset(script.revision for script in ScriptDirectory(str(_FOLDER)).walk_revisions())


def bring_up(connection: Connection, whose: str, remedy: str) -> None:
    """Upgrade where needed. Raises `SetupError`, with the remedy, for the schema of a newer InferHub."""
    revision = current(connection)
    if revision == HEAD:
        return
    if revision is not None and revision not in known():
        raise SetupError(
            f"{whose} was made by a newer InferHub (schema {revision[:40]}, this one knows {HEAD}). "
            f"Upgrade InferHub, or {remedy}.",
            param="catalog_url",
        )
    upgrade(connection)


def upgrade(connection: Connection, target: str = "head") -> None:
    """Bring the database to `target` inside the caller's transaction."""
    from alembic import command

    command.upgrade(_config(connection), target)


def downgrade(connection: Connection, target: str) -> None:
    """Go back to `target`; `base` removes every table. Loses what the older schema cannot hold."""
    from alembic import command

    command.downgrade(_config(connection), target)


_FOLDER = Path(__file__).parent


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    # Percent signs are Alembic's own syntax in options.
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config
