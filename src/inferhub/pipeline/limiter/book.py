"""Which meters a caller is held against. Built anew from the catalog's quotas whenever they change.

Read by `Limiter` with every call, so the answer is worked out once a caller. Never asks a store.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from inferhub.core.quota import Level, Meter, Quota, Unit, Window
from inferhub.core.tenancy import Principal
from inferhub.pipeline.limiter.amounts import Plan

_MAX_CALLERS = 100_000
_MAX_SUBJECTS = 100


class QuotaBook:
    """An immutable snapshot of all quotas."""

    def __init__(self, quotas: Iterable[Quota] = (), forebears: Mapping[str, str] | None = None) -> None:
        """`forebears` leads from a key that replaced another one to that one."""
        self._forebears = forebears or {}
        self._by_subject: dict[tuple[str, Level, str], dict[str, Meter]] = {}
        self._callers: dict[tuple[str, str, str], Plan] = {}
        for quota in quotas:
            subject = (quota.tenant_id, quota.level, quota.subject_id)
            meters = self._by_subject.setdefault(subject, {})
            meter = meter_for(quota)
            known = meters.get(meter.key)
            # Two quotas of one kind share one counter; the smaller one includes the other.
            if known is None or meter.limit < known.limit:
                meters[meter.key] = meter

    def meters_for(self, principal: Principal) -> tuple[Meter, ...]:
        """Tenant's, project's and key's meters, in this order."""
        return self.plan_for(principal).meters

    def plan_for(self, principal: Principal) -> Plan:
        """The same, ready for use with every call."""
        caller = (principal.tenant_id, principal.project_id, principal.key_id)
        found = self._callers.get(caller)
        return self._resolve(caller) if found is None else found

    def _resolve(self, caller: tuple[str, str, str]) -> Plan:
        tenant, project, key = caller
        subjects: list[tuple[str, Level, str]] = [
            (tenant, "tenant", tenant),
            (tenant, "project", project),
            (tenant, "key", key),
        ]
        # A key that was rotated keeps its limits, and while both work they share them.
        while key in self._forebears and len(subjects) < _MAX_SUBJECTS:
            key = self._forebears[key]
            subjects.append((tenant, "key", key))
        plan = Plan([m for s in subjects for m in self._by_subject.get(s, {}).values()])
        if len(self._callers) >= _MAX_CALLERS:
            self._callers.clear()
        self._callers[caller] = plan
        return plan


def meter_for(quota: Quota) -> Meter:
    key = f"{quota.level}:{quota.subject_id}:{quota.unit}:{quota.window}"
    return Meter(key, quota.unit, quota.window, quota.limit, quota.mode)


def meter_of(key: str) -> Meter:
    """The meter behind a key that was written down, without its limit: enough to charge it."""
    _, _, unit, window = key.rsplit(":", 3)
    return Meter(key, Unit(unit), Window(window), 0)
