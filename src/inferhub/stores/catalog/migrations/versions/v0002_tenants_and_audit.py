"""Tenants, projects, users, quotas and the audit log; what API keys may do and until when.

Only adds, so that an InferHub of revision 0001 that still runs goes on working.
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_TENANT = "ten_default"
_PROJECT = "prj_default"

_SQLITE_GUARDS = (
    "CREATE TRIGGER audit_log_no_update BEFORE UPDATE ON audit_log "
    "BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END",
    "CREATE TRIGGER audit_log_no_delete BEFORE DELETE ON audit_log "
    "BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END",
    # INSERT OR REPLACE takes a row away without firing the trigger for DELETE.
    "CREATE TRIGGER audit_log_no_replace BEFORE INSERT ON audit_log "
    "WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM audit_log) "
    "BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END",
)
_POSTGRESQL_GUARDS = (
    "CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS "
    "$$ BEGIN RAISE EXCEPTION 'audit_log is append-only'; END $$",
    "CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log "
    "FOR EACH ROW EXECUTE FUNCTION audit_log_refuse()",
    "CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log "
    "FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()",
)


def upgrade() -> None:
    _create_tenants()
    _create_users()
    _extend_keys()
    _create_quotas()
    _create_audit_log()


def _create_tenants() -> None:
    tenants = op.create_table(
        "tenants",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger, nullable=True),
        sa.Column("webhook_url", sa.String(2000), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
        sa.UniqueConstraint("name", name=op.f("uq_tenants_name")),
    )
    projects = op.create_table(
        "projects",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_projects_tenants")),
        sa.UniqueConstraint("tenant_id", "name", name=op.f("uq_projects_tenant_id_name")),
        sa.UniqueConstraint("tenant_id", "id", name=op.f("uq_projects_tenant_id_id")),
    )
    now = int(time.time())
    op.bulk_insert(tenants, [{"id": _TENANT, "name": "default", "created_at": now}])
    op.bulk_insert(projects, [{"id": _PROJECT, "tenant_id": _TENANT, "name": "default", "created_at": now}])


def _create_users() -> None:
    op.create_table(
        "users",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("project_id", sa.String(40), nullable=False),
        sa.Column("issuer", sa.String(500), nullable=False),
        sa.Column("subject", sa.String(255), nullable=False),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("disabled_at", sa.BigInteger, nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_users")),
        sa.ForeignKeyConstraint(
            ["tenant_id", "project_id"],
            ["projects.tenant_id", "projects.id"],
            name=op.f("fk_users_projects"),
        ),
        sa.UniqueConstraint("issuer", "subject", name=op.f("uq_users_issuer_subject")),
    )


def _extend_keys() -> None:
    with op.batch_alter_table("api_keys") as keys:
        keys.add_column(sa.Column("tenant_id", sa.String(40), nullable=False, server_default=_TENANT))
        keys.add_column(sa.Column("project_id", sa.String(40), nullable=False, server_default=_PROJECT))
        keys.add_column(sa.Column("scopes", sa.Text, nullable=True))
        keys.add_column(sa.Column("models", sa.Text, nullable=True))
        keys.add_column(sa.Column("expires_at", sa.BigInteger, nullable=True))
        keys.add_column(sa.Column("rotated_to", sa.String(15), nullable=True))
        keys.add_column(sa.Column("last_used_at", sa.BigInteger, nullable=True))
        keys.create_foreign_key(
            op.f("fk_api_keys_projects"), "projects", ["tenant_id", "project_id"], ["tenant_id", "id"]
        )


def _create_quotas() -> None:
    op.create_table(
        "quotas",
        sa.Column("id", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("subject_id", sa.String(40), nullable=False),
        sa.Column("unit", sa.String(32), nullable=False),
        sa.Column("window", sa.String(16), nullable=False),
        sa.Column("limit", sa.BigInteger, nullable=False),
        sa.Column("mode", sa.String(16), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_quotas")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_quotas_tenants")),
        sa.UniqueConstraint(
            "level", "subject_id", "unit", "window", name=op.f("uq_quotas_level_subject_id_unit_window")
        ),
    )


def _create_audit_log() -> None:
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column("action", sa.String(100), nullable=False),
        sa.Column("target", sa.String(200), nullable=False),
        sa.Column("tenant_id", sa.String(40), nullable=True),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("request_id", sa.String(200), nullable=True),
        sa.Column("previous_hash", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_log")),
    )
    op.create_index(op.f("ix_audit_log_tenant_id_seq"), "audit_log", ["tenant_id", "seq"])
    op.add_column("catalog_state", sa.Column("audit_seq", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column(
        "catalog_state", sa.Column("audit_hash", sa.String(64), nullable=False, server_default="0" * 64)
    )
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    for statement in _SQLITE_GUARDS if is_sqlite else _POSTGRESQL_GUARDS:
        op.execute(statement)


def downgrade() -> None:
    """Keys keep working only where revision 0001 cannot give them more than they have now."""
    _revoke_what_0001_would_widen()
    op.drop_column("catalog_state", "audit_hash")
    op.drop_column("catalog_state", "audit_seq")
    op.drop_table("audit_log")
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP FUNCTION audit_log_refuse()")
    op.drop_table("quotas")
    with op.batch_alter_table("api_keys") as keys:
        keys.drop_constraint(op.f("fk_api_keys_projects"), type_="foreignkey")
        for column in (
            "tenant_id",
            "project_id",
            "scopes",
            "models",
            "expires_at",
            "rotated_to",
            "last_used_at",
        ):
            keys.drop_column(column)
    op.drop_table("users")
    op.drop_table("projects")
    op.drop_table("tenants")


def _revoke_what_0001_would_widen() -> None:
    columns = ("role", "revoked_at", "tenant_id", "project_id", "scopes", "models", "expires_at")
    keys = sa.table("api_keys", *[sa.column(name) for name in columns])
    is_unknown = keys.c.role.not_in(("admin", "enterprise", "free"))
    would_grow = sa.or_(
        is_unknown,
        keys.c.scopes.is_not(None),
        keys.c.models.is_not(None),
        keys.c.expires_at.is_not(None),
        # On the way up again every key comes into the default tenant.
        keys.c.tenant_id != _TENANT,
        keys.c.project_id.in_(_disabled_projects()),
    )
    is_live = keys.c.revoked_at.is_(None)
    op.execute(keys.update().where(would_grow, is_live).values(revoked_at=int(time.time())))
    # Revision 0001 reads no catalog with a role that it does not know.
    op.execute(keys.update().where(is_unknown).values(role="free"))


def _disabled_projects() -> sa.Select[tuple[str]]:
    projects = sa.table("projects", sa.column("id", sa.String), sa.column("disabled_at", sa.BigInteger))
    return sa.select(projects.c.id).where(projects.c.disabled_at.is_not(None))
