"""Sentence embeddings from an ONNX transformer: tokenize, run, mean over the tokens, length 1.

The weights are a folder with `model.onnx` and `tokenizer.json`. Texts that are too long are refused, never
cut. One thread does the work, so that embeddings do not crowd out everything else on the machine. Calls share
batches, and a very large one lets batches pass between its pieces. It reranks as a bi-encoder, by how near
the vectors are: quicker than a model that reads both texts, and less exact.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import BatchBackend, BatchResult, check_options
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    ContextOverflow,
    InferHubError,
    Invalid,
    OutOfMemory,
    SetupError,
    Unsupported,
    UpstreamFailed,
)
from inferhub.core.models import Capability
from inferhub.core.usage import Usage
from inferhub.modalities.embedding import EmbeddingDelta, EmbeddingRequest, inputs
from inferhub.modalities.rerank import RerankDelta, RerankRequest, texts
from inferhub.modalities.tokens import text_tokens
from inferhub.telemetry.resources import choose_device, default_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAX_BATCH = 32
_MAX_BATCH_TOKENS = 4096
"""Padding included. Attention needs memory by the square of the length: 32 texts of 512 would take 0.8 GB."""
_MAX_CPU_TOKENS = 512
"""Of one run on a CPU, padding included: beyond it texts only wait for each other. Together, 32 texts of 12
tokens took half the time that they took alone; 32 of 128 tokens took longer."""
_KNOWN_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_FATAL_ONLY = 4
_NO_MEMORY = re.compile(r"alloc|out of memory", re.IGNORECASE)
"""As onnxruntime and CUDA say it, in exceptions that only their texts tell apart."""

T = TypeVar("T")


class OnnxEmbeddingOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit MiniLM-L6."""

    context_tokens: Annotated[int, Meta(ge=8)] = 512
    """The longest text. MiniLM was tuned on 256 tokens and less, yet up to 512, where its positions end, it
    still tells topics apart (worst right one 0.18, best wrong one 0.07; at 256 tokens 0.25 and 0.06)."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Half the cores, because the other half serves the requests."""


class OnnxEmbedding(BatchBackend):
    """One embedding model in onnxruntime."""

    batches = frozenset({"embedding", "rerank"})
    max_batch_cost = float(_MAX_BATCH_TOKENS)
    Options = OnnxEmbeddingOptions
    # Let go in the worker's own process, its arena stayed: 163 of 274 MB for MiniLM.
    isolated = True
    needs_weights = True
    may_offer = frozenset({"embedding", "rerank"})

    capabilities: tuple[Capability, ...] = ()

    async def load(self) -> None:
        self._options = cast("OnnxEmbeddingOptions", check_options(type(self), self.spec))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="onnx-embedding")
        try:
            await self._work(self._open)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise
        features = frozenset({"token_inputs", "dimensions"})
        limit = self._options.context_tokens
        self.capabilities = (
            Capability("embedding", features, limit, self._dimensions),
            Capability("rerank", context_tokens=limit),
        )

    @property
    def _most_tokens(self) -> int:
        return _MAX_CPU_TOKENS if self.device == "cpu" else _MAX_BATCH_TOKENS

    async def unload(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)
        del self._session, self._tokenizer

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        import onnxruntime

        items, names = self._asked(call)
        tokens = await self._work(self._encode, items, names)
        usage = Usage(input_tokens=sum(len(ids) for ids in tokens))
        switch = onnxruntime.RunOptions()
        query: NDArray[np.float32] | None = None
        try:
            if call.modality == "rerank":
                [query] = await self._work(self._embed, [tokens.pop(0)], switch)
            for batch in _batches([len(ids) for ids in tokens], self._most_tokens):
                vectors = await self._work(self._embed, [tokens[index] for index in batch], switch)
                for index, vector in zip(batch, vectors, strict=True):
                    if query is None:
                        yield Delta(EmbeddingDelta(index, vector.astype("<f4").tobytes()))
                    else:
                        yield Delta(RerankDelta(index, _nearness(query, vector)))
            yield Finished(usage)
        finally:
            # Stops a batch that is still being computed; without effect after the last one.
            switch.terminate = True

    async def run_batch(self, calls: Sequence[Call]) -> Sequence[BatchResult]:
        import onnxruntime

        switch = onnxruntime.RunOptions()
        try:
            return await self._work(self._answer, calls, switch)
        finally:
            switch.terminate = True

    def length(self, call: Call) -> float:
        """Of its longest text, in tokens as they are estimated."""
        request = call.request
        if isinstance(request, RerankRequest):
            return max(map(text_tokens, [request.query, *texts(request)]))
        return max(text_tokens(item) if isinstance(item, str) else len(item) for item in inputs(request))

    def _asked(self, call: Call) -> tuple[Sequence[str | list[int]], Sequence[str]]:
        """What is to be embedded, the query first where there is one, and how the client calls it all."""
        request = call.request
        if isinstance(request, RerankRequest):
            documents = texts(request)
            return [request.query, *documents], ["query", *(f"documents[{n}]" for n in range(len(documents)))]
        if not isinstance(request, EmbeddingRequest):
            raise Unsupported(f"An embedding model cannot answer a call of modality {call.modality!r}.")
        if request.dimensions not in (None, self._dimensions):
            raise Unsupported(
                f"'dimensions' is {request.dimensions}; this model only makes {self._dimensions}.",
                param="dimensions",
            )
        items = inputs(request)
        is_one = len(items) == 1 and (isinstance(request.input, str) or request.input == items[0])
        return items, ["input"] if is_one else [f"input[{n}]" for n in range(len(items))]

    async def _work(self, function: Callable[..., T], *given: Any) -> T:
        """In the one thread. A cancelled caller leaves the queue; `run` stops what has begun."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *given)

    # --- in the thread -------------------------------------------------------------------------

    def _open(self) -> None:
        import tokenizers

        folder = self._folder()
        self._session = _open_session(folder / "model.onnx", self._choose_device(), self._options.threads)
        self._check_device()
        self._input_names = {value.name for value in self._session.get_inputs()}
        unknown = self._input_names - _KNOWN_INPUTS
        if unknown:
            raise SetupError(
                f"{folder / 'model.onnx'} asks for the inputs {sorted(unknown)}; an embedding model has "
                f"{sorted(_KNOWN_INPUTS)}.",
                param="weights",
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the package raises nothing narrower
            raise SetupError(
                f"{folder / 'tokenizer.json'} is not a readable tokenizer. Fetch the weights again with "
                f"`inferhub models pull`.",
                param="weights",
            ) from error
        # Published tokenizers come with a length to cut at and pad to.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary = self._tokenizer.get_vocab_size()
        self._prefix, self._suffix = _special_tokens(self._tokenizer)
        self._dimensions = self._try_longest()

    def _folder(self) -> Path:
        folder = self.weights
        missing = [
            n for n in ("model.onnx", "tokenizer.json") if folder is None or not (folder / n).is_file()
        ]
        if folder is None or missing:
            raise SetupError(
                f"Model {self.spec.name!r} needs a folder with 'model.onnx' and 'tokenizer.json'; "
                f"{folder} has no {' and no '.join(repr(name) for name in missing)}.",
                param="weights",
            )
        return folder

    def _choose_device(self) -> int | None:
        """The GPU's number, or None for the CPU."""
        import onnxruntime

        if self.spec.device == "cpu":
            return None
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            chosen = choose_device(self.spec.device)
            return None if chosen == "cpu" else int(chosen.removeprefix("cuda:"))
        if self.spec.device == "auto":
            return None
        raise self._no_gpu("this build of onnxruntime has no CUDA")

    def _check_device(self) -> None:
        """The engine falls back to the CPU without a word; `auto` may, `cuda:N` may not."""
        self.device = "cpu"
        if self._session.get_providers()[0] == "CUDAExecutionProvider":
            options = self._session.get_provider_options()["CUDAExecutionProvider"]
            self.device = f"cuda:{options.get('device_id', '0')}"
        elif self.spec.device not in ("auto", "cpu"):
            raise self._no_gpu("CUDA could not be started")

    def _no_gpu(self, reason: str) -> SetupError:
        return SetupError(
            f"Model {self.spec.name!r} wants {self.spec.device}, but {reason}. Install the extra "
            f"`inferhub[cuda]` on a machine with an NVIDIA GPU, or use `device: auto`.",
            param="device",
        )

    def _try_longest(self) -> int:
        """How many dimensions a vector has, found out on the longest text that is promised to work."""
        import onnxruntime

        limit = self._options.context_tokens
        longest = (self._prefix * limit)[:limit] or [0] * limit
        try:
            return int(self._embed([longest], onnxruntime.RunOptions()).shape[1])
        except UpstreamFailed as error:
            raise SetupError(
                f"Model {self.spec.name!r} does not run with texts of {limit} tokens; lower the option "
                f"'context_tokens', or check that the model gives one vector a token.",
                param="options",
            ) from error

    def _encode(self, items: Sequence[str | list[int]], names: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = []
        for item, where in zip(items, names, strict=True):
            ids = (
                list(self._tokenizer.encode(item).ids) if isinstance(item, str) else self._framed(item, where)
            )
            limit = self._options.context_tokens
            if len(ids) > limit:
                raise ContextOverflow(
                    f"'{where}' has {len(ids)} tokens; the context of this model is {limit} tokens.",
                    param=where.partition("[")[0],
                )
            found.append(ids)
        return found

    def _answer(self, calls: Sequence[Call], switch: Any) -> list[BatchResult]:
        """All texts of all calls in as few runs as their lengths allow."""
        import numpy as np

        read = [self._read(call) for call in calls]
        rows = [ids for tokens in read if not isinstance(tokens, InferHubError) for ids in tokens]
        vectors = np.empty((len(rows), self._dimensions), np.dtype("<f4"))
        for batch in _batches([len(ids) for ids in rows], self._most_tokens):
            vectors[batch] = self._embed([rows[index] for index in batch], switch)
        results: list[BatchResult] = []
        start = 0
        for call, tokens in zip(calls, read, strict=True):
            if isinstance(tokens, InferHubError):
                results.append(tokens)
                continue
            end = start + len(tokens)
            results.append(_chunks(call, vectors[start:end], sum(map(len, tokens))))
            start = end
        return results

    def _read(self, call: Call) -> list[list[int]] | InferHubError:
        """A call's texts as tokens, or what is wrong with them."""
        try:
            return self._encode(*self._asked(call))
        except InferHubError as error:
            return error

    def _framed(self, ids: list[int], where: str) -> list[int]:
        """Token ids with the marks around them that a text gets from the tokenizer."""
        wrong = next((token for token in ids if not 0 <= token < self._vocabulary), None)
        if wrong is not None:
            raise Invalid(
                f"'{where}' has the token {wrong}; this model has the tokens 0 to {self._vocabulary - 1}.",
                param="input",
            )
        is_framed = ids[: len(self._prefix)] == self._prefix and ids[-len(self._suffix) :] == self._suffix
        return ids if self._prefix and is_framed else [*self._prefix, *ids, *self._suffix]

    def _embed(self, rows: Sequence[list[int]], switch: Any) -> NDArray[np.float32]:
        import numpy as np

        ids = np.zeros((len(rows), max(len(row) for row in rows)), np.int64)
        mask = np.zeros_like(ids)
        for position, row in enumerate(rows):
            ids[position, : len(row)] = row
            mask[position, : len(row)] = 1
        feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        try:
            hidden = self._session.run(
                None, {name: feed[name] for name in self._input_names}, run_options=switch
            )[0]
        except Exception as error:  # the engine's exceptions share no base class
            if _NO_MEMORY.search(str(error)):
                raise OutOfMemory from error
            raise UpstreamFailed("The embedding engine failed on this input.") from error
        if hidden.ndim != 3:
            raise UpstreamFailed("The model does not give one vector a token.")
        weights = mask[..., None].astype(np.float32)
        mean = (hidden * weights).sum(axis=1) / weights.sum(axis=1)
        vectors: NDArray[np.float32] = mean / np.linalg.norm(mean, axis=1, keepdims=True)
        return vectors


def _chunks(call: Call, vectors: NDArray[np.float32], tokens: int) -> list[Delta | Finished]:
    """The whole answer to a call, whose query comes first where it has one."""
    payloads: Iterable[EmbeddingDelta | RerankDelta]
    if call.modality == "rerank":
        query, documents = vectors[0], vectors[1:]
        payloads = (RerankDelta(index, _nearness(query, row)) for index, row in enumerate(documents))
    else:
        payloads = (EmbeddingDelta(index, row.tobytes()) for index, row in enumerate(vectors))
    return [*map(Delta, payloads), Finished(Usage(input_tokens=tokens))]


def _nearness(query: NDArray[np.float32], document: NDArray[np.float32]) -> float:
    """The cosine of the angle between two vectors of length 1, as a share: 0.5 is unrelated."""
    return min(max((1 + float(query @ document)) / 2, 0.0), 1.0)


def _open_session(path: Path, gpu: int | None, threads: int | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or default_threads()
    options.inter_op_num_threads = 1
    # Threads that spin between two calls slow down everything else on the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY  # a stopped run is not an error
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu is not None:
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": str(gpu)}))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the engine's exceptions share no base class
        raise SetupError(
            f"onnxruntime cannot load {path}. Check that it is a whole ONNX model; a model that InferHub "
            f"knows by name is mended by `inferhub models pull`.",
            param="weights",
        ) from error


def _special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after every text."""
    bare = list(tokenizer.encode("a", add_special_tokens=False).ids)
    framed = list(tokenizer.encode("a").ids)
    start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
    return framed[:start], framed[start + len(bare) :]


def _batches(lengths: Sequence[int], most_tokens: int = _MAX_BATCH_TOKENS) -> Iterator[list[int]]:
    """Positions in batches of similar length, the shortest first, so that little is padding."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lengths.__getitem__):
        padded = lengths[position] * (len(batch) + 1)
        if batch and (len(batch) == _MAX_BATCH or padded > most_tokens):
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


BACKEND = OnnxEmbedding
