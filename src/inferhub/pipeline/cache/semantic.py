"""Finds an answer to the same question in other words. Called by `ring`, for calls that ask for it.

Compares only the last message, with calls that are exactly alike in all else. Keeps vectors and keys in this
process, and no text. A question that cannot be embedded is simply not found.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from inferhub.core.call import Call, Chunk, Delta, Handler
from inferhub.core.errors import InferHubError, SetupError
from inferhub.modalities.chat import Message, TextPart
from inferhub.modalities.embedding import EmbeddingRequest
from inferhub.pipeline.cache.keys import Question, partition_key
from inferhub.pipeline.cache.lexical import Gist, differ, gist

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)

TIMEOUT_S = 1.0
"""Longest wait for a question's vector; the call then goes on without."""
MAX_BYTES = 64 * 1024**2
MAX_IN_PARTITION = 1000
_FIRST_ROWS = 8
_NOTE_BYTES = 400
MAX_CHARACTERS = 2000
"""Of a question. In a longer one a detail that changes the answer is too small a part of the vector."""


class Semantic:
    """What was asked in this process, by partition. `embed` answers calls of modality `embedding`."""

    def __init__(
        self,
        embed: Handler,
        model: str,
        *,
        threshold: float,
        max_bytes: int = MAX_BYTES,
        timeout_s: float = TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raises `SetupError` where `numpy` is missing: comparing thousands of vectors needs it."""
        try:
            import numpy  # noqa: F401
        except ModuleNotFoundError as error:
            raise SetupError(
                "semantic_cache_model needs the package numpy: pip install 'inferhub[local]'.",
                param="semantic_cache_model",
            ) from error
        self._embed = embed
        self._model = model
        self._threshold = threshold
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._clock = clock
        self._partitions: OrderedDict[bytes, Partition] = OrderedDict()
        self.size_bytes = 0

    async def look(self, question: Question) -> Probe | None:
        """None where the call has no question that could be compared."""
        text = question_of(question.call)
        if text is None:
            return None
        vector = await self._vector(question.call, text)
        if vector is None:
            return None
        place = partition_key(question)
        seal = gist(text)
        partition = self._partitions.get(place)
        found = None
        if partition is not None:
            self._partitions.move_to_end(place)
            found = partition.find(vector, seal, self._threshold, self._clock())
        return Probe(self, place, vector, seal, found)

    def remember(self, place: bytes, asked: Asked) -> None:
        partition = self._partitions.get(place)
        if partition is None or partition.dimensions != len(asked.vector):
            self._forget(place)
            partition = self._partitions[place] = Partition(len(asked.vector))
            self.size_bytes += partition.size_bytes
        before = partition.size_bytes
        partition.add(asked)
        self.size_bytes += partition.size_bytes - before
        self._partitions.move_to_end(place)
        while self.size_bytes > self._max_bytes and self._partitions:
            self._forget(next(iter(self._partitions)))

    def now_s(self) -> float:
        return self._clock()

    def _forget(self, place: bytes) -> None:
        partition = self._partitions.pop(place, None)
        if partition is not None:
            self.size_bytes -= partition.size_bytes

    async def _vector(self, call: Call, text: str) -> NDArray[np.float32] | None:
        """Of length 1, so that a product is a cosine."""
        import numpy as np

        request = EmbeddingRequest(model=self._model, input=text)
        asked = replace(
            call,
            modality="embedding",
            model=self._model,
            request=request,
            body=msgspec.json.encode({"model": self._model, "input": text}),
            deadline_s=min(call.deadline_s, time.monotonic() + self._timeout_s),
            stream=False,
            unknown_params=(),
            cache="off",
        )
        raw: list[bytes] = []

        async def emit(chunk: Chunk) -> None:
            if type(chunk) is Delta:
                raw.append(chunk.payload.vector)

        try:
            async with asyncio.timeout(self._timeout_s):
                await self._embed(asked, emit)
        except (InferHubError, TimeoutError) as error:
            _log.warning(
                "a question could not be embedded: %s", type(error).__name__, extra={"request_id": call.id}
            )
            return None
        if len(raw) != 1 or not raw[0] or len(raw[0]) % 4:
            return None
        vector = np.frombuffer(raw[0], dtype="<f4").astype(np.float32)
        length = float(np.linalg.norm(vector))
        return vector / length if np.isfinite(length) and length > 0 else None


class Probe:
    """One question on its way: where it was looked for, and what was found."""

    __slots__ = ("_place", "_seal", "_semantic", "_vector", "found")

    def __init__(
        self,
        semantic: Semantic,
        place: bytes,
        vector: NDArray[np.float32],
        seal: Gist,
        found: bytes | None,
    ) -> None:
        self._semantic = semantic
        self._place = place
        self._vector = vector
        self._seal = seal
        self.found = found
        """The key of an answer to the same question."""

    def remember(self, key: bytes, ttl_s: float) -> None:
        asked = Asked(self._vector, self._seal, key, self._semantic.now_s() + ttl_s)
        self._semantic.remember(self._place, asked)


class Asked(NamedTuple):
    """A question that has an answer."""

    vector: NDArray[np.float32]
    seal: Gist
    key: bytes
    """Of the answer, in the store."""
    due_s: float


class Partition:
    """Questions that differ in their last message only; the oldest is overwritten when it is full."""

    def __init__(self, dimensions: int) -> None:
        import numpy as np

        self.dimensions = dimensions
        self._rows = np.zeros((_FIRST_ROWS, dimensions), dtype=np.float32)
        self._notes: list[tuple[bytes, Gist, float]] = []
        """(key, gist, end) of each row."""
        self._next = 0

    @property
    def size_bytes(self) -> int:
        return self._rows.nbytes + len(self._rows) * _NOTE_BYTES

    def find(self, vector: NDArray[np.float32], seal: Gist, threshold: float, now_s: float) -> bytes | None:
        """The key of the most similar question that is similar enough, may have its answer, and lives."""
        import numpy as np

        if len(vector) != self.dimensions:
            return None
        cosines = self._rows[: len(self._notes)] @ vector
        near = np.flatnonzero(cosines >= threshold)
        for index in near[np.argsort(-cosines[near])]:
            key, other, due_s = self._notes[int(index)]
            if due_s > now_s and not differ(other, seal):
                return key
        return None

    def add(self, asked: Asked) -> None:
        import numpy as np

        note = (asked.key, asked.seal, asked.due_s)
        if len(self._notes) == MAX_IN_PARTITION:
            self._rows[self._next] = asked.vector
            self._notes[self._next] = note
            self._next = (self._next + 1) % MAX_IN_PARTITION
            return
        if len(self._notes) == len(self._rows):
            grown = np.zeros((min(2 * len(self._rows), MAX_IN_PARTITION), self.dimensions), np.float32)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[len(self._notes)] = asked.vector
        self._notes.append(note)


def question_of(call: Call) -> str | None:
    """The text of the last message, where it is a user's and nothing but text."""
    if call.modality != "chat":
        return None
    last: Message = call.request.messages[-1]
    if last.role != "user" or last.content is None:
        return None
    if isinstance(last.content, str):
        text = last.content
    elif all(isinstance(part, TextPart) for part in last.content):
        text = "\n".join(part.text for part in last.content if isinstance(part, TextPart))
    else:
        return None
    return text if text.strip() and len(text) <= MAX_CHARACTERS else None
