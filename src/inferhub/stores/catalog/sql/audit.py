"""The audit log, read and verified. Entries are written by `session`, each with its change."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Row, func, select

from inferhub.core.audit import GENESIS, Act, AuditEntry, chain
from inferhub.core.errors import CatalogCorrupt, Invalid
from inferhub.stores.catalog.base import MAX_AUDIT_PAGE
from inferhub.stores.catalog.checks import is_id
from inferhub.stores.catalog.sql.session import Session
from inferhub.stores.catalog.tables import audit_log, state

_VERIFY_PAGE = 500


class AuditLog(Session):
    async def record(self, act: Act) -> None:
        async with self._write(act, is_change=False):
            pass

    async def audit(
        self, *, tenant_id: str | None = None, before_seq: int | None = None, limit: int = 100
    ) -> tuple[AuditEntry, ...]:
        if not 1 <= limit <= MAX_AUDIT_PAGE:
            raise Invalid(f"limit is a whole number from 1 to {MAX_AUDIT_PAGE}; got {limit}.", param="limit")
        query = select(audit_log).order_by(audit_log.c.seq.desc()).limit(limit)
        if tenant_id is not None:
            if not is_id(tenant_id):
                return ()
            query = query.where(audit_log.c.tenant_id == tenant_id)
        if before_seq is not None:
            # Beyond what the column holds there is nothing, and asking would be an error.
            query = query.where(audit_log.c.seq < max(0, min(before_seq, 2**63 - 1)))
        return tuple(map(_entry, await self._rows(query)))

    async def verify_audit(self) -> int:
        # Read in one statement: entries that come meanwhile are beyond this end, and not looked at.
        last = select(func.max(audit_log.c.seq)).scalar_subquery().label("last")
        (end,) = await self._rows(select(state.c.audit_seq, state.c.audit_hash, last))
        previous = GENESIS
        for start in range(1, end.audit_seq + 1, _VERIFY_PAGE):
            stop = min(start + _VERIFY_PAGE, end.audit_seq + 1)
            page = (audit_log.c.seq >= start) & (audit_log.c.seq < stop)
            found = await self._rows(select(audit_log).where(page).order_by(audit_log.c.seq))
            previous = _verify_page(found, range(start, stop), previous)
        if previous != end.audit_hash:
            raise _broken(end.audit_seq, "is not the one that was written last")
        if (end.last or 0) > end.audit_seq:
            raise _broken(end.audit_seq + 1, "was put in from outside")
        return int(end.audit_seq)


def _verify_page(found: Any, seqs: range, previous: str) -> str:
    """The hash of the last entry. Raises `CatalogCorrupt` naming the first that is not as it was."""
    by_seq = {row.seq: row for row in found}
    for seq in seqs:
        row = by_seq.get(seq)
        if row is None:
            raise _broken(seq, "is missing")
        entry = _entry(row)
        if entry.previous_hash != previous:
            raise _broken(seq, "does not follow the one before it")
        if chain(seq, entry.at, entry.act, previous).hash != entry.hash:
            raise _broken(seq, "was changed")
        previous = entry.hash
    return previous


def _entry(row: Row[Any]) -> AuditEntry:
    try:
        detail = msgspec.json.decode(row.detail, type=dict[str, str])
    except msgspec.MsgspecError as error:
        raise _broken(row.seq, "was changed") from error
    act = Act(row.actor, row.action, row.target, row.tenant_id, detail, row.request_id)
    return AuditEntry(row.seq, row.at, act, row.previous_hash, row.hash)


def _broken(seq: int, finding: str) -> CatalogCorrupt:
    return CatalogCorrupt(
        f"Entry {seq} of the audit log {finding}. Somebody changed the database past InferHub: keep a copy "
        "of it, and compare it with a backup."
    )
