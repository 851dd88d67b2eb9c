"""Lets a call in: who may, what they may call, whether this process and their limits have room.

What it reserves of the limits it also sees settled, however the call ends. Asks no store itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from operator import attrgetter

from inferhub.core.call import Call, Chunk, Delta, Emit, Handler, Started
from inferhub.core.errors import Forbidden, InferHubError, ModelNotFound
from inferhub.core.quota import Reservation, Unit
from inferhub.core.tenancy import Principal
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.tokens import BYTES_PER_TOKEN
from inferhub.modalities.transcription import Live
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.doorway import Doorway
from inferhub.pipeline.limiter import Limiter
from inferhub.pipeline.listened import Listened

Cost = Callable[[str, str, Usage], int]
"""(model as asked for, modality, estimate) → billionths of a US dollar."""

_NOTHING = Usage(source="unknown")


class Admit:
    """A ring. Bounds the calls in flight, so that memory is bounded whatever arrives."""

    def __init__(
        self,
        *,
        max_inflight: int,
        directory: Callable[[], Directory] | None = None,
        limiter: Limiter | None = None,
        cost: Cost = lambda *_: 0,
    ) -> None:
        self._doorway = Doorway(max_inflight)
        self._directory = directory
        self._limiter = limiter
        self._cost = cost
        self._caps = {name: modality.cap for name, modality in modalities().items()}

    async def __call__(self, call: Call, emit: Emit, inner: Handler) -> None:
        check_allowed(call)
        if self._directory is not None:
            # Before anything is reserved or recorded: a made-up name is text of the client's, and stays out.
            check_known(call, self._directory())
        tenant = call.principal.tenant_id
        self._doorway.enter(call.criticality, tenant)
        try:
            limiter = self._limiter
            if limiter is None or not limiter.binds(call.principal):
                await inner(call, emit)
            else:
                await self._limited(limiter, call, emit, inner)
        finally:
            self._doorway.leave(tenant)

    async def _limited(self, limiter: Limiter, call: Call, emit: Emit, inner: Handler) -> None:
        estimate = _estimate(call)
        # Money is never spent beyond what was reserved, so here a text has a token for each of its bytes.
        dearest = replace(estimate, input_tokens=estimate.input_tokens * BYTES_PER_TOKEN)
        cost_nano_usd = self._cost(call.model, call.modality, dearest)
        reservation = await limiter.reserve(call.principal, estimate, cost_nano_usd, call.modality)
        if reservation is None:
            return await inner(call, emit)
        readings = reservation.readings
        listened = self._listened(limiter, call, estimate.audio_ms)

        async def announce(chunk: Chunk) -> None:
            if listened is not None and isinstance(chunk, Delta):
                listened.heard(chunk.payload.duration_s)
            await emit(replace(chunk, readings=readings) if isinstance(chunk, Started) else chunk)

        try:
            if listened is not None:
                call = replace(call, incoming=listened)
            await inner(self._bound(call, reservation), announce)
            if listened is not None and listened.refusal is not None:
                raise listened.refusal
        except InferHubError as error:
            error.readings = error.readings or readings
            raise
        finally:
            # Nothing happens where the meter ring has settled it already.
            await limiter.settle(reservation, _NOTHING, 0)
            for held in listened.held if listened is not None else ():
                await limiter.settle(held, _NOTHING, 0)

    def _listened(self, limiter: Limiter, call: Call, reserved_ms: int) -> Listened | None:
        """What a live call hears, held to the caller's limits while it goes on."""
        if call.incoming is None:
            return None

        async def reserve(audio_ms: int) -> Reservation | None:
            estimate = Usage(audio_ms=audio_ms, source="estimated")
            cost_nano_usd = self._cost(call.model, call.modality, estimate)
            return await limiter.reserve_more(call.principal, estimate, cost_nano_usd)

        live = getattr(call.request, "live", None) or Live()
        return Listened(call.incoming, live, reserved_ms, reserve)

    def _bound(self, call: Call, reservation: Reservation) -> Call:
        """The call with what was reserved for it, and no way to use more."""
        cap = self._caps[call.modality]
        request, body = call.request, call.body
        if cap is not None and any(claim.meter.unit in _OF_LENGTH for claim in reservation.claims):
            request, body = cap(request, body)
        # `replace`, in a third of its time: this is half of what admitting a call costs.
        values = list(_VALUES(call))
        values[_REQUEST], values[_BODY], values[_RESERVATION] = request, body, reservation
        return Call(*values)


def _estimate(call: Call) -> Usage:
    modality = modalities()[call.modality]
    if call.media and modality.estimate_media is not None:
        return modality.estimate_media(call.media)
    return modality.estimate(call.request, len(call.body))


_OF_LENGTH = (Unit.TOKENS, Unit.USD)


_FIELDS = [field.name for field in fields(Call)]
_VALUES = attrgetter(*_FIELDS)
_REQUEST, _BODY, _RESERVATION = map(_FIELDS.index, ("request", "body", "reservation"))


def check_known(call: Call, directory: Directory) -> None:
    """Raises `ModelNotFound`, with the way to a model where no name at all would have been right."""
    try:
        directory.check(call.model, call.principal.may_call)
    except ModelNotFound as error:
        modality = modalities()[call.modality]
        needed = modality.requires(call.request)
        if modality.howto and directory.first_for(call.modality, needed, call.principal.may_call) is None:
            error.message += f" None here can do this; {modality.howto} says how to add a model."
        raise


def check_allowed(call: Call) -> None:
    """Raises `Forbidden` naming the scope, or `ModelNotFound` for a model that is not on the caller's list.

    The name that was asked for counts, be it a model's or a route's. A model that exists and one that does
    not read the same for a caller who may call neither: names are no secret to guess.
    """
    check_scope(call.principal, call.modality)
    check_model(call.principal, call.model)


def check_scope(principal: Principal, modality: str) -> None:
    """Raises the `Forbidden` that `check_allowed` speaks of."""
    scope = f"inference:{modality}"
    if not principal.may(scope):
        raise Forbidden(f"This key has no scope {scope!r}, which {modalities()[modality].path} needs.")


def check_model(principal: Principal, model: str) -> None:
    """Raises the `ModelNotFound` that `check_allowed` speaks of."""
    if not principal.may_call(model):
        mine = ", ".join(sorted(principal.models or ())[:10])
        raise ModelNotFound(
            f"The model {model[:128]!r} does not exist, or this key may not call it. "
            f"It may call: {mine or 'none'}."
        )
