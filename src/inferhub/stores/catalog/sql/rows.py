"""Rows to nouns. What this InferHub does not know is refused, never guessed."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import Row

from inferhub.core.errors import CatalogCorrupt
from inferhub.core.quota import Quota, Unit, Window
from inferhub.core.tenancy import ApiKey, Project, Role, Tenant, User

E = TypeVar("E", bound=StrEnum)


def tenant(row: Row[Any]) -> Tenant:
    return Tenant(row.id, row.name, row.created_at, row.disabled_at, row.webhook_url)


def project(row: Row[Any]) -> Project:
    return Project(row.id, row.tenant_id, row.name, row.created_at, row.disabled_at)


def user(row: Row[Any]) -> User:
    return User(
        row.id,
        row.tenant_id,
        row.project_id,
        row.issuer,
        row.subject,
        row.name,
        _known(Role, row.role, f"User {row.id!r} has the role", "delete that user"),
        row.created_at,
        row.disabled_at,
    )


def api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.id,
        row.name,
        _known(Role, row.role, f"API key {row.id!r} has the role", "revoke that key"),
        row.digest,
        row.created_at,
        row.revoked_at,
        tenant_id=row.tenant_id,
        project_id=row.project_id,
        scopes=_words(row.scopes),
        models=_words(row.models),
        expires_at=row.expires_at,
        rotated_to=row.rotated_to,
        last_used_at=row.last_used_at,
    )


def quota(row: Row[Any]) -> Quota:
    columns = row._mapping  # "limit" and "window" beside a row's own attributes
    subject = f"Quota {row.id!r} has the"
    return Quota(
        row.id,
        row.tenant_id,
        row.level,
        row.subject_id,
        _known(Unit, row.unit, f"{subject} unit", "delete that quota"),
        _known(Window, columns["window"], f"{subject} window", "delete that quota"),
        columns["limit"],
        row.mode,
        row.created_at,
    )


def words(names: frozenset[str] | None) -> str | None:
    return None if names is None else " ".join(sorted(names))


def _words(text: str | None) -> frozenset[str] | None:
    return None if text is None else frozenset(text.split())


def _known(kind: type[E], value: str, subject: str, remedy: str) -> E:
    try:
        return kind(value)
    except ValueError as error:
        raise CatalogCorrupt(
            f"{subject} {value[:40]!r}, which this InferHub does not know. "
            f"Upgrade InferHub, or {remedy} with the version that made it."
        ) from error
