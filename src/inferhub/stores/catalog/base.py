"""What can be asked of the catalog. Answered by `sql`; asked by the CLI, the admin API and assembly's poller.

Never on the path of a request: the gateway works from snapshots and renews them when `revision` has
changed. Every change takes the `Act` that the audit log records in the same transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from inferhub.core.audit import Act, AuditEntry
from inferhub.core.quota import Quota
from inferhub.core.tenancy import ApiKey, Project, Tenant, User

MAX_TENANTS = 10_000
MAX_PROJECTS = 50_000
MAX_USERS = 100_000
MAX_KEYS = 100_000
MAX_QUOTAS = 100_000
"""Every gateway holds them all in memory."""
MAX_AUDIT_PAGE = 1000


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
    """Every method raises `InferHubError` and nothing foreign; each change is one transaction.

    A change of what does not exist is `NotFound`, of an id or name that is taken `Conflict`, and a field
    that `checks` refuses `Invalid`. Then nothing was changed, and nothing is in the audit log.
    """

    # --- tenants, projects, users -----------------------------------------------------------------
    async def create_tenant(self, tenant: Tenant, act: Act) -> None: ...

    async def replace_tenant(self, tenant: Tenant, act: Act) -> None:
        """Change name, webhook or disablement. The default tenant cannot be disabled."""

    async def tenants(self) -> tuple[Tenant, ...]:
        """All of them, oldest first; the default one always exists."""

    async def create_project(self, project: Project, act: Act) -> None: ...

    async def replace_project(self, project: Project, act: Act) -> None:
        """Change name or disablement. No project leaves its tenant: under another one it is `NotFound`."""

    async def projects(self) -> tuple[Project, ...]: ...

    async def create_user(self, user: User, act: Act) -> None:
        """`Conflict` where (issuer, subject) is known already."""

    async def replace_user(self, user: User, act: Act) -> None:
        """Change all but id, tenant and `created_at`."""

    async def users(self) -> tuple[User, ...]: ...

    # --- keys -------------------------------------------------------------------------------------
    async def create_key(self, key: ApiKey, act: Act) -> None:
        """Store what `keys.issue` made. An id that is taken is a `Conflict`, never an overwrite."""

    async def keys(self) -> tuple[ApiKey, ...]:
        """All of them, revoked ones too, oldest first."""

    async def revoke_key(self, key_id: str, act: Act) -> ApiKey:
        """Mark as revoked and return it; a key revoked before keeps its date."""

    async def rotate_key(self, key_id: str, successor: ApiKey, overlap_until: int, act: Act) -> ApiKey:
        """Store `successor` and let the old key expire then, or earlier as it was. Returns the old one.

        `keys.reissue` makes the successor; one of another tenant or project is `Invalid`. `Conflict` for a
        key that is revoked, expired or rotated already.
        """

    async def note_key_use(self, used_at: Mapping[str, int]) -> None:
        """Key id → Unix seconds of its last call. Raises no revision and writes no audit entry. Unknown
        ids and times before the known one are passed over, so that it may be repeated."""

    # --- limits -----------------------------------------------------------------------------------
    async def set_quota(self, quota: Quota, act: Act) -> Quota:
        """Create, or replace the one of the same subject, unit and window, whose id is kept."""

    async def delete_quota(self, quota_id: str, act: Act) -> Quota: ...

    async def quotas(self) -> tuple[Quota, ...]: ...

    # --- audit ------------------------------------------------------------------------------------
    async def record(self, act: Act) -> None:
        """An act that changes nothing in the catalog, for example an export."""

    async def audit(
        self, *, tenant_id: str | None = None, before_seq: int | None = None, limit: int = 100
    ) -> tuple[AuditEntry, ...]:
        """Newest first; of one tenant, or of all. `limit` is 1 to `MAX_AUDIT_PAGE`."""

    async def verify_audit(self) -> int:
        """How many entries there are, after checking every hash. Raises `CatalogCorrupt` naming the first
        entry that was changed, removed or put in between."""

    # --- the spec ---------------------------------------------------------------------------------
    async def spec(self) -> StoredSpec | None:
        """What was applied last, or None on a new installation."""

    async def replace_spec(self, text: str, expected_revision: int, act: Act) -> StoredSpec:
        """Compare and set: `expected_revision` is that of the spec it replaces, 0 where there is none.

        Raises `Conflict` when somebody else was faster. The text must have been checked before.
        """

    # --- the catalog itself -----------------------------------------------------------------------
    async def revision(self) -> int:
        """A number that grows with every change of anything here, by any process. Cheap: poll it."""

    async def check_pepper(self, pepper: bytes) -> None:
        """Raise `SetupError` unless `pepper` is the one that the first caller gave.

        Without it, keys made under another pepper would just be refused as unknown.
        """

    async def close(self) -> None: ...
