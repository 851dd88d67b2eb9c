"""Alembic's entry: runs the migrations on the connection, and in the transaction, it is given."""

from __future__ import annotations

from alembic import context

from inferhub.stores.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite changes most things of a table only by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
