"""Seals what leaves the process: AES-256-GCM, bound to owner and id, under a secret made of the pepper.

Wraps a store. A value that cannot be opened (another pepper, another row's, junk) is as if absent.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from inferhub.stores.responses.base import ResponseStore, Stored

_FORMAT = b"\x01"
_NONCE_BYTES = 12
_OVERHEAD_BYTES = len(_FORMAT) + _NONCE_BYTES + 16


class SealedResponses:
    """Answers `ResponseStore` out of another one that sees only ciphertext."""

    def __init__(self, store: ResponseStore, pepper: bytes) -> None:
        self._store = store
        derived = HKDF(SHA256(), length=32, salt=None, info=b"inferhub stored responses 1").derive(pepper)
        self._cipher = AESGCM(derived)

    async def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = _FORMAT + nonce + self._cipher.encrypt(nonce, stored.value, _place(owner, stored.id))
        await self._store.put(owner, replace(stored, value=sealed), ttl_s)

    async def chain(
        self, owner: str, response_id: str, *, max_depth: int, max_bytes: int
    ) -> tuple[Stored, ...]:
        found = await self._store.chain(owner, response_id, max_depth=max_depth, max_bytes=max_bytes)
        opened: list[Stored] = []
        for stored in found:
            one = self._open(owner, stored)
            if one is None:
                break
            opened.append(one)
        return tuple(opened)

    async def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        found = await self._store.holding(owner, item_ids)
        opened = {item_id: self._open(owner, stored) for item_id, stored in found.items()}
        return {item_id: stored for item_id, stored in opened.items() if stored is not None}

    async def delete(self, owner: str, response_id: str) -> bool:
        return await self._store.delete(owner, response_id)

    async def ping(self) -> None:
        await self._store.ping()

    async def close(self) -> None:
        await self._store.close()

    def _open(self, owner: str, stored: Stored) -> Stored | None:
        sealed = stored.value
        if len(sealed) < _OVERHEAD_BYTES or sealed[:1] != _FORMAT:
            return None
        nonce, text = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return replace(stored, value=self._cipher.decrypt(nonce, text, _place(owner, stored.id)))
        except InvalidTag:
            return None


def _place(owner: str, response_id: str) -> bytes:
    return f"{owner}\0{response_id}".encode()
