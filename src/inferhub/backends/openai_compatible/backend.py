"""The engine of one model of one OpenAI-compatible upstream, as the worker's host sees it.

The client's own JSON travels on, and where it speaks the same dialect the answer's own bytes come back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Annotated, get_args

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.openai_compatible.families import FAMILIES, Family, Kind, family_of
from inferhub.backends.openai_compatible.lane import SHAPES, Lane, ResponsesLane
from inferhub.backends.openai_compatible.media import MediaLane
from inferhub.backends.openai_compatible.media_requests import MediaWriter
from inferhub.backends.openai_compatible.options import Modality, OpenAICompatibleOptions, addresses, facts
from inferhub.backends.openai_compatible.requests import RequestWriter
from inferhub.backends.openai_compatible.whole import read_whole
from inferhub.backends.remote import has_keys
from inferhub.backends.vendors import Vendor, vendors
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.models import Capability, ModelSpec, Voice
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.token_count import TokenCount
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_error
from inferhub.wire.openai_responses.reader import ResponsesReader
from inferhub.wire.sse import SseParser

# Their answers have parts that our deltas cannot carry; better refused than silently lost.
_NOT_OFFERED = {"audio_output", "functions", "web_search_options"}
_RESPONSES = "openai_responses"


class _Counted(msgspec.Struct):
    count: Annotated[int, Meta(ge=0)] = 0
    """vLLM's."""
    input_tokens: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if not self.count and self.input_tokens is None:
            raise ValueError("no count")


_read_count = json_reader(_Counted, "something that is not a token count")


class OpenAICompatible(Backend):
    """One model of one upstream."""

    Options = OpenAICompatibleOptions
    remote = True
    default_slots = 256
    may_offer = frozenset(get_args(Modality))

    capabilities: tuple[Capability, ...] = ()

    @classmethod
    def default_options(cls, spec: ModelSpec) -> Mapping[str, str]:
        row = vendors().get(str(spec.options.get("vendor")))
        if row is None or row.key_variable is None or has_keys(spec):
            return {}
        headers = spec.options.get("headers")
        if isinstance(headers, dict) and row.key_header in {str(name).lower() for name in headers}:
            return {}
        return {"api_key": f"${{{row.key_variable}}}"}

    async def load(self) -> None:
        """Opens the session; asks the upstream nothing, which may be down or charge for it."""
        from yarl import URL

        from inferhub.backends.sender import Sender

        options = msgspec.convert(
            check_options(type(self), self.spec), OpenAICompatibleOptions, from_attributes=True
        )
        model = options.upstream_model or self.spec.public_name
        row = self._row = facts(options, model)
        self._options = options
        self._writer = RequestWriter(row, model)
        self._urls = {name: URL(address, encoded=True) for name, address in addresses(row, model).items()}
        self._sender = Sender(
            options,
            name=self.spec.name,
            key_header=row.key_header,
            headers=options.headers,
            read_error=read_error,
            header_secrets=tuple(options.headers.values()),
        )
        self.device = "remote"
        self._media = {kind: self._lane(kind, model) for kind in FAMILIES if kind in row.modalities}
        self.capabilities = tuple(self._capability(name, model) for name in row.modalities)

    async def unload(self) -> None:
        for lane in self._media.values():
            await lane.close()
        await self._sender.close()

    def _lane(self, kind: Kind, model: str) -> MediaLane:
        family = family_of(kind, model, self._row.family)
        writer = MediaWriter(self._row, model, family)
        return MediaLane(self._options, self._sender, self._urls, writer, family)

    def _capability(self, modality: str, model: str) -> Capability:
        if modality not in FAMILIES:
            return Capability(modality, _features(self._row, modality))
        family = family_of(modality, model, self._row.family)
        voices = (self._row.voices or family.voices) if modality == "speech" else ()
        return Capability(
            modality,
            media_features(self._row, modality, family),
            # These speak whatever language the text is in.
            voices=tuple(Voice(name, "mul") for name in voices),
        )

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        if call.modality == "token_count":
            return self._count(call)
        if call.modality in FAMILIES:
            return self._media[call.modality].run(call)
        native = call.native
        if native is not None and native.dialect == _RESPONSES and self._row.responses and not call.resume:
            return self._respond(call, native.body)
        return self._stream(call) if call.stream and call.modality in SHAPES else self._whole(call)

    async def _stream(self, call: Call) -> AsyncIterator[Delta | Finished]:
        body = self._writer.body(call)
        lane = Lane(SHAPES[call.modality], call.request, is_raw=_is_own(call), secrets=self._sender.secrets)
        parser = SseParser()
        url = self._urls["prefill" if call.resume and call.modality == "chat" else call.modality]
        async with self._sender.open(call, url, body, self._options.headers_timeout_s) as answer:
            while not lane.is_done and (piece := await answer.read_piece()):
                for delta in lane.feed(parser.feed(piece)):
                    yield delta
                if lane.failure is not None:
                    raise lane.failure
            # Without [DONE] the end is clean only if every choice was finished; `end` knows.
            for chunk in lane.end():
                yield chunk
            if lane.is_done:
                await answer.drain()

    async def _whole(self, call: Call) -> AsyncIterator[Delta | Finished]:
        # A text is sent when it was thought out; vectors, verdicts and rankings come fast.
        timeout_s = (
            self._options.answer_timeout_s if call.modality in SHAPES else self._options.headers_timeout_s
        )
        url = self._urls["prefill" if call.resume and call.modality == "chat" else call.modality]
        body = await self._sender.ask(call, url, self._writer.body(call), timeout_s)
        whole = read_whole(call, body, is_raw=_is_own(call), secrets=self._sender.secrets)
        for chunk in whole.chunks():
            yield chunk

    async def _respond(self, call: Call, body: bytes) -> AsyncIterator[Delta | Finished]:
        """Responses, asked for and answered as such."""
        body = self._writer.responses_body(call, body)
        url = self._urls["responses"]
        if not call.stream:
            reader = ResponsesReader(self._sender.secrets)
            answer = await self._sender.ask(call, url, body, self._options.answer_timeout_s)
            for payload in reader.read_whole(answer):
                yield Delta(payload)
            yield Finished(reader.end(), raw=answer)
            return
        lane = ResponsesLane(self._sender.secrets)
        parser = SseParser()
        async with self._sender.open(call, url, body, self._options.headers_timeout_s) as opened:
            while not lane.is_done and (piece := await opened.read_piece()):
                for delta in lane.feed(parser.feed_events(piece)):
                    yield delta
                if lane.failure is not None:
                    raise lane.failure
            yield lane.end()
            await opened.drain()

    async def _count(self, call: Call) -> AsyncIterator[Delta | Finished]:
        counter = self._row.token_counter
        if counter == "none":
            counted = modalities()["chat"].estimate(call.request, len(call.body)).input_tokens
        else:
            asked = self._writer.body(call) if counter == "input_tokens" else self._writer.tokenize_body(call)
            body = await self._sender.ask(call, self._urls[counter], asked, self._options.headers_timeout_s)
            told = _read_count(body)
            counted = told.count if told.input_tokens is None else told.input_tokens
        yield Delta(TokenCount(counted))
        yield Finished(Usage())


def _is_own(call: Call) -> bool:
    """Whether the client reads the upstream's bytes: its dialect is this one, and they begin its answer."""
    return call.native is None and not call.resume


def _features(row: Vendor, modality: str) -> frozenset[str]:
    # `extra_params`: what we do not know is passed on, so nobody may tell the client it was ignored.
    features = {*modalities()[modality].features, "extra_params"} - _NOT_OFFERED
    features -= set(row.lacks.get(modality, ()))
    if modality == "token_count":
        features -= set(row.lacks.get("chat", ()))
    if not row.remote_urls:
        features.discard("remote_urls")
    if row.responses and modality == "chat":
        # Parameters that only this dialect has are passed on too, to clients that speak it.
        features.add(_RESPONSES)
    if row.prefill == "none" and modality == "chat":
        features.discard("prefill")
    if not (row.responses and row.remote_urls):
        # A vendor's own tools fetch what they are told to: a server inside the operator's network must not.
        features.discard("responses_native")
    return frozenset(features)


def media_features(row: Vendor, modality: str, family: Family) -> frozenset[str]:
    """What a model of this family can do at this vendor."""
    known = frozenset(modalities()[modality].features)
    offered = known - {"live"} if family.is_ours else family.features | set(row.extras.get(modality, ()))
    return (offered & known) - set(row.lacks.get(modality, ())) | {"extra_params"}
