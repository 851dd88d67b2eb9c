"""Keeps the keys and the spec of a running gateway equal to the catalog, whoever changed it.

Made and run by assembly; `admin/spec` applies through it. Requests never come here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from inferhub.core.errors import Conflict, InferHubError
from inferhub.gateway.fleet import Fleet, Progress
from inferhub.gateway.identity import Identity
from inferhub.settings.spec import DEFAULT_SPEC_TEXT, Spec
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import KeyRing

_log = logging.getLogger(__name__)


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
        refresh_s: float,
    ) -> None:
        self._catalog = catalog
        self._fleet = fleet
        self._pepper = pepper
        self._parse = parse
        self._refresh_s = refresh_s
        self._spec = AppliedSpec(DEFAULT_SPEC_TEXT, 0)
        self._revision = -1
        # A change through this gateway and one seen in the catalog must not cross.
        self._changing = asyncio.Lock()
        self.identity = Identity(KeyRing((), pepper))

    @property
    def spec(self) -> AppliedSpec:
        return self._spec

    async def start(self, spec_text: str | None, on_progress: Progress) -> None:
        """An explicit text wins over the catalog's, and the catalog's over the built-in one."""
        stored = await self._catalog.spec()
        if spec_text is not None:
            self._spec = AppliedSpec(spec_text, stored.revision if stored else 0)
        elif stored is not None:
            self._spec = AppliedSpec(stored.text, stored.revision)
        await self._fleet.apply(self._parse(self._spec.text), on_progress)
        await self.refresh()

    async def apply(self, text: str, expected_revision: int | None) -> AppliedSpec:
        """Check, load and swap; only what really runs is stored. Raises `SetupError` or `Conflict`."""
        async with self._changing:
            if expected_revision is not None and expected_revision != self._spec.revision:
                raise Conflict(
                    f"The spec is at revision {self._spec.revision}, not {expected_revision}; read it again.",
                    param="If-Match",
                )
            before = self._fleet.spec
            await self._fleet.apply(self._parse(text))
            try:
                stored = await self._catalog.replace_spec(text, self._spec.revision)
            except InferHubError:
                await self._fleet.apply(before)
                raise
            self._spec = AppliedSpec(stored.text, stored.revision)
            return self._spec

    async def run(self) -> None:
        """Look for changes until cancelled."""
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self.refresh()
            except InferHubError as error:
                # The snapshot goes on serving; the catalog may come back.
                _log.warning("catalog cannot be read: %s", error.message)

    async def refresh(self) -> None:
        """Take over what changed since the last look."""
        async with self._changing:
            revision = await self._catalog.revision()
            if revision == self._revision:
                return
            is_first = self._revision < 0
            self.identity.refresh(KeyRing(await self._catalog.keys(), self._pepper))
            stored = await self._catalog.spec()
            self._revision = revision
            if not is_first and stored is not None and stored.revision > self._spec.revision:
                await self._follow(AppliedSpec(stored.text, stored.revision))

    async def _follow(self, applied: AppliedSpec) -> None:
        """Another gateway applied this. What cannot be loaded here is said once, and the old spec stays."""
        try:
            await self._fleet.apply(self._parse(applied.text))
        except InferHubError as error:
            _log.error("revision %d of the spec cannot be loaded here: %s", applied.revision, error.message)
            return
        self._spec = applied
