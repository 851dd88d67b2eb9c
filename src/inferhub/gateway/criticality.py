"""How urgent a call is, from what its client says. Asked by `surface` for every call over HTTP.

Anybody may say that a call can wait. That it cannot is said only by who was given the right to: otherwise
everybody would say so, and nobody would have anything of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferhub.core.call import Criticality
from inferhub.core.errors import Forbidden, Invalid
from inferhub.core.tenancy import REALTIME_SCOPE, Principal

HEADER = b"x-inferhub-criticality"

_BY_NAME = {kind.name.lower().encode(): kind for kind in Criticality}
_BY_TIER = {"flex": Criticality.BATCH, "priority": Criticality.REALTIME}


def criticality_of(headers: Mapping[bytes, bytes], request: Any, principal: Principal) -> Criticality:
    """The header's word, else OpenAI's `service_tier`, else `interactive`.

    Raises `Invalid` for another word, and `Forbidden` for a header that the caller has no right to. A tier is
    a wish: where the right is missing it counts for nothing here, and is passed on to upstreams as ever.
    """
    given = headers.get(HEADER)
    if given is None:
        wished = _BY_TIER.get(getattr(request, "service_tier", None) or "", Criticality.INTERACTIVE)
        return wished if _may(principal, wished) else Criticality.INTERACTIVE
    found = _BY_NAME.get(given.strip().lower())
    if found is None:
        raise Invalid(
            f"{HEADER.decode()} is {given[:40].decode('latin-1')!r}; allowed: realtime, interactive, batch.",
            param=HEADER.decode(),
        )
    if not _may(principal, found):
        raise Forbidden(
            f"This key has no scope {REALTIME_SCOPE!r}, which '{HEADER.decode()}: realtime' needs. "
            "An admin can give it to a key by name."
        )
    return found


def _may(principal: Principal, wished: Criticality) -> bool:
    return wished is not Criticality.REALTIME or principal.may(REALTIME_SCOPE)
