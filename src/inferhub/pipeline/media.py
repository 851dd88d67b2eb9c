"""Pictures and files in a request: checked where they are in it, fetched where they are named by address,
and pictures passed on without what they say of their owner.

A ring around the attempts checks every URL once and keeps what was fetched until the call ends; `inline` is
asked by dispatch, which knows the endpoint: it fetches only for one that cannot do so itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from inferhub.core.call import Call, Emit, Handler
from inferhub.core.call import Media as File
from inferhub.core.errors import DeadlineExceeded, EgressRefused, InferHubError, Invalid, UpstreamFailed
from inferhub.core.models import Capability
from inferhub.egress import Fetched, check_url
from inferhub.pipeline.media_parts import (
    PICTURES,
    Path,
    Place,
    check_data_url,
    check_fetched,
    data_url,
    places_of,
    with_content,
    with_pictures,
    with_urls,
)

Fetch = Callable[[str], Awaitable[Fetched]]
"""URL → its content, from nowhere that it may not come from: `egress.Fetcher.get`."""


class Clean(Protocol):
    """A picture → the same within the limits, upright, without metadata: `media.MediaPool.clean_image`.

    The very same bytes where there is nothing to do."""

    def __call__(self, data: bytes, *, param: str) -> Awaitable[bytes]: ...


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """Of one call, but for the last."""

    most: int = 16
    """Pictures and files, named or enclosed."""
    file_bytes: int = 16 * 1024**2
    total_bytes: int = 24 * 1024**2
    """Fetched. With what its encoding adds, and the largest body, it still fits into a worker's message."""
    at_once: int = 4
    fetches_at_once: int = 32
    """Of all calls."""


@dataclass(slots=True)
class _Held:
    """One call's places, and what was fetched for them."""

    places: Sequence[Place]
    inlined: dict[str, str] = field(default_factory=dict)
    """URL → `data:` URL."""
    fetched_bytes: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Two attempts at once fetch once."""


class Media:
    """One per gateway process."""

    def __init__(
        self, fetch: Fetch, clean: Clean, *, allow: Sequence[str] = (), limits: MediaLimits | None = None
    ) -> None:
        """`allow` is the setting `egress_allow`."""
        self._fetch = fetch
        self._clean = clean
        self._allow = allow
        self._limits = limits or MediaLimits()
        self._room = asyncio.Semaphore(self._limits.fetches_at_once)
        self._calls: dict[str, _Held] = {}

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        """The ring. Raises `Invalid` or `EgressRefused` naming the parameter."""
        if call.media:
            call = replace(call, media=tuple([await self._cleaned(file) for file in call.media]))
        places = places_of(call.request)
        if not places:
            return await inner(call, emit)
        if urls := await self._checked(places):
            call = with_pictures(call, places, urls)
        remote = [place for place in places if not place.is_data]
        if not remote:
            return await inner(call, emit)
        self._calls[call.key] = _Held(remote)
        try:
            return await inner(call, emit)
        finally:
            del self._calls[call.key]

    def concerns(self, call: Call) -> bool:
        """Whether the call names anything by address: hardly any does."""
        return call.key in self._calls

    async def inline(self, call: Call, capability: Capability) -> Call:
        """The call as this endpoint can read it: with `data:` URLs, unless it fetches for itself."""
        if "remote_urls" in capability.features:
            return call
        held = self._calls[call.key]
        async with held.lock:
            await self._fetch_all(held)
        urls = {place.path: held.inlined[place.url] for place in held.places}
        request, body = with_urls(call.request, call.body, urls)
        # What the client wrote in another dialect still has the addresses; the translation stands for it now.
        return replace(call, request=request, body=body, native=None)

    async def _cleaned(self, file: File) -> File:
        if file.kind not in PICTURES:
            return file
        clean = await self._clean(file.data, param=file.field)
        return file if clean is file.data else replace(file, data=clean)

    async def _checked(self, places: Sequence[Place]) -> Mapping[Path, str]:
        """What is to be put in the places of enclosed pictures."""
        if len(places) > self._limits.most:
            place = places[self._limits.most]
            raise Invalid(
                f"The request has {len(places)} pictures and files; at most {self._limits.most} are allowed.",
                param=place.param,
                code="too_many_files",
            )
        urls: dict[Path, str] = {}
        for place in places:
            if not place.is_data:
                check_url(place.url, self._allow, param=place.param)
                continue
            picture = await check_data_url(place, self._limits.file_bytes)
            if picture is None:
                continue
            clean = await self._clean(picture, param=place.param)
            if clean is not picture:
                urls[place.path] = await with_content(place, clean)
        return urls

    async def _fetch_all(self, held: _Held) -> None:
        """Each URL once, some at a time. The first failure ends the others."""
        missing = {place.url: place for place in held.places if place.url not in held.inlined}
        waiting = iter(missing.values())

        async def work() -> None:
            for place in waiting:
                held.inlined[place.url] = await self._fetch_one(held, place)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._limits.at_once, len(missing))):
                    group.create_task(work())
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _fetch_one(self, held: _Held, place: Place) -> str:
        async with self._room:
            try:
                fetched = await self._fetch(place.url)
            except InferHubError as error:
                raise _translated(error, place) from error
        if not 200 <= fetched.status < 300:
            raise _unfetched(place, f"it answers {fetched.status}")
        held.fetched_bytes += len(fetched.body)
        if len(fetched.body) > self._limits.file_bytes or held.fetched_bytes > self._limits.total_bytes:
            raise Invalid(
                f"'{place.param}' leads to too much: at most {self._limits.file_bytes} bytes are fetched for "
                f"each file, and {self._limits.total_bytes} for all of a request.",
                param=place.param,
                code="file_too_large",
            )
        kind, content = check_fetched(place, fetched.body), fetched.body
        if place.kind == "image":
            content = await self._clean(content, param=place.param)
        return await data_url(kind, content)


def _translated(error: InferHubError, place: Place) -> InferHubError:
    """The other side's failure is no endpoint's: trying another one would not help."""
    if isinstance(error, EgressRefused):
        return EgressRefused(f"'{place.param}': {error.message}", param=place.param)
    if isinstance(error, UpstreamFailed | DeadlineExceeded):
        return _unfetched(place, error.message)
    return error


def _unfetched(place: Place, reason: str) -> Invalid:
    return Invalid(
        f"'{place.param}' could not be fetched: {reason}", param=place.param, code="url_not_fetched"
    )
