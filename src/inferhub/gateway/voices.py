"""`GET /v1/audio/voices`: who can speak, of all models that the caller may use, loaded or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Query

from inferhub.core.models import Voice
from inferhub.gateway.access import Caller, GuardedRoute
from inferhub.modalities.speech import EMOTIONS
from inferhub.pipeline.admit import check_model
from inferhub.pipeline.directory import Directory


def voices_router(directory: Callable[[], Directory]) -> APIRouter:
    router = APIRouter(route_class=GuardedRoute, prefix="/v1", tags=["speech"])

    @router.get("/audio/voices", summary="List the voices")
    async def list_voices(
        caller: Caller,
        model: str | None = Query(None, max_length=256, description="Only of this model"),
        language: str | None = Query(None, max_length=16, description="Only of this language, such as `es`"),
    ) -> Mapping[str, Any]:
        snapshot = directory()
        names = [name for name in snapshot.names if name not in snapshot.routes and caller.may_call(name)]
        if model is not None:
            check_model(caller, model)
            snapshot.check(model, caller.may_call)
            names = [snapshot.primary(model)]
        found = [
            card(voice, name, features)
            for name in names
            for voice, features in _voices(snapshot, name)
            if language is None or speaks(voice, language)
        ]
        return {"object": "list", "data": found}

    return router


def speaks(voice: Voice, language: str) -> bool:
    wanted = language.replace("_", "-").lower()
    return voice.language.lower() == wanted or voice.language.lower().partition("-")[0] == wanted


def card(voice: Voice, model: str, features: frozenset[str]) -> Mapping[str, Any]:
    return {
        "object": "voice",
        "id": voice.id,
        "name": voice.id,
        "model": model,
        "language": voice.language,
        "gender": voice.gender,
        "aliases": list(voice.aliases),
        "emotions": list(EMOTIONS) if "emotion" in features else [],
        "can_be_blended": "blend" in features,
    }


def _voices(snapshot: Directory, model: str) -> Iterator[tuple[Voice, frozenset[str]]]:
    """Of the first worker that has the model: all of them run the same."""
    for endpoint in snapshot.endpoints.get(model, ()):
        speech = endpoint.model.capability("speech")
        if speech is not None:
            yield from ((voice, speech.features) for voice in speech.voices)
            return
