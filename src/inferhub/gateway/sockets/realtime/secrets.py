"""Ephemeral keys: what a server asks for and its browser connects with. Sealed, so nothing is stored.

`ek_` and, under AES-256-GCM with a secret made of the pepper, whose it is, until when, and for what session.
It opens `/v1/realtime` and nothing else.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import time
from typing import Any

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from inferhub.core.errors import Unauthenticated
from inferhub.core.tenancy import Principal, Role

PREFIX = "ek_"
_NONCE_BYTES = 12
_PLACE = b"/v1/realtime"


class _Sealed(msgspec.Struct, array_like=True):
    key_id: str
    role: Role
    tenant_id: str
    project_id: str
    scopes: list[str]
    models: list[str] | None
    expires_at: int
    session: dict[str, Any]


class ClientSecrets:
    """Makes and opens them, in every process that has the same pepper."""

    def __init__(self, pepper: bytes) -> None:
        derived = HKDF(SHA256(), length=32, salt=None, info=b"inferhub client secrets 1").derive(pepper)
        self._cipher = AESGCM(derived)

    def seal(self, principal: Principal, session: dict[str, Any], expires_at: int) -> str:
        sealed = _Sealed(
            principal.key_id,
            principal.role,
            principal.tenant_id,
            principal.project_id,
            sorted(scope for scope in principal.scopes if scope.startswith("inference:")),
            None if principal.models is None else sorted(principal.models),
            expires_at,
            session,
        )
        nonce = secrets.token_bytes(_NONCE_BYTES)
        text = nonce + self._cipher.encrypt(nonce, msgspec.msgpack.encode(sealed), _PLACE)
        return PREFIX + base64.urlsafe_b64encode(text).rstrip(b"=").decode()

    def open(self, presented: str) -> tuple[Principal, dict[str, Any]]:
        """Raises `Unauthenticated`."""
        sealed = self._unsealed(presented.removeprefix(PREFIX))
        if sealed is None or sealed.expires_at <= time.time():
            raise Unauthenticated("Unknown or expired ephemeral key; ask for a new one.")
        principal = Principal(
            sealed.key_id,
            sealed.role,
            sealed.tenant_id,
            sealed.project_id,
            frozenset(sealed.scopes),
            None if sealed.models is None else frozenset(sealed.models),
        )
        return principal, sealed.session

    def _unsealed(self, text: str) -> _Sealed | None:
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            opened = self._cipher.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], _PLACE)
            return msgspec.msgpack.decode(opened, type=_Sealed)
        except (binascii.Error, ValueError, InvalidTag, msgspec.MsgspecError):
            return None
