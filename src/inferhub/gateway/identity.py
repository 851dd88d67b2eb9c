"""Who is calling: the Authorization header against an in-memory snapshot of the keys.

No store is asked on the way of a request; `refresh` swaps the whole snapshot.
"""

from __future__ import annotations

from typing import Protocol

from inferhub.core.errors import Forbidden, Unauthenticated
from inferhub.core.tenancy import ApiKey, Principal


class Keys(Protocol):
    def find(self, presented: str) -> ApiKey | None: ...


class Identity:
    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def refresh(self, keys: Keys) -> None:
        self._keys = keys

    def principal(self, headers: dict[bytes, bytes]) -> Principal:
        """Raises `Unauthenticated`; the message never holds more than the last four characters."""
        header = headers.get(b"authorization")
        if header is None:
            raise Unauthenticated("No API key. Send 'Authorization: Bearer ih_…'.")
        scheme, _, token = header.partition(b" ")
        if scheme.lower() != b"bearer" or not token.strip():
            raise Unauthenticated("The Authorization header must be 'Bearer ' and an API key.")
        presented = token.strip().decode("latin-1")
        key = self._keys.find(presented)
        if key is None:
            ending = presented[-4:] if len(presented) >= 16 and presented[-4:].isalnum() else ""
            shown = f" (ending in {ending})" if ending else ""
            raise Unauthenticated(f"Unknown or revoked API key{shown}.")
        return Principal(key.id, key.role)

    def admin(self, headers: dict[bytes, bytes]) -> Principal:
        """Raises `Forbidden` for a known key of another role."""
        principal = self.principal(headers)
        if not principal.is_admin:
            raise Forbidden("This address needs a key with the role 'admin'.")
        return principal
