"""Seals what leaves the process: AES-256-GCM, bound to its key, under a secret made of the pepper.

Wraps a shared store. A value that cannot be opened (another pepper, another entry's, junk) is as if absent.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from inferhub.stores.cache.base import SharedAnswers

_FORMAT = b"\x01"
_NONCE_BYTES = 12
OVERHEAD_BYTES = len(_FORMAT) + _NONCE_BYTES + 16


class SealedAnswers:
    """Answers `SharedAnswers` out of another one that sees only ciphertext."""

    def __init__(self, store: SharedAnswers, pepper: bytes) -> None:
        self._store = store
        derived = HKDF(SHA256(), length=32, salt=None, info=b"inferhub stored answers 1").derive(pepper)
        self._cipher = AESGCM(derived)

    async def get(self, key: bytes) -> bytes | None:
        return self._open(key, await self._store.get(key))

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        await self._store.put(key, self._seal(key, value), ttl_s)

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        sealed = self._seal(key, value)
        while True:
            found = await self._store.add(key, sealed, ttl_s)
            # A lost connection makes the driver ask twice, and meet what it stored: no two seals are alike.
            if found is None or found == sealed:
                return None
            opened = self._open(key, found)
            if opened is not None:
                return opened
            # Only this junk: another process may have put a good value in its place by now.
            await self._store.discard(key, found)

    async def delete(self, key: bytes) -> None:
        await self._store.delete(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self._open(key, v) for key, v in zip(keys, await self._store.get_many(keys), strict=True)]

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        await self._store.put_many([(key, self._seal(key, value)) for key, value in entries], ttl_s)

    async def discard(self, key: bytes, value: bytes) -> None:
        sealed = await self._store.get(key)
        if sealed is not None and self._open(key, sealed) == value:
            await self._store.discard(key, sealed)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        await self._store.close()

    def _seal(self, key: bytes, value: bytes) -> bytes:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return _FORMAT + nonce + self._cipher.encrypt(nonce, value, key)

    def _open(self, key: bytes, sealed: bytes | None) -> bytes | None:
        if sealed is None or len(sealed) < OVERHEAD_BYTES or sealed[:1] != _FORMAT:
            return None
        nonce, text = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, text, key)
        except InvalidTag:
            return None
