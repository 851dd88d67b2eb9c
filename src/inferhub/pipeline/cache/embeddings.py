"""Embeddings by content: every input has a key of its own, and only inputs that are new go inward.

Called by `ring`. The usage counts what was computed; inputs that were there count as nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgspec

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.embedding import EmbeddingDelta, inputs
from inferhub.pipeline.cache.flights import Flight, Flights
from inferhub.pipeline.cache.keys import Question, item_keys
from inferhub.pipeline.cache.record import Answer, replay
from inferhub.stores.cache.tiered import TieredAnswers

Vectors = Mapping[bytes, bytes]
"""Key of an input → its vector, little-endian float32."""

_FLOAT_BYTES = 4
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Embeddings:
    def __init__(self, store: TieredAnswers, *, ttl_s: float, patience_s: float) -> None:
        self._store = store
        self._ttl_s = ttl_s
        self._flights: Flights[Vectors] = Flights(patience_s)

    async def __call__(self, question: Question, emit: Emit, inner: Handler) -> None:
        call = question.call
        items = inputs(call.request)
        keys = item_keys(question, items)
        # A text that is there twice is asked for once.
        by_key = dict(zip(keys, items, strict=True))
        stored = await self._store.find_many(list(by_key))
        vectors = {
            key: vector for key, vector in zip(by_key, stored, strict=True) if vector and _is_vector(vector)
        }
        missing = {key: item for key, item in by_key.items() if key not in vectors}
        if missing:
            flight = await self._flights.board(hashlib.sha256(b"".join(missing)).digest())
            if isinstance(flight, Flight):
                with flight:
                    merge = _Merge(keys, vectors, list(missing), emit)
                    asked = call if len(missing) == len(items) else _of(call, list(missing.values()))
                    await inner(asked, self._kept(merge, flight))
                    return
            vectors.update(flight)
        deltas = [EmbeddingDelta(index, vectors[key]) for index, key in enumerate(keys)]
        await replay(Answer(deltas, Usage()), question.model, emit)

    def _kept(self, merge: _Merge, flight: Flight[Vectors]) -> Emit:
        async def emit(chunk: Chunk) -> None:
            if type(chunk) is Finished:
                computed = merge.computed()
                flight.land(computed)
                await self._store.keep(list(computed.items()), self._ttl_s)
            await merge(chunk)

        return emit


class _Merge:
    """An `emit` that puts what is computed between what was there, each under its index in the request."""

    def __init__(
        self, keys: Sequence[bytes], vectors: dict[bytes, bytes], missing: Sequence[bytes], emit: Emit
    ) -> None:
        self._keys = keys
        self._vectors = vectors
        self._missing = missing
        self._emit = emit
        self._next = 0

    async def __call__(self, chunk: Chunk) -> None:
        if type(chunk) is Delta:
            payload: EmbeddingDelta = chunk.payload
            if not 0 <= payload.index < len(self._missing) or not _is_vector(payload.vector):
                raise UpstreamFailed("The model answered with a vector that belongs to no input.")
            self._vectors[self._missing[payload.index]] = payload.vector
            await self._advance()
        elif type(chunk) is Started:
            await self._emit(replace(chunk, cache="miss"))
        else:
            await self._emit(chunk)

    def computed(self) -> Vectors:
        absent = sum(key not in self._vectors for key in self._missing)
        if absent:
            raise UpstreamFailed(f"The model answered without the vectors of {absent} inputs.")
        return {key: self._vectors[key] for key in self._missing}

    async def _advance(self) -> None:
        while self._next < len(self._keys) and self._keys[self._next] in self._vectors:
            index, self._next = self._next, self._next + 1
            await self._emit(Delta(EmbeddingDelta(index, self._vectors[self._keys[index]])))


def _is_vector(value: bytes) -> bool:
    return len(value) > 0 and len(value) % _FLOAT_BYTES == 0


def _of(call: Call, items: list[str | list[int]]) -> Call:
    """The same call for these inputs only."""
    body = _encode({**_decode_fields(call.body), "input": items})
    return replace(call, request=msgspec.structs.replace(call.request, input=items), body=body)
