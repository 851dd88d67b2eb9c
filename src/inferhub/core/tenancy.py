"""Who calls: tenants, projects, users, API keys, and the principal that a request turns out to be."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_TENANT = "ten_default"
DEFAULT_PROJECT = "prj_default"
"""Made with the catalog, so that an installation of one team never has to think of tenants."""


class Role(StrEnum):
    """A named set of scopes. `admin` runs the platform and sees every tenant; the others see their own."""

    ADMIN = "admin"
    TENANT_ADMIN = "tenant_admin"
    ENTERPRISE = "enterprise"
    FREE = "free"


REALTIME_SCOPE = "criticality:realtime"

SCOPES: dict[str, str] = {
    "inference:*": "Call any model.",
    "inference:chat": "Call models of one modality; any modality's name may follow the colon.",
    "models:read": "List the models.",
    REALTIME_SCOPE: "Say that calls are `realtime`. Beside `admin`, only keys that are given it by name.",
    "admin:*": "Everything below `admin:`.",
    "admin:tenants": "Tenants, projects and users.",
    "admin:keys": "Create, list, rotate and revoke API keys.",
    "admin:limits": "Quotas and budgets.",
    "admin:usage": "Usage, costs and invoices.",
    "admin:audit": "Read the audit log.",
    "admin:platform": "The spec and the workers; only the role `admin` has an effect with it.",
}
"""Every scope and what it allows. `x:*` includes every `x:…`."""

_CALLER = frozenset({"inference:*", "models:read"})
ROLE_SCOPES: dict[Role, frozenset[str]] = {
    Role.ADMIN: _CALLER | {"admin:*", REALTIME_SCOPE},
    Role.TENANT_ADMIN: _CALLER
    | {"admin:tenants", "admin:keys", "admin:limits", "admin:usage", "admin:audit"},
    Role.ENTERPRISE: _CALLER,
    Role.FREE: _CALLER,
}
"""What a key or user of a role has; a key may be given less."""

GRANTABLE: dict[Role, frozenset[str]] = {
    Role.ADMIN: frozenset(),
    Role.TENANT_ADMIN: frozenset({REALTIME_SCOPE}),
    Role.ENTERPRISE: frozenset({REALTIME_SCOPE}),
    Role.FREE: frozenset(),
}
"""What a key of a role may be given beyond that, by somebody who has it: nobody raises himself."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whoever is isolated from everybody else, and gets the invoice."""

    id: str
    name: str
    created_at: int
    """Unix seconds."""
    disabled_at: int | None = None
    """From then on every key and user of the tenant is refused."""
    webhook_url: str | None = None
    """Where budget alerts are posted."""


@dataclass(frozen=True, slots=True)
class Project:
    """A part of a tenant with keys, limits and a bill of its own."""

    id: str
    tenant_id: str
    name: str
    created_at: int
    disabled_at: int | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A person, known by what an OIDC issuer says of them."""

    id: str
    tenant_id: str
    project_id: str
    issuer: str
    subject: str
    """The issuer's `sub`; with `issuer`, unique."""
    name: str
    role: Role
    created_at: int
    disabled_at: int | None = None


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
    tenant_id: str = DEFAULT_TENANT
    project_id: str = DEFAULT_PROJECT
    scopes: frozenset[str] | None = None
    """Fewer than the role's, or None for all of them."""
    models: frozenset[str] | None = None
    """Names that may be called, or None for all; `llama-*` stands for every name that begins so."""
    expires_at: int | None = None
    rotated_to: str | None = None
    """The key that replaces this one; both work until `expires_at`."""
    last_used_at: int | None = None


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller of one request, as the door recognised it."""

    key_id: str
    """Id of the API key, or of the user."""
    role: Role
    tenant_id: str = DEFAULT_TENANT
    project_id: str = DEFAULT_PROJECT
    scopes: frozenset[str] = _CALLER
    models: frozenset[str] | None = None

    @property
    def is_admin(self) -> bool:
        """Runs the platform: sees and changes every tenant."""
        return self.role is Role.ADMIN

    def may(self, scope: str) -> bool:
        return scope in self.scopes or f"{scope.partition(':')[0]}:*" in self.scopes

    def may_call(self, model: str) -> bool:
        """Whether the model is on this caller's list."""
        if self.models is None or model in self.models:
            return True
        return any(name.endswith("*") and model.startswith(name[:-1]) for name in self.models)

    def may_see(self, tenant_id: str) -> bool:
        """Whether objects of this tenant exist for this caller at all."""
        return self.is_admin or tenant_id == self.tenant_id


@dataclass(frozen=True, slots=True)
class Issuer:
    """An OpenID Connect provider whose tokens are accepted beside API keys."""

    issuer: str
    """As in the tokens' `iss`; `/.well-known/openid-configuration` below it names its keys."""
    audience: str
    """What `aud` must hold."""
    tenant_id: str = DEFAULT_TENANT
    project_id: str = DEFAULT_PROJECT
    role: Role | None = None
    """Of everybody the issuer vouches for; None admits only users that an admin has made."""
