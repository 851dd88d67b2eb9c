"""API keys: made, hashed and recognised. Pure; the gateway's door and the CLI call it.

A key is `ih_` + 12 characters of look-up id + `_` + 32 of secret (190 bits). Only its HMAC is ever
stored. The fixed form lets scanners of public code find leaked ones.
"""

from __future__ import annotations

import hmac
import secrets
import string
from collections.abc import Iterable

from inferhub.core.clock import unix_s
from inferhub.core.errors import Invalid
from inferhub.core.tenancy import ApiKey, Role

PREFIX = "ih_"
MAX_NAME_CHARS = 100

_ALPHABET = string.digits + string.ascii_letters
_ID_CHARS = len(PREFIX) + 12
_KEY_CHARS = _ID_CHARS + 1 + 32


def issue(name: str, role: Role, pepper: bytes, *, now: int | None = None) -> tuple[str, ApiKey]:
    """(plaintext to show once, record to store). Raises `Invalid` for an unusable name."""
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable() or name != name.strip():
        raise Invalid(
            f"A key's name has 1 to {MAX_NAME_CHARS} printable characters and no blank at its ends; "
            f"got {name[:MAX_NAME_CHARS]!r}.",
            param="name",
        )
    key_id = PREFIX + _random(12)
    plaintext = f"{key_id}_{_random(32)}"
    created_at = unix_s() if now is None else now
    return plaintext, ApiKey(key_id, name, role, digest(plaintext, pepper), created_at)


def _random(chars: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(chars))


def digest(plaintext: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of the whole key. A slow hash would add nothing: 190 random bits cannot be guessed."""
    return hmac.digest(pepper, plaintext.encode(), "sha256")


class KeyRing:
    """The valid keys at one moment; immutable, swapped whole when the catalog changed."""

    __slots__ = ("_by_id", "_nobody", "_pepper")

    def __init__(self, keys: Iterable[ApiKey], pepper: bytes) -> None:
        self._by_id = {key.id: key for key in keys if key.revoked_at is None}
        self._pepper = pepper
        self._nobody = ApiKey("", "", Role.FREE, secrets.token_bytes(32), 0)

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, presented: str) -> ApiKey | None:
        """The key that `presented` is, or None. Takes any text, and as long for an unknown id as for
        a wrong secret."""
        if len(presented) != _KEY_CHARS or not presented.isascii():
            return None
        key = self._by_id.get(presented[:_ID_CHARS], self._nobody)
        is_right = hmac.compare_digest(hmac.digest(self._pepper, presented.encode(), "sha256"), key.digest)
        return key if is_right and key is not self._nobody else None
