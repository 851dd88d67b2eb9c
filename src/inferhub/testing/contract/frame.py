"""What a check is, and how it runs a call. Used by the files of this folder, and by tests of one backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from inferhub.backends.base import Backend
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.testing.calls import make_call

PATIENCE_S = 60.0
"""Only a hang is longer than this; no check measures speed."""

Run = Callable[[Backend, Capability], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    modalities: frozenset[str]
    feature: str | None
    """Runs only where the capability declares it."""
    fault: str
    """The behaviour of `BrokenEcho` that must make this check fail."""
    run: Run


CHECKS: list[Check] = []
TEXT = ("chat", "completion")
ALL = (*TEXT, "embedding", "moderation", "rerank", "token_count")


def check(*modalities: str, fault: str, feature: str | None = None) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        CHECKS.append(Check(run.__name__, frozenset(modalities), feature, fault, run))
        return run

    return register


def checks_for(capability: Capability) -> list[Check]:
    return [
        check
        for check in CHECKS
        if capability.modality in check.modalities
        and (check.feature is None or check.feature in capability.features)
    ]


# --- running a call ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    payloads: Sequence[Any]
    usage: Usage

    def text(self, index: int = 0) -> str:
        pieces = [p for p in self.payloads if p.index == index]
        return "".join((p.content if isinstance(p, ChatDelta) else p.text) or "" for p in pieces)

    def finish_reasons(self) -> dict[int, list[str]]:
        reasons: dict[int, list[str]] = {}
        for payload in self.payloads:
            reasons.setdefault(payload.index, [])
            if payload.finish_reason:
                reasons[payload.index].append(payload.finish_reason)
        return reasons


async def finish(backend: Backend, call: Call) -> Result:
    """Run to the end, asserting the frame that every answer has."""
    payloads: list[Any] = []
    ends: list[Finished] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(run_of(backend, call)) as chunks:
        async for chunk in chunks:
            assert not ends, "a chunk came after Finished"
            if isinstance(chunk, Delta):
                payloads.append(chunk.payload)
            else:
                ends.append(chunk)
    assert len(ends) == 1, "the answer ended without Finished"
    return Result(payloads, ends[0].usage)


def run_of(backend: Backend, call: Call) -> Any:
    return backend.run(call)


def ask(modality: str, text: str = "Tell me about the sea.", **params: Any) -> Call:
    """Greedy and short, so that engines answer alike and soon."""
    params = {"max_tokens": 24, "temperature": 0, "stream": True, **params}
    if modality == "chat":
        return make_call("chat", messages=[{"role": "user", "content": text}], **params)
    return make_call("completion", prompt=text, **params)
