"""A tenant's webhook: what its messages are signed with, and its address as the catalog keeps it.

Used by `admin/tenants`, which stores one, and by `alerts`, which posts to it. Path and query of such an
address are as good as a password, so a copy of the database must not hold them.
"""

from __future__ import annotations

import binascii
import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAX_CHARS = 1400
"""Of an address, so that it fits its column when it is sealed."""

_MARK = "/?sealed="
_NONCE_BYTES = 12


def webhook_secret(pepper: bytes, tenant_id: str) -> str:
    """What a tenant checks signatures with; derived, so that no database holds it."""
    return "whs_" + hmac.new(pepper, f"webhook {tenant_id}".encode(), "sha256").hexdigest()


def seal(url: str, pepper: bytes, tenant_id: str) -> str:
    """`https://HOST/?sealed=…`: the host stays readable, the rest opens for this tenant only."""
    parts = urlsplit(url)
    origin = f"{parts.scheme}://{parts.netloc}"
    nonce = secrets.token_bytes(_NONCE_BYTES)
    closed = _cipher(pepper).encrypt(nonce, url[len(origin) :].encode(), _bound_to(origin, tenant_id))
    return f"{origin}{_MARK}{urlsafe_b64encode(nonce + closed).decode()}"


def unseal(stored: str, pepper: bytes, tenant_id: str) -> str:
    """The address that was sealed; one that never was is returned as it is."""
    origin, mark, closed = stored.partition(_MARK)
    if not mark:
        return stored
    try:
        raw = urlsafe_b64decode(closed)
        opened = _cipher(pepper).decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound_to(origin, tenant_id))
    except (binascii.Error, ValueError, InvalidTag):
        return stored
    return origin + opened.decode()


def shown(stored: str) -> str:
    """As much of an address as anybody may read."""
    parts = urlsplit(stored)
    return f"{parts.scheme}://{parts.netloc}/…"


def _cipher(pepper: bytes) -> AESGCM:
    return AESGCM(HKDF(SHA256(), length=32, salt=None, info=b"inferhub webhook address 1").derive(pepper))


def _bound_to(origin: str, tenant_id: str) -> bytes:
    return f"{tenant_id} {origin}".encode()
