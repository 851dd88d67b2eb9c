"""Builds one handler from rings and a leaf. The first ring is the outermost."""

from __future__ import annotations

from collections.abc import Sequence

from inferhub.core.call import Call, Emit, Handler, Ring


def build(rings: Sequence[Ring], leaf: Handler) -> Handler:
    handler = leaf
    for ring in reversed(rings):
        handler = _wrap(ring, handler)
    return handler


def _wrap(ring: Ring, inner: Handler) -> Handler:
    async def handler(call: Call, emit: Emit) -> None:
        await ring(call, emit, inner)

    return handler
