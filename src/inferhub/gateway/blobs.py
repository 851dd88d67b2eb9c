"""Signed addresses of kept files: `GET /v1/blobs/{tenant}/{file}` answers whoever has one, until it expires.

The signature binds tenant, file and time under a secret made of the pepper, so an address needs no key and
opens nothing else. Whatever is wrong with one, the answer is the same 404.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import APIRouter, Response

from inferhub.core.errors import NotFound
from inferhub.gateway.access import GuardedRoute
from inferhub.stores.blobs.keeper import Blob, Blobs

_PATH = "/v1/blobs"
_MAX_DIGITS = 12


class BlobLinks:
    """Makes addresses, and finds what is behind them."""

    def __init__(
        self,
        blobs: Blobs,
        pepper: bytes,
        *,
        public_url: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._blobs = blobs
        self._secret = HKDF(SHA256(), length=32, salt=None, info=b"inferhub blob addresses 1").derive(pepper)
        self._base = (public_url or "").rstrip("/")
        self._clock = clock

    async def keep(self, tenant: str, data: bytes, ending: str) -> str:
        """The address of a file that is kept from now on; without a host where none is set."""
        file = await self._blobs.put(tenant, data, ending)
        expires = str(int(self._clock() + self._blobs.ttl_s))
        signature = self._signature(tenant, file, expires)
        return f"{self._base}{_PATH}/{tenant}/{file}?expires={expires}&signature={signature}"

    async def find(self, tenant: str, file: str, expires: str, signature: str) -> Blob:
        """Raises `NotFound`, or `StoreFailed`."""
        wanted = self._signature(tenant, file, expires)
        is_good = hmac.compare_digest(wanted.encode(), signature.encode())
        is_number = expires.isascii() and expires.isdigit() and len(expires) <= _MAX_DIGITS
        blob = None
        if is_good and is_number and int(expires) > self._clock():
            blob = await self._blobs.get(tenant, file)
        if blob is None:
            raise NotFound("Nothing lives at this address, or no longer.")
        return blob

    def _signature(self, tenant: str, file: str, expires: str) -> str:
        # Three parts, two separators: a part with one inside makes three, which is nobody's signature.
        signed = "\n".join((tenant, file, expires)).encode()
        digest = hmac.new(self._secret, signed, hashlib.sha256).digest()
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def blobs_router(links: BlobLinks) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix=_PATH, tags=["images"])

    @router.get("/{tenant}/{file}", summary="Read a file that an answer points to")
    async def get_blob(tenant: str, file: str, expires: str = "", signature: str = "") -> Response:
        blob = await links.find(tenant, file, expires, signature)
        headers = {
            "cache-control": "private, max-age=60",
            "content-disposition": f'inline; filename="{file}"',
            "content-security-policy": "default-src 'none'; sandbox",
            "x-content-type-options": "nosniff",
        }
        return Response(blob.data, media_type=blob.media_type, headers=headers)

    return router
