"""False hits of the semantic cache: a threshold found on one half of the labelled pairs, judged on the other.

Needs the embedding weights that `inferhub models pull` fetches, and no server. Deterministic.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_least, at_most
from benchmarks.semantic_pairs import KINDS, Pair, halves

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAME = "minilm-l6-v2"
MAX_FALSE_HITS = 0.01
"""Of the pairs that need another answer."""
_STEP = 0.005
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class Scored:
    pair: Pair
    cosine: float
    differs: bool
    """What the guard says."""

    def is_hit(self, threshold: float, *, guarded: bool) -> bool:
        return self.cosine >= threshold and not (guarded and self.differs)


def run(options: Options) -> Outcome:
    from inferhub.settings.model import Settings

    calibration, judgement = halves()
    vectors = asyncio.run(embed([*calibration, *judgement]))
    known, unseen = score(calibration, vectors), score(judgement, vectors)
    in_force = Settings.model_fields["semantic_cache_threshold"].default
    figures: list[Figure] = []
    details: dict[str, Any] = {
        "model": NAME,
        "pairs": {"calibration": len(known), "judgement": len(unseen)},
        "threshold in force": in_force,
    }
    for guarded, title in ((True, "with the guard"), (False, "without")):
        threshold = calibrate(known, guarded=guarded)
        hits, false_hits = rates(unseen, threshold, guarded=guarded)
        figures += [
            Figure(f"calibrated threshold, {title}", threshold, ""),
            Figure(f"false hits on the other half, {title}", 100 * false_hits, "%"),
            Figure(f"paraphrases found, {title}", 100 * hits, "%"),
        ]
        details[title] = {"threshold": threshold, "by_kind": by_kind(unseen, threshold, guarded=guarded)}
    hits, false_hits = rates(unseen, in_force, guarded=True)
    figures += [
        Figure("false hits at the threshold in force", 100 * false_hits, "%", at_most(100 * MAX_FALSE_HITS)),
        Figure("paraphrases found at the threshold in force", 100 * hits, "%", at_least(10)),
    ]
    details["in force"] = {"by_kind": by_kind(unseen, in_force, guarded=True)}
    details["false_hits"] = [
        [s.pair.first, s.pair.second, round(s.cosine, 3)]
        for s in unseen
        if not s.pair.is_same and s.is_hit(in_force, guarded=True)
    ]
    return Outcome(tuple(figures), details)


def calibrate(scored: Sequence[Scored], *, guarded: bool) -> float:
    """The lowest threshold from which on the false hits stay within their bound."""
    steps = [round(0.5 + _STEP * number, 4) for number in range(int(0.5 / _STEP) + 1)]
    fitting = [t for t in steps if rates(scored, t, guarded=guarded)[1] <= MAX_FALSE_HITS]
    return min(fitting, default=1.0)


def rates(scored: Iterable[Scored], threshold: float, *, guarded: bool) -> tuple[float, float]:
    """(paraphrases found, other pairs taken for the same), as shares."""
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for one in scored:
        hits[one.pair.is_same].append(one.is_hit(threshold, guarded=guarded))
    return sum(hits[True]) / len(hits[True]), sum(hits[False]) / len(hits[False])


def by_kind(scored: Iterable[Scored], threshold: float, *, guarded: bool) -> dict[str, str]:
    total: Counter[str] = Counter()
    hits: Counter[str] = Counter()
    for one in scored:
        total[one.pair.kind] += 1
        hits[one.pair.kind] += one.is_hit(threshold, guarded=guarded)
    return {kind: f"{hits[kind]} of {total[kind]}" for kind in KINDS}


def score(pairs: Iterable[Pair], vectors: dict[str, NDArray[Any]]) -> list[Scored]:
    from inferhub.pipeline.cache.lexical import differ, gist

    return [
        Scored(p, float(vectors[p.first] @ vectors[p.second]), differ(gist(p.first), gist(p.second)))
        for p in pairs
    ]


async def embed(pairs: Iterable[Pair]) -> dict[str, NDArray[Any]]:
    """Text → its vector, of length 1."""
    import numpy as np

    from inferhub.backends.onnx_embedding import OnnxEmbedding
    from inferhub.core.call import Delta
    from inferhub.core.models import ModelSpec
    from inferhub.testing.calls import make_call

    texts = sorted({text for pair in pairs for text in (pair.first, pair.second)})
    backend = OnnxEmbedding(ModelSpec("m", "onnx_embedding", device="cpu"), _weights())
    await backend.load()
    found: dict[str, NDArray[Any]] = {}
    for start in range(0, len(texts), _AT_ONCE):
        part = texts[start : start + _AT_ONCE]
        async for item in backend.run(make_call("embedding", input=part)):
            if isinstance(item, Delta):
                found[part[item.payload.index]] = np.frombuffer(item.payload.vector, dtype="<f4")
    await backend.unload()
    return found


def _weights() -> Path:
    from inferhub.core.errors import InferHubError
    from inferhub.registry.weights import Weights
    from inferhub.settings import load_settings

    try:
        settings = load_settings({}, env=os.environ, cwd=Path.cwd()).settings
        return Weights(settings.cache_dir).resolve(NAME)
    except InferHubError as error:
        raise CannotMeasureError(error.message) from error


MEASURE = Measure("semantic", "semantic cache: false hits on labelled pairs", run, order=8, limit_s=90)
