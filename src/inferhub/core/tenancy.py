"""Who calls: roles, principals, API keys. Limits and tenants join these nouns in later work."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a key may do. `admin` manages the platform; the others only infer."""

    ADMIN = "admin"
    ENTERPRISE = "enterprise"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request, as the door recognised it."""

    key_id: str
    role: Role

    @property
    def is_admin(self) -> bool:
        return self.role is Role.ADMIN


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A stored key: its keyed hash and what it grants, never the secret."""

    id: str
    """Public look-up prefix, `ih_` and 12 characters."""
    name: str
    role: Role
    digest: bytes = field(repr=False)
    """HMAC-SHA256 of the whole key under the installation's pepper, 32 bytes."""
    created_at: int
    """Unix seconds."""
    revoked_at: int | None = None
