"""The WebSocket of `/v1/realtime`, and the route that makes ephemeral keys for it."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter
from pydantic import BaseModel, Field

from inferhub.core.clock import new_id, unix_s
from inferhub.core.errors import InferHubError
from inferhub.core.tenancy import Principal
from inferhub.gateway.access import Caller as KeyHolder
from inferhub.gateway.access import GuardedRoute
from inferhub.gateway.identity import Identity
from inferhub.gateway.sockets.live import Listening
from inferhub.gateway.sockets.realtime.config import Session, changed
from inferhub.gateway.sockets.realtime.secrets import PREFIX, ClientSecrets
from inferhub.gateway.sockets.realtime.session import RealtimeSession, encode, error_event
from inferhub.gateway.sockets.socket import Socket, attend
from inferhub.gateway.sockets.switchboard import Caller, PlainDoor

_KEY_TTL_S = 600
_MOST_OF_A_PERSON_S = 600
"""A key can be asked whether it is still valid. Somebody who came with a token cannot."""


class RealtimeEndpoint:
    subprotocol = "realtime"

    def __init__(self, given: Listening, secrets: ClientSecrets) -> None:
        self._given = given
        self._secrets = secrets

    def identity(self, plain: Identity) -> _Door:
        return _Door(plain, self._secrets)

    def error_event(self, error: InferHubError) -> bytes:
        return encode(error_event(error, None))

    async def serve(self, socket: Socket, caller: Caller) -> None:
        made_for = caller.session or {}
        expires_at = int(time.time() + self._given.limits.session_timeout_s)
        session = Session(id=new_id("sess"), expires_at=expires_at)
        if made_for:
            session = changed(session, made_for)
        elif caller.query.get("model"):
            given = session.audio.input.transcription
            assert given is not None  # noqa: S101 - it is by default
            given.model = caller.query["model"]
        realtime = RealtimeSession(self._given, caller, session, socket.send)
        await realtime.begin()
        await attend(socket, realtime)


class _Door:
    """Callers by the keys of the platform, and by ephemeral ones."""

    def __init__(self, plain: Identity, secrets: ClientSecrets) -> None:
        self._identity = plain
        self._plain = PlainDoor(plain)
        self._secrets = secrets

    async def caller(self, headers: dict[bytes, bytes]) -> tuple[Principal, Any]:
        presented = _ephemeral(headers)
        if presented is None:
            return await self._plain.caller(headers)
        principal, session = self._secrets.open(presented)
        self._identity.check_key(principal.key_id)
        return principal, session

    async def check(self, headers: dict[bytes, bytes], principal: Principal) -> None:
        if _ephemeral(headers) is None:
            await self._plain.check(headers, principal)
        else:
            # An ephemeral key that has expired opens no session, and ends none.
            self._identity.check_key(principal.key_id)


def _ephemeral(headers: dict[bytes, bytes]) -> str | None:
    scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
    token = token.strip()
    if scheme.lower() == b"bearer" and token.startswith(PREFIX.encode()):
        return token.decode("latin-1")
    return None


class ExpiresAfter(BaseModel):
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7200)] = _KEY_TTL_S


class SecretRequest(BaseModel):
    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] = Field(default_factory=lambda: {"type": "transcription"})
    """As in `session.update`."""


class Secret(BaseModel):
    value: str
    """The ephemeral key."""
    expires_at: int
    """Unix seconds. A session that was opened before goes on."""
    session: dict[str, Any]


def realtime_router(secrets: ClientSecrets) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, tags=["realtime"])

    @router.post("/v1/realtime/client_secrets", summary="Make an ephemeral key for a browser")
    async def create(asked: SecretRequest, caller: KeyHolder) -> Secret:
        session = changed(Session(id=new_id("sess")), asked.session)
        seconds = asked.expires_after.seconds
        if not caller.key_id.startswith("ih_"):
            seconds = min(seconds, _MOST_OF_A_PERSON_S)
        expires_at = unix_s() + seconds
        shown = {**_plain(session), "expires_at": expires_at}
        return Secret(
            value=secrets.seal(caller, asked.session, expires_at), expires_at=expires_at, session=shown
        )

    return router


def _plain(session: Session) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(session)
    return found
