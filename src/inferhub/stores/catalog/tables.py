"""The tables as they are after the newest migration; a test compares the two. Read by `sql` only."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

from inferhub.core.audit import GENESIS
from inferhub.core.tenancy import DEFAULT_PROJECT, DEFAULT_TENANT

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

state = Table(
    "catalog_state",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("pepper_check", LargeBinary(4), nullable=True),
    # The end of the audit chain. Without it, entries cut off at the end would not be missed.
    Column("audit_seq", BigInteger, nullable=False, server_default="0"),
    Column("audit_hash", String(64), nullable=False, server_default=GENESIS),
    CheckConstraint("id = 1", name="single_row"),
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger, nullable=True),
    Column("webhook_url", String(2000), nullable=True),
    UniqueConstraint("name"),
)

projects = Table(
    "projects",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger, nullable=True),
    ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
    UniqueConstraint("tenant_id", "name"),
    # Named by the foreign keys below: a key or user can only be in a project of its own tenant.
    UniqueConstraint("tenant_id", "id"),
)

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("project_id", String(40), nullable=False),
    Column("issuer", String(500), nullable=False),
    Column("subject", String(255), nullable=False),
    Column("name", String(100), nullable=False),
    Column("role", String(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("disabled_at", BigInteger, nullable=True),
    ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"]),
    UniqueConstraint("issuer", "subject"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String(15), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("role", String(32), nullable=False),
    Column("digest", LargeBinary(32), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=True),
    Column("tenant_id", String(40), nullable=False, server_default=DEFAULT_TENANT),
    Column("project_id", String(40), nullable=False, server_default=DEFAULT_PROJECT),
    # Both separated by blanks, which neither a scope nor a model's name has.
    Column("scopes", Text, nullable=True),
    Column("models", Text, nullable=True),
    Column("expires_at", BigInteger, nullable=True),
    Column("rotated_to", String(15), nullable=True),
    Column("last_used_at", BigInteger, nullable=True),
    ForeignKeyConstraint(["tenant_id", "project_id"], ["projects.tenant_id", "projects.id"]),
)

quotas = Table(
    "quotas",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant_id", String(40), nullable=False),
    Column("level", String(16), nullable=False),
    Column("subject_id", String(40), nullable=False),
    Column("unit", String(32), nullable=False),
    Column("window", String(16), nullable=False),
    Column("limit", BigInteger, nullable=False),
    Column("mode", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
    UniqueConstraint("level", "subject_id", "unit", "window"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False),
    Column("actor", String(100), nullable=False),
    Column("action", String(100), nullable=False),
    Column("target", String(200), nullable=False),
    Column("tenant_id", String(40), nullable=True),
    Column("detail", Text, nullable=False),
    Column("request_id", String(200), nullable=True),
    Column("previous_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index(None, "tenant_id", "seq"),
)

specs = Table(
    "specs",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("revision", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("applied_at", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="single_row"),
)
