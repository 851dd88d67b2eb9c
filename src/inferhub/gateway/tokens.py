"""Recognises people: JSON Web Tokens of the configured OpenID Connect issuers, checked against their keys.

Called by `identity`. Keys are fetched ahead and kept; a token with a new key id asks once more, and an
issuer that cannot be reached leaves the keys that are known in force.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import msgspec

from inferhub.core.errors import InferHubError, Unauthenticated, UpstreamFailed
from inferhub.core.tenancy import ROLE_SCOPES, Issuer, Principal, User

_log = logging.getLogger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""The body of a GET. Raises `InferHubError`."""

# Signatures only: with a shared secret, whoever can check a token could also make one.
_ALGORITHMS = frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"})
_LEEWAY_S = 30
_REFRESH_S = 600.0
_ASK_AGAIN_S = 5.0
_MAX_TOKEN_CHARS = 16 * 1024
_MAX_SEEN = 10_000
_MAX_KEYS = 100


class _About(msgspec.Struct):
    """What matters of a discovery document."""

    issuer: str
    jwks_uri: str


class _KeySet(msgspec.Struct):
    keys: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Key:
    """One published key. `algorithm` is None where it serves every algorithm of its kind."""

    id: str | None
    jwk: jwt.PyJWK
    algorithm: str | None


class _Keys:
    """The public keys of one issuer, by id."""

    def __init__(self, issuer: Issuer, fetch: Fetch, on_change: Callable[[], None]) -> None:
        self.issuer = issuer
        self._fetch = fetch
        self._on_change = on_change
        self._published: list[dict[str, Any]] = []
        self._by_id: Mapping[str | None, _Key] = {}
        self._ask_at = 0.0
        self._asking = asyncio.Lock()

    async def find(self, key_id: str | None) -> _Key | None:
        if key_id not in self._by_id:
            await self.refresh()
        return self._by_id.get(key_id)

    async def refresh(self) -> None:
        """Ask the issuer, at most every few seconds whoever sends whatever."""
        async with self._asking:
            if time.monotonic() < self._ask_at:
                return
            try:
                await self._ask()
            except (InferHubError, msgspec.DecodeError) as error:
                reason = error.message if isinstance(error, InferHubError) else "its answer has another form"
                _log.warning("the keys of the issuer %s cannot be read: %s", self.issuer.issuer, reason)
            finally:
                # From the end on: those who waited for an issuer that hangs do not wait for it again.
                self._ask_at = time.monotonic() + _ASK_AGAIN_S

    async def _ask(self) -> None:
        base = self.issuer.issuer.rstrip("/")
        about = msgspec.json.decode(
            await self._fetch(f"{base}/.well-known/openid-configuration"), type=_About
        )
        check_discovery(self.issuer.issuer, about.issuer, about.jwks_uri)
        found = msgspec.json.decode(await self._fetch(about.jwks_uri), type=_KeySet).keys[:_MAX_KEYS]
        if found == self._published:
            return
        keys = [key for key in map(_usable, found) if key is not None]
        by_id: dict[str | None, _Key] = {key.id: key for key in keys}
        if len(keys) == 1:
            # A token need not name the key where there is only one.
            by_id[None] = keys[0]
        self._published, self._by_id = found, by_id
        self._on_change()


def _usable(published: dict[str, Any]) -> _Key | None:
    """None for what signs no token: a key for encryption, a shared secret, a kind that is unknown here."""
    if published.get("use", "sig") != "sig" or "d" in published:
        return None
    try:
        jwk = jwt.PyJWK(published)
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
        # Other keys of the same issuer are as good as before.
        return None
    key_id = published.get("kid")
    if jwk.algorithm_name not in _ALGORITHMS or not isinstance(key_id, str | None):
        return None
    return _Key(key_id, jwk, published.get("alg"))


def check_discovery(issuer: str, named: str, jwks_uri: str) -> None:
    """Raises `UpstreamFailed` for a discovery document that speaks for somebody else, or whose keys would
    come from a place that nobody vouches for."""
    if named != issuer:
        raise UpstreamFailed("its discovery document names another issuer")
    here, there = urlsplit(issuer), urlsplit(jwks_uri)
    if there.scheme != "https" and (here.scheme, here.netloc) != (there.scheme, there.netloc):
        raise UpstreamFailed("its jwks_uri is neither https nor on its own host and port")


class TokenVerifier:
    """Snapshots in, principals out. `configure` swaps what is known whole."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._keys: dict[str, _Keys] = {}
        self._users: Mapping[tuple[str, str], User] = {}
        self._disabled: Collection[str] = frozenset()
        self._seen: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()

    def configure(self, issuers: Sequence[Issuer], users: Sequence[User], disabled: Collection[str]) -> None:
        """`disabled` are ids of tenants and projects."""
        kept = {keys.issuer: keys for keys in self._keys.values()}
        self._keys = {i.issuer: kept.get(i) or _Keys(i, self._fetch, self._seen.clear) for i in issuers}
        self._users = {(user.issuer, user.subject): user for user in users}
        self._disabled = disabled
        self._seen.clear()

    async def run(self) -> None:
        """Keep the keys fresh until cancelled, so that no request has to wait for an issuer."""
        while True:
            for keys in tuple(self._keys.values()):
                await keys.refresh()
            await asyncio.sleep(_REFRESH_S)

    async def principal(self, token: str) -> Principal:
        """Raises `Unauthenticated` with a reason that helps the owner of the token and nobody else."""
        digest = hashlib.sha256(token.encode("latin-1", "replace")).digest()
        seen = self._seen.get(digest)
        if seen is not None and seen[0] > time.time():
            return seen[1]
        claims, issuer = await self._check(token)
        principal = self._admit(claims, issuer)
        # As `jwt` reads it: a number, or a text that is one.
        self._seen[digest] = (float(claims["exp"]), principal)
        if len(self._seen) > _MAX_SEEN:
            self._seen.popitem(last=False)
        return principal

    async def _check(self, token: str) -> tuple[dict[str, Any], Issuer]:
        if len(token) > _MAX_TOKEN_CHARS:
            raise Unauthenticated(f"The token has more than {_MAX_TOKEN_CHARS} characters.")
        try:
            header = jwt.get_unverified_header(token)
            claimed = jwt.decode(token, options={"verify_signature": False})
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Unauthenticated("The token is not a valid JSON Web Token.") from error
        keys = self._keys.get(str(claimed.get("iss")))
        if keys is None:
            raise Unauthenticated("The token's issuer is not one that is accepted here.")
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in _ALGORITHMS:
            raise Unauthenticated("The token's signature algorithm is not accepted.")
        claims = await _claims(token, algorithm, header.get("kid"), keys)
        if self._keys.get(keys.issuer.issuer) is not keys:
            # It was configured away, or anew, while it was asked.
            raise Unauthenticated("The token's issuer has just changed here; try again.")
        return claims, keys.issuer

    def _admit(self, claims: Mapping[str, Any], issuer: Issuer) -> Principal:
        """The user that an admin made, else whatever the issuer's people are."""
        subject = str(claims["sub"])
        user = self._users.get((issuer.issuer, subject))
        if user is not None:
            if user.disabled_at is not None:
                raise Unauthenticated("This user is disabled.")
            found = Principal(user.id, user.role, user.tenant_id, user.project_id, ROLE_SCOPES[user.role])
        elif issuer.role is not None:
            # A stable id without a row: nothing is written because somebody signed in.
            name = hashlib.sha256(f"{issuer.issuer}\0{subject}".encode()).hexdigest()[:24]
            scopes = ROLE_SCOPES[issuer.role]
            found = Principal(f"usr_{name}", issuer.role, issuer.tenant_id, issuer.project_id, scopes)
        else:
            raise Unauthenticated("The token is valid, but no user was made for it here.")
        if found.tenant_id in self._disabled or found.project_id in self._disabled:
            raise Unauthenticated("The tenant or project of this user is disabled.")
        return found


async def _claims(token: str, algorithm: str, key_id: str | None, keys: _Keys) -> dict[str, Any]:
    key = await keys.find(key_id)
    if key is None:
        raise Unauthenticated("The token is signed with a key that its issuer does not publish.")
    try:
        return _verified(token, key, algorithm, keys.issuer)
    except Unauthenticated:
        if key_id is not None:
            raise
        # It names no key, and the issuer's only one may be another by now.
        await keys.refresh()
        newer = await keys.find(None)
        if newer is None or newer is key:
            raise
        return _verified(token, newer, algorithm, keys.issuer)


def _verified(token: str, key: _Key, algorithm: str, issuer: Issuer) -> dict[str, Any]:
    """The claims of a token that this key signed for us and that is valid now."""
    try:
        return jwt.decode(
            token,
            # `jwt` holds a key with an algorithm of its own to that, and any other to its kind.
            key.jwk if key.algorithm else key.jwk.key,
            algorithms=[algorithm],
            audience=issuer.audience,
            issuer=issuer.issuer,
            leeway=_LEEWAY_S,
            options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
        )
    except jwt.ExpiredSignatureError as error:
        raise Unauthenticated("The token has expired; sign in again.") from error
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
        raise Unauthenticated("The token is not valid here: wrong signature, audience or time.") from error
