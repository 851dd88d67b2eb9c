"""How much of files this process holds at once: uploads that do not fit are refused before they come.

Each one has its own limit, in `forms`; without a common one, many that are allowed would fill the memory
together. Used by `surface` and `infer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from inferhub.core.errors import Overloaded
from inferhub.gateway.limits import GatewayLimits

_RETRY_AFTER_S = 2.0


class Uploads:
    """One per process."""

    def __init__(self, limits: GatewayLimits) -> None:
        self._limits = limits
        self._held_bytes = 0

    @contextmanager
    def room(self, headers: Mapping[bytes, bytes]) -> Iterator[None]:
        """Around all of a call with files, which are held until it ends. Raises `Overloaded`."""
        declared = headers.get(b"content-length", b"")
        # One that does not say how long it is may become as long as it is allowed to.
        most = self._limits.max_upload_bytes
        size = min(int(declared), most) if declared.isdigit() else most
        # A single one always fits, however the settings are.
        if self._held_bytes and self._held_bytes + size > self._limits.max_uploads_bytes:
            raise Overloaded(
                f"Uploads of {self._held_bytes} bytes are being answered; this one does not fit beside them.",
                retry_after_s=_RETRY_AFTER_S,
                reason="media_full",
            )
        self._held_bytes += size
        try:
            yield
        finally:
            self._held_bytes -= size
