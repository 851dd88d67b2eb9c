"""How often the vision model's rules answer right: questions about pictures that a generator made.

The rules were frozen before these pictures were drawn, and not changed by what came out:
docs/explanation/vision.md tells the whole story.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome
from inferhub.backends.scene import answers
from inferhub.backends.scene.backend import Scene
from inferhub.backends.scene.shapes import NAMES as SHAPES
from inferhub.core.call import Delta, Media
from inferhub.core.errors import SetupError
from inferhub.core.models import ModelSpec
from inferhub.modalities.vision import Reply, VisionDelta
from inferhub.registry.index import shipped_folder
from inferhub.testing.calls import make_call
from inferhub.testing.scenes import Asked, SceneCase, scenes

SEED = 4711
COUNT = 60
_SAMPLES = Path(__file__).parents[2] / "tests" / "data"
_KINDS = ("count", "color", "text", "yes_no", "object", "open")
_SHOWN_MISSES = 40


def run(options: Options) -> Outcome:
    cases = scenes(_SAMPLES, SEED, 12 if options.quick else COUNT)
    return asyncio.run(_score(cases))


async def _score(cases: list[SceneCase]) -> Outcome:
    objects, labels = shipped_folder("nanodet"), shipped_folder("efficientnet-lite0")
    options = {"objects": str(objects), "labels": str(labels)}
    model = Scene(ModelSpec("scene", "scene", options=options), None)
    kinds = frozenset((*json.loads((objects / "coco-names.json").read_bytes()), *SHAPES))
    try:
        await model.load()
    except SetupError as error:
        raise CannotMeasureError(error.message) from error
    asked, right, silent = Counter[str](), Counter[str](), Counter[str]()
    misses: list[dict[str, str]] = []
    try:
        for case in cases:
            facts = await _facts(model, case)
            for question in case.questions:
                reply = answers.reply(question.question, facts, kinds)
                asked[question.kind] += 1
                if is_right(question, reply):
                    right[question.kind] += 1
                    continue
                silent[question.kind] += reply.kind == "unknown"
                misses.append(
                    {
                        "scene": case.name,
                        "question": question.question,
                        "expected": question.answer,
                        "said": reply.value,
                    }
                )
    finally:
        await model.unload()
    figures = [
        Figure(
            _title(kind),
            100 * right[kind] / asked[kind],
            "%",
            note=f"{right[kind]} of {asked[kind]}; of the others {silent[kind]} were left unanswered",
        )
        for kind in sorted(_KINDS, key=lambda kind: right[kind] / max(asked[kind], 1))
        if asked[kind]
    ]
    every, good = sum(asked.values()), sum(right.values())
    figures.append(Figure("all questions", 100 * good / every, "%", note=f"{good} of {every}"))
    detail: dict[str, Any] = {"scenes": len(cases), "seed": SEED, "misses": misses[:_SHOWN_MISSES]}
    return Outcome(tuple(figures), detail)


async def _facts(model: Scene, case: SceneCase) -> VisionDelta:
    """Once for all questions about a picture: they do not depend on the question."""
    call = make_call("vision", media=(Media("image", case.png, "image/png"),))
    [facts] = [chunk.payload async for chunk in model.run(call) if isinstance(chunk, Delta)]
    assert isinstance(facts, VisionDelta)
    return facts


def is_right(asked: Asked, reply: Reply) -> bool:
    """The value alone, letter by letter but for case, spaces and order."""
    if asked.kind == "open":
        return reply.kind == "unknown"
    if asked.kind == "object":
        return sorted(reply.value.split(", ")) == sorted(asked.answer.split(", "))
    return "".join(reply.value.casefold().split()) == "".join(asked.answer.casefold().split())


def _title(kind: str) -> str:
    return (
        "questions that nothing answers, left open"
        if kind == "open"
        else f"questions for {kind.replace('_', ' or ')}"
    )


MEASURE = Measure("vision", "answers to questions about pictures, by rules", run, limit_s=240, order=12)
