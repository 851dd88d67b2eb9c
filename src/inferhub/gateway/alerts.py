"""Tells a tenant when a budget is half, four fifths and wholly used: a signed webhook, and an event.

Run by assembly beside the gateway. Looks at the counters now and then, so no request waits for it; of
several gateway processes one tells, and one that dies while telling is replaced by another.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

import msgspec

from inferhub.core.errors import InferHubError, UpstreamFailed
from inferhub.core.quota import NANO_USD, Meter, Quota, Reading, Unit, Window
from inferhub.core.tenancy import Tenant
from inferhub.egress import Fetched
from inferhub.gateway.webhooks import unseal, webhook_secret
from inferhub.pipeline.limiter.book import meter_for
from inferhub.stores.cache.base import AnswerStore
from inferhub.stores.events.base import Event

_log = logging.getLogger(__name__)

THRESHOLDS = (50, 80, 100)
"""Percent of a budget."""
_LOOK_EVERY_S = 2.0
_HALF_A_DAY_S = 12 * 3600.0
CLAIM_S = 60.0
"""How long one process may take to tell; then, and after a failure, another one may."""
_KEPT_S = 40 * 24 * 3600.0
"""Longer than any budget's window."""
_MAX_AT_ONCE = 8
_DONE = b"done"


@dataclass(frozen=True, slots=True)
class Alert:
    """One threshold of one budget, in one day or month."""

    id: str
    """The same in every process, so that receivers can drop a repetition."""
    tenant_id: str
    level: str
    subject_id: str
    window: str
    period: str
    """`YYYY-MM-DD` or `YYYY-MM`."""
    threshold_percent: int
    limit_usd: str
    used_usd: str


def due(quotas: Iterable[Quota], readings: Mapping[str, Reading], now_s: float) -> list[Alert]:
    """Every threshold that is reached now; whether it was told already is not known here."""
    found: list[Alert] = []
    for quota in quotas:
        reading = readings.get(meter_for(quota).key)
        if reading is None:
            continue
        # The counters' clock decides which period it is: from its end, half a day back.
        moment = datetime.fromtimestamp(now_s + reading.reset_s - _HALF_A_DAY_S, UTC)
        period = f"{moment:%Y-%m-%d}" if quota.window is Window.DAY else f"{moment:%Y-%m}"
        reached = [t for t in THRESHOLDS if reading.used * 100 >= quota.limit * t]
        found += [_alert(quota, reading, threshold, period) for threshold in reached]
    return found


def _alert(quota: Quota, reading: Reading, threshold: int, period: str) -> Alert:
    # A budget that is raised is a new one to be told about.
    said = f"{quota.id} {quota.limit} {threshold} {period}"
    return Alert(
        id=f"alert_{hashlib.sha256(said.encode()).hexdigest()[:24]}",
        tenant_id=quota.tenant_id,
        level=quota.level,
        subject_id=quota.subject_id,
        window=quota.window.value,
        period=period,
        threshold_percent=threshold,
        limit_usd=_usd(quota.limit),
        used_usd=_usd(reading.used),
    )


def _usd(nano: int) -> str:
    return f"{Decimal(nano) / NANO_USD:f}"


def signature(secret: str, at_s: int, body: bytes) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 over `SECONDS.BODY`, so that an old message cannot be sent again."""
    digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, "sha256").hexdigest()
    return f"t={at_s},v1={digest}"


class Alerts:
    """`budgets` and `tenants` return current snapshots; `publish` is an event stream's, if there is one."""

    def __init__(
        self,
        *,
        budgets: Callable[[], Sequence[Quota]],
        tenants: Callable[[], Sequence[Tenant]],
        read: Callable[[Sequence[Meter]], Awaitable[Sequence[Reading]]],
        post: Callable[[str, bytes, Mapping[str, str]], Awaitable[Fetched]],
        publish: Callable[[Sequence[Event]], Awaitable[None]] | None,
        marks: AnswerStore,
        pepper: bytes,
        claim_s: float = CLAIM_S,
    ) -> None:
        self._claim_s = claim_s
        self._budgets = budgets
        self._tenants = tenants
        self._read = read
        self._post = post
        self._publish = publish
        self._marks = marks
        self._pepper = pepper
        self._ways = {"webhook": self._webhook, **({"stream": self._stream} if publish else {})}
        self._told: set[tuple[str, str]] = set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            try:
                await self.look()
            except InferHubError as error:
                _log.debug("budgets cannot be looked at: %s", error.message)
            except Exception:
                # Whatever it is, it must not end a gateway that serves.
                _log.exception("looking at budgets failed unexpectedly")

    async def look(self) -> None:
        """One round: tell what is due and was not told. Raises `StoreFailed` while the stores are away."""
        quotas = [quota for quota in self._budgets() if quota.unit is Unit.USD]
        if not quotas:
            return
        readings = {r.meter.key: r for r in await self._read([meter_for(quota) for quota in quotas])}
        alerts = due(quotas, readings, time.time())
        wanted = [(alert, way) for alert in alerts for way in self._ways]
        self._told &= {(alert.id, way) for alert, way in wanted}
        fresh = [(alert, way) for alert, way in wanted if (alert.id, way) not in self._told]
        for start in range(0, len(fresh), _MAX_AT_ONCE):
            await asyncio.gather(*(self._tell(*each) for each in fresh[start : start + _MAX_AT_ONCE]))

    async def _tell(self, alert: Alert, way: str) -> None:
        """Each way on its own: a receiver that is down must not have the event published again and again."""
        mark = hashlib.sha256(f"{alert.id} {way}".encode()).digest()
        found = await self._marks.add(mark, b"claimed", self._claim_s)
        if found == _DONE:
            self._told.add((alert.id, way))
        if found is not None:
            return
        _log.info(
            "a budget is %d%% used",
            alert.threshold_percent,
            extra={"tenant": alert.tenant_id, "subject": alert.subject_id, "alert": alert.id, "way": way},
        )
        try:
            await self._ways[way](alert, _body(alert))
        except InferHubError as error:
            # The claim runs out, and whoever looks then tries again.
            _log.warning(
                "a budget alert was not delivered: %s", error.message, extra={"alert": alert.id, "way": way}
            )
            return
        await self._marks.put(mark, _DONE, _KEPT_S)
        self._told.add((alert.id, way))

    async def _stream(self, alert: Alert, body: bytes) -> None:
        if self._publish is not None:
            await self._publish([Event("alerts.events", alert.tenant_id, alert.id, body)])

    async def _webhook(self, alert: Alert, body: bytes) -> None:
        url = next((t.webhook_url for t in self._tenants() if t.id == alert.tenant_id), None)
        if url is None:
            return
        secret = webhook_secret(self._pepper, alert.tenant_id)
        headers = {
            "content-type": "application/json",
            "x-inferhub-alert": alert.id,
            "x-inferhub-signature": signature(secret, int(time.time()), body),
        }
        answer = await self._post(unseal(url, self._pepper, alert.tenant_id), body, headers)
        if not 200 <= answer.status < 300:
            raise UpstreamFailed(f"the webhook answered {answer.status}")


def _body(alert: Alert) -> bytes:
    return msgspec.json.encode({"type": "budget.threshold", **msgspec.to_builtins(alert)})
