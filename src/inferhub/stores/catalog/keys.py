"""API keys: made, hashed, recognised, and what they allow. Pure; the gateway's door and the CLI call it.

A key is `ih_` + 12 characters of look-up id + `_` + 32 of secret (190 bits). Only its HMAC is ever
stored. The fixed form lets scanners of public code find leaked ones.
"""

from __future__ import annotations

import hmac
import secrets
import string
import time
from collections.abc import Collection, Iterable
from functools import lru_cache

from inferhub.core.clock import unix_s
from inferhub.core.tenancy import (
    DEFAULT_PROJECT,
    DEFAULT_TENANT,
    GRANTABLE,
    ROLE_SCOPES,
    ApiKey,
    Principal,
    Project,
    Role,
    Tenant,
)
from inferhub.stores.catalog.checks import check_expiry, check_key, includes

PREFIX = "ih_"

_ALPHABET = string.digits + string.ascii_letters
_ID_CHARS = len(PREFIX) + 12
_KEY_CHARS = _ID_CHARS + 1 + 32


def issue(
    name: str,
    role: Role,
    pepper: bytes,
    *,
    now: int | None = None,
    tenant_id: str = DEFAULT_TENANT,
    project_id: str = DEFAULT_PROJECT,
    scopes: Collection[str] | None = None,
    models: Collection[str] | None = None,
    expires_at: int | None = None,
) -> tuple[str, ApiKey]:
    """(plaintext to show once, record to store). Raises `Invalid` naming the parameter."""
    key_id = PREFIX + _random(12)
    plaintext = f"{key_id}_{_random(32)}"
    created_at = unix_s() if now is None else now
    key = ApiKey(
        key_id,
        name,
        role,
        digest(plaintext, pepper),
        created_at,
        tenant_id=tenant_id,
        project_id=project_id,
        scopes=None if scopes is None else frozenset(scopes),
        models=None if models is None else frozenset(models),
        expires_at=expires_at,
    )
    check_key(key)
    if expires_at is not None:
        check_expiry(expires_at, created_at)
    return plaintext, key


def reissue(
    old: ApiKey, pepper: bytes, *, now: int | None = None, expires_at: int | None = None
) -> tuple[str, ApiKey]:
    """What `issue` makes, with the name and the rights of `old`: its successor for `rotate_key`."""
    return issue(
        old.name,
        old.role,
        pepper,
        now=now,
        tenant_id=old.tenant_id,
        project_id=old.project_id,
        scopes=old.scopes,
        models=old.models,
        expires_at=expires_at,
    )


def _random(chars: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(chars))


def digest(plaintext: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of the whole key. A slow hash would add nothing: 190 random bits cannot be guessed."""
    return hmac.digest(pepper, plaintext.encode(), "sha256")


def disabled_ids(tenants: Iterable[Tenant], projects: Iterable[Project]) -> frozenset[str]:
    """Ids of the tenants and projects whose keys and users are refused."""
    owners: Iterable[Tenant | Project] = (*tenants, *projects)
    return frozenset(owner.id for owner in owners if owner.disabled_at is not None)


class KeyRing:
    """The valid keys at one moment; immutable, swapped whole when the catalog changed."""

    __slots__ = ("_by_id", "_nobody", "_pepper")

    def __init__(
        self, keys: Iterable[ApiKey], pepper: bytes, disabled: Collection[str] = frozenset()
    ) -> None:
        """`disabled` are ids of tenants and projects, as `disabled_ids` finds them."""
        self._by_id = {
            key.id: key
            for key in keys
            if key.revoked_at is None and key.tenant_id not in disabled and key.project_id not in disabled
        }
        self._pepper = pepper
        self._nobody = ApiKey("", "", Role.FREE, secrets.token_bytes(32), 0)

    def __len__(self) -> int:
        return len(self._by_id)

    def knows(self, key_id: str) -> bool:
        """Whether the key of this id is valid now."""
        key = self._by_id.get(key_id)
        return key is not None and (key.expires_at is None or key.expires_at > time.time())

    def find(self, presented: str) -> ApiKey | None:
        """The key that `presented` is, or None: also from the second on in which it expires. Takes any
        text, and as long for an unknown id as for a wrong secret."""
        if len(presented) != _KEY_CHARS or not presented.isascii():
            return None
        key = self._by_id.get(presented[:_ID_CHARS], self._nobody)
        is_right = hmac.compare_digest(hmac.digest(self._pepper, presented.encode(), "sha256"), key.digest)
        if not is_right or key is self._nobody:
            return None
        return None if key.expires_at is not None and key.expires_at <= time.time() else key


def principal_of(key: ApiKey) -> Principal:
    """The caller that a found key makes. Cheap enough for every request."""
    scopes = effective_scopes(key.role, key.scopes)
    return Principal(key.id, key.role, key.tenant_id, key.project_id, scopes, key.models)


@lru_cache(maxsize=4096)
def effective_scopes(role: Role, scopes: frozenset[str] | None) -> frozenset[str]:
    """What both the role and the key allow, whichever of the two says it with a star."""
    allowed = ROLE_SCOPES[role]
    if scopes is None:
        return allowed
    allowed |= GRANTABLE[role]
    narrower = {scope for scope in scopes if includes(allowed, scope)}
    return frozenset(narrower | {scope for scope in allowed if includes(scopes, scope)})
