"""What can be asked of the catalog. Answered by `sql`; asked by the CLI and by assembly's poller.

Never on the path of a request: the gateway works from `keys.KeyRing` and a loaded spec, and renews
them when `revision` has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from inferhub.core.tenancy import ApiKey

MAX_KEYS = 100_000
"""Every gateway holds them all in memory."""


@dataclass(frozen=True, slots=True)
class StoredSpec:
    """The spec that was applied last."""

    text: str = field(repr=False)
    """As the operator wrote it: references such as `${OPENAI_API_KEY}` are not expanded."""
    revision: int
    """1 for the first; compared when it is replaced."""
    applied_at: int
    """Unix seconds."""


class Catalog(Protocol):
    """Every method raises `InferHubError` and nothing foreign; each change is one transaction."""

    async def create_key(self, key: ApiKey) -> None:
        """Store what `keys.issue` made. An id that is taken is a `Conflict`, never an overwrite."""

    async def keys(self) -> tuple[ApiKey, ...]:
        """All of them, revoked ones too, oldest first."""

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Mark as revoked and return it; a key revoked before keeps its date. Raises `NotFound`."""

    async def spec(self) -> StoredSpec | None:
        """What was applied last, or None on a new installation."""

    async def replace_spec(self, text: str, expected_revision: int) -> StoredSpec:
        """Compare and set: `expected_revision` is that of the spec it replaces, 0 where there is none.

        Raises `Conflict` when somebody else was faster. The text must have been checked before.
        """

    async def revision(self) -> int:
        """A number that grows with every change of anything here, by any process. Cheap: poll it."""

    async def check_pepper(self, pepper: bytes) -> None:
        """Raise `SetupError` unless `pepper` is the one that the first caller gave.

        Without it, keys made under another pepper would just be refused as unknown.
        """

    async def close(self) -> None: ...
