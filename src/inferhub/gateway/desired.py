"""Keeps what a running gateway knows equal to the catalog, whoever changed it: keys, limits, spec.

Made and run by assembly; `admin/spec` applies through it. Requests never come here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from inferhub.core.audit import Act
from inferhub.core.clock import unix_s
from inferhub.core.errors import Conflict, InferHubError
from inferhub.core.fleet import Progress
from inferhub.core.prices import PriceBook, check_price_dates
from inferhub.core.quota import Quota, Unit
from inferhub.core.tenancy import Project, Tenant, User
from inferhub.gateway.fleet import Fleet
from inferhub.gateway.identity import Identity
from inferhub.gateway.tokens import TokenVerifier
from inferhub.pipeline.limiter import QuotaBook
from inferhub.settings.spec import DEFAULT_SPEC_TEXT, Spec
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import KeyRing, disabled_ids

_log = logging.getLogger(__name__)
_NOTE_USES_EVERY_S = 10.0
_FOLLOW_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class People:
    """Everybody at one moment."""

    tenants: tuple[Tenant, ...] = ()
    projects: tuple[Project, ...] = ()
    users: tuple[User, ...] = ()

    @property
    def disabled(self) -> frozenset[str]:
        """Ids of the tenants and projects that are switched off."""
        return disabled_ids(self.tenants, self.projects)


@dataclass(frozen=True, slots=True)
class AppliedSpec:
    """A spec as the catalog holds it: the operator's own text, references unexpanded."""

    text: str
    revision: int


class Desired:
    """What this installation should be: the keys that open it and the models it serves."""

    def __init__(
        self,
        catalog: Catalog,
        fleet: Fleet,
        *,
        pepper: bytes,
        parse: Callable[[str], Spec],
        tokens: TokenVerifier,
        refresh_s: float,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._pepper = pepper
        self._parse = parse
        self._refresh_s = refresh_s
        self._spec = AppliedSpec(DEFAULT_SPEC_TEXT, 0)
        self._revision = -1
        self._note_at = time.monotonic() + _NOTE_USES_EVERY_S
        self.failure: str | None = None
        """Why the catalog cannot be read at present; the snapshot serves on."""
        # A change through this gateway and one seen in the catalog must not cross.
        self._changing = asyncio.Lock()
        self._tokens = tokens
        self._quotas = QuotaBook()
        self._unloaded: AppliedSpec | None = None
        self._follow_at = 0.0
        self._budgets: tuple[Quota, ...] = ()
        self._prices = PriceBook()
        self._people = People()
        self.identity = Identity(KeyRing((), pepper), tokens)

    @property
    def spec(self) -> AppliedSpec:
        return self._spec

    def quotas(self) -> QuotaBook:
        return self._quotas

    def prices(self) -> PriceBook:
        return self._prices

    def budgets(self) -> tuple[Quota, ...]:
        return self._budgets

    def health(self) -> Mapping[str, str]:
        """`failing` while the catalog cannot be read and the last snapshot serves on; `behind` while a spec
        that was applied elsewhere cannot be loaded here."""
        if self.failure is not None:
            return {"catalog": "failing"}
        return {"catalog": "ok" if self._unloaded is None else "behind"}

    def people(self) -> People:
        return self._people

    async def start(self, spec_text: str | None, on_progress: Progress) -> None:
        """An explicit text wins over the catalog's, and the catalog's over the built-in one."""
        stored = await self._catalog.spec()
        if spec_text is not None:
            self._spec = AppliedSpec(spec_text, stored.revision if stored else 0)
        elif stored is not None:
            self._spec = AppliedSpec(stored.text, stored.revision)
        spec = self._parse(self._spec.text)
        await self._fleet.apply(spec, on_progress)
        self._prices = PriceBook(spec.prices)
        await self.refresh()

    async def apply(self, text: str, expected_revision: int | None, act: Act) -> AppliedSpec:
        """Check, load and swap; only what really runs is stored. Raises `SetupError` or `Conflict`."""
        async with self._changing:
            if expected_revision is not None and expected_revision != self._spec.revision:
                raise Conflict(
                    f"The spec is at revision {self._spec.revision}, not {expected_revision}; read it again.",
                    param="If-Match",
                )
            before, spec = self._fleet.spec, self._parse(text)
            check_price_dates(before.prices, spec.prices, unix_s(), spec.price_places)
            await self._fleet.apply(spec)
            try:
                stored = await self._catalog.replace_spec(text, self._spec.revision, act)
            except InferHubError:
                await self._fleet.apply(before)
                raise
            self._spec = AppliedSpec(stored.text, stored.revision)
            self._take_over(spec)
            return self._spec

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
                await self._retry()
                await self._note_uses()
            except InferHubError as error:
                self._lose(error)
            except Exception:
                # A row that nobody foresaw must not end a gateway that serves.
                _log.exception("following the catalog failed unexpectedly")
            else:
                if self.failure is not None:
                    _log.warning("the catalog can be read again")
                self.failure = None

    async def catch_up(self) -> None:
        """`refresh`, right after a change that the catalog has: never a reason to call that one failed."""
        try:
            await self.refresh()
        except InferHubError as error:
            self._lose(error)

    def _lose(self, error: InferHubError) -> None:
        """The snapshot goes on serving; the catalog may come back."""
        if self.failure is None:
            _log.warning("the catalog cannot be read: %s", error.message)
        self.failure = error.message

    async def _note_uses(self) -> None:
        """When each key was used last, now and then: nobody needs it to the second."""
        now = time.monotonic()
        if now < self._note_at:
            return
        self._note_at = now + _NOTE_USES_EVERY_S
        used_at = self.identity.take_uses()
        if used_at:
            await self._catalog.note_key_use(used_at)

    async def refresh(self) -> None:
        """Take over what changed since the last look."""
        async with self._changing:
            revision = await self._catalog.revision()
            if revision == self._revision:
                return
            is_first = self._revision < 0
            people = People(
                await self._catalog.tenants(), await self._catalog.projects(), await self._catalog.users()
            )
            keys, quotas = await self._catalog.keys(), await self._catalog.quotas()
            stored = await self._catalog.spec()
            self.identity.refresh(KeyRing(keys, self._pepper, people.disabled))
            forebears = {key.rotated_to: key.id for key in keys if key.rotated_to is not None}
            self._quotas = QuotaBook(quotas, forebears)
            self._people, self._revision = people, revision
            self._budgets = tuple(quota for quota in quotas if quota.unit is Unit.USD)
            self._tokens.configure(self._fleet.spec.issuers, people.users, people.disabled)
            if not is_first and stored is not None and stored.revision > self._spec.revision:
                await self._follow(AppliedSpec(stored.text, stored.revision))

    async def _follow(self, applied: AppliedSpec) -> None:
        """Another gateway applied this. What cannot be loaded here is tried again; the old spec stays."""
        try:
            spec = self._parse(applied.text)
            await self._fleet.apply(spec)
        except InferHubError as error:
            if self._unloaded != applied:
                text = "revision %d of the spec cannot be loaded here: %s"
                _log.error(text, applied.revision, error.message)
            self._unloaded, self._follow_at = applied, time.monotonic() + _FOLLOW_AGAIN_S
            return
        self._spec, self._unloaded = applied, None
        self._take_over(spec)

    async def _retry(self) -> None:
        """A spec that could not be loaded, perhaps because a worker or a file was away."""
        async with self._changing:
            if self._unloaded is None or time.monotonic() < self._follow_at:
                return
            if self._unloaded.revision > self._spec.revision:
                await self._follow(self._unloaded)

    def _take_over(self, spec: Spec) -> None:
        """What a spec means apart from its models."""
        self._prices = PriceBook(spec.prices)
        self._tokens.configure(spec.issuers, self._people.users, self._people.disabled)
