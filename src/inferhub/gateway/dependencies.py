"""Who may use the cold routes; the hot ones ask `Identity` directly. One choke point for both."""

from __future__ import annotations

from fastapi import Request

from inferhub.core.tenancy import Principal
from inferhub.gateway.identity import Identity


def _identity(request: Request) -> Identity:
    identity: Identity = request.app.state.identity
    return identity


async def known_caller(request: Request) -> Principal:
    return _identity(request).principal(dict(request.scope["headers"]))


async def admin_caller(request: Request) -> Principal:
    return _identity(request).admin(dict(request.scope["headers"]))
