"""Stored responses in the gateway's words: kept after an answer, read again, continued by the next one.

Asked by `endpoint` and `routes`. A response belongs to the project whose key asked for it; nobody else's
exists. Storing never fails an answer; reading a store that is down is `StoreFailed`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from inferhub.core.errors import Invalid, NotFound, StoreFailed
from inferhub.core.tenancy import Principal
from inferhub.stores.responses.base import MAX_VALUE_BYTES, ResponseStore, Stored

_log = logging.getLogger(__name__)

MAX_DEPTH = 500
"""Responses of one conversation."""
_READ_TIMEOUT_S = 5.0
_WRITE_TIMEOUT_S = 1.0
_AVOID_S = 5.0
"""After a failure, nothing is written for so long: no answer's end should wait for a store that is down."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,256}")

T = TypeVar("T")


class Record(msgspec.Struct):
    """What is stored of one response."""

    response: msgspec.Raw
    input: list[dict[str, Any]]
    """The items of this request alone, each with its id."""


class _Answer(msgspec.Struct):
    """What matters of a stored response object."""

    id: str
    status: str | None = None
    output: list[dict[str, Any]] = []


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Record).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


def owner_of(principal: Principal) -> str:
    return f"{principal.tenant_id}/{principal.project_id}"


class KeptResponses:
    """One per gateway process; `store` may be shared by all of them."""

    def __init__(self, store: ResponseStore, *, ttl_s: float, max_history_bytes: int) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._max_history_bytes = max_history_bytes
        self._avoid_until_s = 0.0

    @property
    def is_up(self) -> bool:
        return time.monotonic() >= self._avoid_until_s

    async def keep(
        self, owner: str, response: bytes, given: list[dict[str, Any]], previous_id: str | None
    ) -> bool:
        """Whether it is stored now. Never raises, and never takes long."""
        if not self.is_up:
            return False
        try:
            answer = _decode_answer(response)
            if not _ID.fullmatch(answer.id):
                return False
            value = _encode(Record(msgspec.Raw(response), given))
            ids = tuple(i["id"] for i in (*given, *answer.output) if isinstance(i.get("id"), str))
            if len(value) > MAX_VALUE_BYTES:
                return False
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await self._store.put(owner, Stored(answer.id, previous_id or "", value, ids), self._ttl_s)
        except (StoreFailed, TimeoutError) as error:
            self._avoid_until_s = time.monotonic() + _AVOID_S
            reason = error.message if isinstance(error, StoreFailed) else "it took too long"
            _log.warning("a response was not stored: %s", reason)
            return False
        except msgspec.DecodeError:
            # Of an upstream whose response is none that could be read again.
            return False
        return True

    async def find(self, owner: str, response_id: str) -> Record:
        """Raises `NotFound`, in the same words for what belongs to somebody else."""
        if _ID.fullmatch(response_id):
            chain = self._store.chain(owner, response_id, max_depth=1, max_bytes=MAX_VALUE_BYTES)
            found = await _in_time(chain)
            if found:
                return _decode(found[0].value)
        raise NotFound(f"Response with id {response_id[:80]!r} not found.")

    async def delete(self, owner: str, response_id: str) -> None:
        if not _ID.fullmatch(response_id) or not await _in_time(self._store.delete(owner, response_id)):
            raise NotFound(f"Response with id {response_id[:80]!r} not found.")

    async def history(self, owner: str, response_id: str) -> History:
        """The conversation up to and with this response. Raises `Invalid`."""
        param = "previous_response_id"
        found: Sequence[Stored] = ()
        if _ID.fullmatch(response_id):
            found = await _in_time(
                self._store.chain(owner, response_id, max_depth=MAX_DEPTH, max_bytes=self._max_history_bytes)
            )
        if not found:
            raise _not_found(f"Previous response with id {response_id[:80]!r} not found.")
        is_too_long = len(found) == MAX_DEPTH or sum(len(s.value) for s in found) > self._max_history_bytes
        if is_too_long and (found[-1].previous_id or len(found) == 1):
            raise Invalid(
                f"The conversation of {response_id!r} is too long to be continued by its id: more than "
                f"{MAX_DEPTH} responses, or than {self._max_history_bytes} bytes. Send the items instead.",
                param=param,
            )
        if found[-1].previous_id:
            raise _not_found(
                f"Response {found[-1].previous_id!r}, an earlier part of the conversation of "
                f"{response_id!r}, was deleted or has expired. Send the items instead."
            )
        items: list[dict[str, Any]] = []
        for stored in reversed(found):
            record = _decode(stored.value)
            answer = _decode_answer(record.response)
            if answer.status == "failed":
                raise Invalid(f"Response {stored.id!r} failed and cannot be continued.", param=param)
            items += record.input
            items += answer.output
        return History(items, found[-1].id)

    async def items(self, owner: str, wanted: Mapping[str, str]) -> Mapping[str, dict[str, Any]]:
        """Stored items by id; `wanted` is id → the place that refers to it. Raises `NotFound`."""
        found = await _in_time(self._store.holding(owner, wanted))
        items: dict[str, dict[str, Any]] = {}
        for item_id, where in wanted.items():
            record = _decode(found[item_id].value) if item_id in found else None
            every = (*record.input, *_decode_answer(record.response).output) if record else ()
            item = next((item for item in every if item.get("id") == item_id), None)
            if item is None:
                raise NotFound(f"Item with id {item_id[:80]!r} not found.", param=where)
            items[item_id] = item
        return items


class History(msgspec.Struct, frozen=True):
    items: list[dict[str, Any]]
    root_id: str
    """The first response of the conversation."""


def _not_found(message: str) -> Invalid:
    return Invalid(message, param="previous_response_id", code="previous_response_not_found")


async def _in_time(asked: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            return await asked
    except TimeoutError as error:
        raise StoreFailed(f"The stored responses did not answer in {_READ_TIMEOUT_S:g} s.") from error
