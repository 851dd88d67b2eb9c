"""Google's Gemini API in its own form: chat, token counts, embeddings, sound and pictures of one model.

No client of InferHub speaks this dialect, so every call is lifted to it and every answer read from it
(`wire/gemini`). The key comes from the operator's spec alone and travels in a header, never in an address.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from inferhub.backends.base import Backend, check_options
from inferhub.backends.gemini_media import FEATURES, IMAGEN_FEATURES, GeminiMedia, is_imagen, media_of
from inferhub.backends.remote import RemoteOptions, endpoint_base, has_keys, piecewise
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import UpstreamFailed
from inferhub.core.models import Capability, ModelSpec, Voice
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.embedding import EmbeddingDelta, inputs
from inferhub.modalities.token_count import TokenCount
from inferhub.wire.gemini.counting import read_count
from inferhub.wire.gemini.embedding import MAX_BATCH, lift_embeddings, read_embeddings
from inferhub.wire.gemini.errors import read_error, read_stream_error
from inferhub.wire.gemini.media import VOICES
from inferhub.wire.gemini.reader import GeminiReader, parse_chunk
from inferhub.wire.gemini.request import Target, lift, lift_count
from inferhub.wire.gemini.thinking import Control, control_of
from inferhub.wire.sse import SseParser

_Category = Literal[
    "HARM_CATEGORY_HARASSMENT",
    "HARM_CATEGORY_HATE_SPEECH",
    "HARM_CATEGORY_SEXUALLY_EXPLICIT",
    "HARM_CATEGORY_DANGEROUS_CONTENT",
    "HARM_CATEGORY_CIVIC_INTEGRITY",
]
_Threshold = Literal["BLOCK_LOW_AND_ABOVE", "BLOCK_MEDIUM_AND_ABOVE", "BLOCK_ONLY_HIGH", "BLOCK_NONE", "OFF"]
_CHAT = frozenset(
    {
        *("stream", "tools", "tool_choice_named", "json_object", "json_schema", "logprobs", "n", "seed"),
        *("top_k", "vision", "audio_input", "file_input"),
    }
)
_THINKING = frozenset({"reasoning_effort", "thinking"})
_COUNT = frozenset({"tools", "vision", "audio_input", "file_input"})
_FEATURES = {"embedding": frozenset({"dimensions"}), "token_count": _COUNT, **FEATURES}
_VERSION = "v1beta"
_METHODS = (
    "streamGenerateContent?alt=sse",
    "generateContent",
    "countTokens",
    "batchEmbedContents",
    "predict",
)
_MODEL = re.compile(r"(?:[a-zA-Z]+/)?[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}", re.ASCII)
_encode = msgspec.json.encode


class GeminiOptions(RemoteOptions, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What can be said of the model besides."""

    base_url: str = "https://generativelanguage.googleapis.com"
    modalities: (
        tuple[Literal["chat", "embedding", "image", "speech", "token_count", "transcription"], ...] | None
    ) = None
    """Default, by the model's name: `embedding`, `speech` or `image`, else `chat`, `token_count` and, of
    Gemini, `transcription`."""
    thinking: Control | None = None
    """How the model's thinking is controlled: `level`, `budget` or `none`; default: by its name."""
    safety_settings: dict[_Category, _Threshold] = {}
    """Threshold of each category; those left out are Google's to choose."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.upstream_model is not None and not _MODEL.fullmatch(self.upstream_model):
            raise ValueError("'upstream_model' is not a name that Google gives to models")


class Gemini(Backend):
    """One model of the Gemini API."""

    Options = GeminiOptions
    remote = True
    default_slots = 256
    may_offer = frozenset({"chat", "embedding", "image", "speech", "token_count", "transcription"})

    capabilities: tuple[Capability, ...] = ()

    @classmethod
    def default_options(cls, spec: ModelSpec) -> Mapping[str, str]:
        return {} if has_keys(spec) else {"api_key": "${GEMINI_API_KEY}"}

    async def load(self) -> None:
        """Opens the session; asks the upstream nothing, which may be down or charge for it."""
        from yarl import URL

        from inferhub.backends.sender import Sender

        options = msgspec.convert(check_options(type(self), self.spec), GeminiOptions, from_attributes=True)
        name = options.upstream_model or self.spec.public_name
        model = name if "/" in name else f"models/{name}"
        self._options = options
        # Plain words from here on: a mapping's key type is invariant.
        safety = {str(category): str(threshold) for category, threshold in options.safety_settings.items()}
        self._target = Target(model, options.thinking or control_of(model), safety)
        base = f"{endpoint_base(options.base_url, _VERSION)}/{quote(model)}"
        self._urls = {method: URL(f"{base}:{method}", encoded=True) for method in _METHODS}
        self._sender = Sender(
            options, name=self.spec.name, key_header="x-goog-api-key", headers={}, read_error=read_error
        )
        self._media = GeminiMedia(options, self._sender, self._urls, self._target)
        self.device = "remote"
        self.capabilities = tuple(
            Capability(
                modality,
                self._features(modality),
                # Each speaks whatever language the text is in.
                voices=tuple(Voice(name, "mul") for name in VOICES) if modality == "speech" else (),
            )
            for modality in modalities_of(options, model)
        )

    async def unload(self) -> None:
        await self._media.close()
        await self._sender.close()

    def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        match call.modality:
            case "embedding":
                return self._embed(call)
            case "token_count":
                return self._count(call)
            case "transcription" | "speech" | "image":
                return self._media.run(call)
        return self._stream(call) if call.stream else self._whole(call)

    def _features(self, modality: str) -> frozenset[str]:
        if modality == "image" and is_imagen(self._target.model):
            return IMAGEN_FEATURES
        if modality != "chat":
            return _FEATURES[modality]
        return _CHAT if self._target.thinking == "none" else _CHAT | _THINKING

    async def _stream(self, call: Call) -> AsyncIterator[Delta | Finished]:
        body = lift(call.request, self._target)
        reader, parser = _reader(call), SseParser()
        url, timeout_s = self._urls["streamGenerateContent?alt=sse"], self._options.headers_timeout_s
        async with self._sender.open(call, url, _encode(body), timeout_s) as answer:
            # Gemini has no terminal event: the body's own end is it, if every choice had its reason.
            while piece := await answer.read_piece():
                for delta in self._deltas(reader, parser.feed(piece)):
                    yield delta
            finishes, usage = reader.end()
            for payload in finishes:
                yield Delta(payload, more=True)
            yield Finished(usage)

    async def _whole(self, call: Call) -> AsyncIterator[Delta | Finished]:
        reader = _reader(call)
        body = await self._ask(
            call, "generateContent", lift(call.request, self._target), self._options.answer_timeout_s
        )
        deltas = self._read(reader, body)
        finishes, usage = reader.end()
        for payload in (*deltas, *finishes):
            yield Delta(payload)
        yield Finished(usage)

    async def _count(self, call: Call) -> AsyncIterator[Delta | Finished]:
        body = await self._ask(
            call, "countTokens", lift_count(call.request, self._target), self._options.headers_timeout_s
        )
        yield Delta(TokenCount(read_count(body, self._sender.secrets)))
        yield Finished(Usage())

    async def _embed(self, call: Call) -> AsyncIterator[Delta | Finished]:
        # Ids of tokens were refused before: `token_inputs` is not offered.
        texts = [text for text in inputs(call.request) if isinstance(text, str)]
        vectors: list[bytes] = []
        usage = Usage()
        for start in range(0, len(texts), MAX_BATCH):
            batch = texts[start : start + MAX_BATCH]
            lifted = lift_embeddings(batch, self._target.model, call.request.dimensions)
            body = await self._ask(call, "batchEmbedContents", lifted, self._options.headers_timeout_s)
            packed, used = read_embeddings(body, len(batch), self._sender.secrets)
            vectors += packed
            usage = Usage(
                usage.input_tokens + used.input_tokens,
                source=usage.source if used.source == "reported" else used.source,
            )
        if len({len(vector) for vector in vectors}) != 1:
            raise UpstreamFailed("The upstream sent embeddings of different lengths.")
        for index, vector in enumerate(vectors):
            yield Delta(EmbeddingDelta(index, vector))
        yield Finished(usage)

    def _deltas(self, reader: GeminiReader, events: Sequence[bytes]) -> Iterator[Delta]:
        return piecewise(Delta(payload) for data in events for payload in self._read(reader, data))

    def _read(self, reader: GeminiReader, data: bytes) -> list[ChatDelta]:
        chunk = parse_chunk(data)
        if chunk.error:
            raise read_stream_error(chunk.error, self._sender.secrets)
        return reader.read(chunk)

    async def _ask(self, call: Call, method: str, body: Mapping[str, Any], head_timeout_s: float) -> bytes:
        return await self._sender.ask(call, self._urls[method], _encode(body), head_timeout_s)


def _reader(call: Call) -> GeminiReader:
    return GeminiReader(call.request.n or 1, call.request.top_logprobs or 0)


def modalities_of(options: GeminiOptions, model: str) -> tuple[str, ...]:
    if options.modalities is not None:
        return tuple(dict.fromkeys(options.modalities))
    if "embedding" in model:
        return ("embedding",)
    made = media_of(model)
    if made is not None:
        return (made,)
    hears = model.startswith("models/gemini-") and not model.startswith("models/gemini-1.0")
    return ("chat", "token_count", *(["transcription"] if hears else []))


BACKEND = Gemini
