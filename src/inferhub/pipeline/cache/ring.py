"""The way of a call through the cache: found, waited for, or computed and kept.

Sits inside the meter, which bills nothing for a hit, and around every attempt. Never fails a call: without
its store it only computes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.errors import Unsupported
from inferhub.pipeline.cache.embeddings import Embeddings
from inferhub.pipeline.cache.flights import Flight, Flights
from inferhub.pipeline.cache.keys import Question, exact_key, fields_of
from inferhub.pipeline.cache.policy import is_cacheable
from inferhub.pipeline.cache.record import Answer, Recording, decode, encode, replay
from inferhub.pipeline.cache.semantic import Probe, Semantic
from inferhub.pipeline.directory import Directory
from inferhub.stores.cache.tiered import TieredAnswers

PATIENCE_S = 30.0
"""How long a call waits for an identical one before it computes by itself."""


class Cache:
    """A ring. `directory` tells which version of a model would answer now."""

    def __init__(
        self,
        store: TieredAnswers,
        directory: Callable[[], Directory],
        *,
        ttl_s: float,
        semantic: Semantic | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._store = store
        self._directory = directory
        self._ttl_s = ttl_s
        self._semantic = semantic
        self._flights: Flights[Answer[Any]] = Flights(patience_s)
        self._embeddings = Embeddings(store, ttl_s=ttl_s, patience_s=patience_s)

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        if call.cache == "semantic" and self._semantic is None:
            raise Unsupported(
                "This installation has no semantic cache: the setting semantic_cache_model is not set.",
                param="x-inferhub-cache",
            )
        question = self._question(call) if is_cacheable(call) else None
        if question is None:
            return await inner(call, emit)
        if call.modality == "embedding":
            return await self._embeddings(question, emit, inner)
        key = exact_key(question)
        answer = await self._find(call.modality, key)
        if answer is None:
            boarded = await self._flights.board(key)
            if isinstance(boarded, Flight):
                with boarded:
                    return await self._lead(question, emit, inner, _Lead(key, boarded))
            answer = boarded
        return await replay(answer, answer.model or question.model, emit)

    def _question(self, call: Call) -> Question | None:
        """None where nobody serves the model, which dispatch says best, or two versions of it do.

        An answer of a route is kept for the route, and for as long as the same models stand behind it: whom
        it asks is chance, and who asks for one of them by name wants that one.
        """
        directory = self._directory()
        models = directory.models_of(call.model)
        versions: list[str] = []
        for model in models:
            found = {endpoint.model.spec.name for endpoint in directory.endpoints.get(model, ())}
            if len(found) > 1:
                return None
            versions += found
        if not versions:
            return None
        if len(models) == 1:
            return Question(call, models[0], versions[0], fields_of(call))
        if call.modality == "embedding":
            # Its inputs are kept one by one, and vectors of two models must not meet in one answer.
            return None
        return Question(call, models[0], "\0".join((call.model, *sorted(versions))), fields_of(call))

    async def _find(self, modality: str, key: bytes) -> Answer[Any] | None:
        value = await self._store.find(key)
        if value is None:
            return None
        answer = decode(modality, value)
        if answer is None:
            self._store.forget(key)
        return answer

    async def _lead(self, question: Question, emit: Emit, inner: Handler, lead: _Lead) -> None:
        # Another leader may have ended while the shared store was asked.
        kept = self._store.recall(lead.key)
        answer = None if kept is None else decode(question.call.modality, kept)
        probe = None
        if answer is None and question.call.cache == "semantic" and self._semantic is not None:
            probe = await self._semantic.look(question)
            if probe is not None and probe.found is not None:
                answer = await self._find(question.call.modality, probe.found)
        if answer is None:
            return await inner(question.call, self._kept(question, emit, lead, probe))
        lead.flight.land(answer)
        return await replay(answer, answer.model or question.model, emit)

    def _kept(self, question: Question, emit: Emit, lead: _Lead, probe: Probe | None) -> Emit:
        """Passes an answer on, and keeps it if it comes to its clean end from one endpoint."""
        recording = Recording(question.call.modality)
        is_whole = True

        async def tee(chunk: Chunk) -> None:
            nonlocal is_whole
            if type(chunk) is Delta:
                recording.take(chunk.payload)
            elif type(chunk) is Started:
                recording.ignored_params = chunk.ignored_params
                recording.model = chunk.model
                recording.described_by = chunk.described_by
                # One that broke off and went on elsewhere is no answer that this model would give.
                is_whole = is_whole and not recording.has_begun
                chunk = replace(chunk, cache="miss")
            elif (
                is_whole and type(chunk) is Finished and (answer := recording.answer(chunk.usage)) is not None
            ):
                lead.flight.land(answer)
                # Before the client has its end: when it asks again, the answer is there.
                await self._store.keep([(lead.key, encode(answer))], self._ttl_s)
                if probe is not None:
                    probe.remember(lead.key, self._ttl_s)
            await emit(chunk)

        return tee


class _Lead(NamedTuple):
    """What this call computes, for itself and for those who wait."""

    key: bytes
    flight: Flight[Answer[Any]]
