"""What the scheduler compares, kept up to date: a row for each endpoint, a pool for each kind of call.

Made and asked by `router`. Of a large fleet only what has changed is made anew with each revision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.routing.affinity import Ring
from inferhub.routing.concurrency import bounds_of
from inferhub.routing.condition import Condition, Key, key_of
from inferhub.routing.filters import is_capable, may_go_there
from inferhub.routing.prefix import PrefixIndex
from inferhub.routing.scheduler import Pool, Row, row_of

Endpoints = Mapping[str, tuple[Endpoint, ...]]
_Kind = tuple[str, str, frozenset[str]]
"""(model, modality, features)"""


class Pools:
    def __init__(
        self, scheduling: Callable[[], Scheduling], region: str, condition: Callable[[Key], Condition]
    ) -> None:
        """`region` is this gateway's own; `condition` finds or makes the record of an endpoint."""
        self._wished = scheduling
        self._region = region
        self._condition = condition
        self.rows: Mapping[Key, Row] = {}
        self._pools: dict[_Kind, Pool] = {}
        self._rings: dict[str, tuple[tuple[str, ...], Ring]] = {}
        self._current: dict[str, Ring] = {}
        """Those of `_rings` that are known to be of this revision."""
        self._forbidden: dict[str, int] = {}
        self.scheduling = scheduling()
        self.prefixes = PrefixIndex()
        self.endpoints: Endpoints = {}
        """Model → where it may be called: without those that the region policy forbids."""

    def follow(self, endpoints: Endpoints) -> None:
        """Take over a newer snapshot, and what the workers report in it."""
        scheduling = self._wished()
        is_same = scheduling is self.scheduling
        self.scheduling = scheduling
        self.endpoints = self._allowed(endpoints)
        before, rows = self.rows, {}
        for of in self.endpoints.values():
            for endpoint in of:
                key = key_of(endpoint)
                known = before.get(key)
                if known is not None and known.endpoint is endpoint and is_same:
                    rows[key] = known
                    continue
                condition = self._condition(key)
                if known is None or _is_news(endpoint, known.endpoint):
                    self._heard(endpoint, condition)
                rows[key] = row_of(endpoint, condition, scheduling, self._region)
        self.rows = rows
        self._pools.clear()
        self._current.clear()
        self.prefixes.keep(rows.keys())
        for model in self._rings.keys() - endpoints.keys():
            del self._rings[model]

    def of(self, model: str, modality: str, features: frozenset[str]) -> Pool:
        """The endpoints of a model that have all these features."""
        kind = model, modality, features
        pool = self._pools.get(kind)
        if pool is None:
            every = self.endpoints.get(model, ())
            able = [e for e in every if is_capable(e, modality, features)]
            left_out = (
                ("region policy", self._forbidden.get(model, 0)),
                ("features", len(every) - len(able)),
            )
            pool = self._pools[kind] = self.among(model, able, tuple(pair for pair in left_out if pair[1]))
        return pool

    def among(
        self, model: str, endpoints: Sequence[Endpoint], left_out: tuple[tuple[str, int], ...] = ()
    ) -> Pool:
        """These endpoints of a model."""
        rows = [self.rows[key_of(endpoint)] for endpoint in endpoints]
        return Pool.build(rows, self.scheduling, left_out, partial(self._ring, model))

    def _ring(self, model: str) -> Ring:
        ring = self._current.get(model)
        if ring is None:
            ids = tuple([endpoint.id for endpoint in self.endpoints.get(model, ())])
            known = self._rings.get(model)
            if known is None or known[0] != ids:
                known = self._rings[model] = ids, Ring(ids)
            ring = self._current[model] = known[1]
        return ring

    def _allowed(self, endpoints: Endpoints) -> Endpoints:
        self._forbidden.clear()
        scheduling, region = self.scheduling, self._region
        if scheduling.region_policy == "any":
            return endpoints
        allowed = {
            model: tuple(e for e in of if may_go_there(e, scheduling, region))
            for model, of in endpoints.items()
        }
        self._forbidden = {m: gone for m, of in endpoints.items() if (gone := len(of) - len(allowed[m]))}
        return allowed

    def _heard(self, endpoint: Endpoint, condition: Condition) -> None:
        model = endpoint.model
        condition.reported(model.running + model.queued, model.pending_cost)
        spec = model.spec
        is_remote = model.device == "remote"
        condition.size(bounds_of(spec.slots, spec.queue_limit, spec.max_batch, is_remote=is_remote))
        self.prefixes.told(endpoint.id, model.prefixes, model.spec.name)


def _is_news(endpoint: Endpoint, before: Endpoint) -> bool:
    """Whether it is of a report that was not seen before; the same one would be counted twice."""
    if endpoint.report == (0, 0):
        return endpoint.model is not before.model
    return endpoint.report != before.report
