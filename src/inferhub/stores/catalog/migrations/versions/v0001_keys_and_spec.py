"""API keys, the applied spec, and the revision that pollers watch."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    state = op.create_table(
        "catalog_state",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("pepper_check", sa.LargeBinary(4), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalog_state")),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalog_state_single_row")),
    )
    op.bulk_insert(state, [{"id": 1, "revision": 0, "pepper_check": None}])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(15), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("revoked_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_table(
        "specs",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("applied_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_specs")),
        sa.CheckConstraint("id = 1", name=op.f("ck_specs_single_row")),
    )


def downgrade() -> None:
    op.drop_table("specs")
    op.drop_table("api_keys")
    op.drop_table("catalog_state")
