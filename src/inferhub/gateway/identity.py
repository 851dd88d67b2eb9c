"""Who calls: an API key against an in-memory snapshot of the keys, or a token of an OIDC issuer.

No store is asked on the way of a request; `refresh` swaps the whole snapshot.
"""

from __future__ import annotations

import time
from typing import Protocol

from inferhub.core.errors import Unauthenticated
from inferhub.core.tenancy import ApiKey, Principal
from inferhub.stores.catalog.keys import PREFIX, principal_of


class Keys(Protocol):
    def find(self, presented: str) -> ApiKey | None: ...

    def knows(self, key_id: str) -> bool: ...


class Tokens(Protocol):
    async def principal(self, token: str) -> Principal: ...


class Identity:
    def __init__(self, keys: Keys, tokens: Tokens) -> None:
        self._keys = keys
        self._tokens = tokens
        self._used_at: dict[str, int] = {}

    def refresh(self, keys: Keys) -> None:
        self._keys = keys

    async def principal(self, headers: dict[bytes, bytes]) -> Principal:
        """Raises `Unauthenticated`; the message never holds more than the last four characters."""
        presented = _presented(headers)
        if presented.count(".") == 2 and not presented.startswith(PREFIX):
            return await self._tokens.principal(presented)
        key = self._keys.find(presented)
        if key is None:
            ending = presented[-4:] if len(presented) >= 16 and presented[-4:].isalnum() else ""
            shown = f" (ending in {ending})" if ending else ""
            raise Unauthenticated(f"Unknown, expired or revoked API key{shown}.")
        self._used_at[key.id] = int(time.time())
        return principal_of(key)

    def check_key(self, key_id: str) -> None:
        """Raises `Unauthenticated` for a key that is not valid any more. Ids of people pass."""
        if key_id.startswith(PREFIX) and not self._keys.knows(key_id):
            raise Unauthenticated("The API key that this one was made with is not valid any more.")

    def take_uses(self) -> dict[str, int]:
        """Key id → Unix seconds of its last use since the last time this was asked."""
        used, self._used_at = self._used_at, {}
        return used


def _presented(headers: dict[bytes, bytes]) -> str:
    """What the client shows: a bearer token, or the same in Anthropic's header. Raises `Unauthenticated`."""
    header, named = headers.get(b"authorization"), headers.get(b"x-api-key", b"").strip()
    if header is None:
        if not named:
            raise Unauthenticated("No API key. Send 'Authorization: Bearer ih_…' or 'x-api-key: ih_…'.")
        return named.decode("latin-1")
    scheme, _, token = header.partition(b" ")
    token = token.strip()
    if scheme.lower() != b"bearer" or not token:
        raise Unauthenticated("The Authorization header must be 'Bearer ' and an API key.")
    if named and named != token:
        raise Unauthenticated("The headers Authorization and x-api-key hold different keys; send one.")
    return token.decode("latin-1")
