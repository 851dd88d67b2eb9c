"""Embeddings for 32 clients at once: batches that fill themselves, against none and against other servers.

All over HTTP on loopback with the same client; the engine without a server is the ceiling of the same run.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median

from benchmarks.client import Plan, Readings, Target, all_answered, ask
from benchmarks.contenders.embedders import WEIGHTS, start_bentoml, start_hub, start_litserve, target
from benchmarks.contenders.environment import contenders_versions
from benchmarks.contenders.minilm import MAX_BATCH, THREADS_VARIABLE, WEIGHTS_VARIABLE
from benchmarks.contenders.weights import find_weights
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_least
from benchmarks.processes import Processes, Running, module, run_json
from benchmarks.stats import interleave, paired_ratio, percentile

CLIENTS = 32
_ROUND_S = 4.0
_TEXTS = 256
_TEXTS_ALONE = 96
_ALONE_S = 150.0
_WORDS = (
    *("river", "bridge", "train", "island", "garden", "castle", "market", "forest", "window", "letter"),
    *("winter", "music", "paper", "stone", "light", "water", "story", "table", "morning", "road"),
    *("house", "child", "summer", "horse", "mountain", "answer", "question", "door", "ship", "north"),
)
_LENGTHS = {"short": (3, 8), "mixed": (3, 100)}
"""Words of a text, drawn evenly between the two."""
_SERVERS = {"litserve": start_litserve, "bentoml": start_bentoml}


def run(options: Options) -> Outcome:
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    weights = find_weights(WEIGHTS)
    figures: list[Figure] = []
    details: dict[str, object] = {
        "clients": CLIENTS,
        "threads": threads,
        "max_batch": MAX_BATCH,
        "versions": contenders_versions(),
    }
    with Processes() as processes:
        contenders = {
            "batched": start_hub(processes, "batched", threads=threads, max_batch=MAX_BATCH),
            "unbatched": start_hub(processes, "unbatched", threads=threads, max_batch=1),
        }
        failed: dict[str, str] = {}
        for name, start in _SERVERS.items():
            try:
                contenders[name] = start(processes, weights, threads)
            except CannotMeasureError as error:
                failed[name] = str(error)
        for kind in _LENGTHS:
            texts = some_texts(kind)
            rounds = _press(contenders, texts, options)
            alone = _alone(texts, weights, threads, options)
            figures += _judge(kind, rounds, failed, alone)
            details[kind] = {
                **{name: [_plain(reading) for reading in readings] for name, readings in rounds.items()},
                "alone": alone,
            }
    return Outcome(tuple(figures), details)


def some_texts(kind: str) -> list[str]:
    """The same in every run."""
    random = Random(kind)
    least, most = _LENGTHS[kind]
    return [" ".join(random.choices(_WORDS, k=random.randint(least, most))) for _ in range(_TEXTS)]


class _Round:
    """What one contender did in one round."""

    def __init__(self, seen: Readings, cpu_s: float) -> None:
        self.per_s = len(seen.total_s) / seen.elapsed_s
        self.p50_ms = percentile(seen.total_s, 50) * 1e3
        self.p99_ms = percentile(seen.total_s, 99) * 1e3
        self.cpu_ms = cpu_s * 1e3 / len(seen.total_s)


def _plain(found: _Round) -> dict[str, float]:
    return dict(vars(found))


def _press(
    contenders: Mapping[str, Running], texts: Sequence[str], options: Options
) -> dict[str, list[_Round]]:
    targets = {name: target(name, contender, texts) for name, contender in contenders.items()}
    for name in contenders:
        _load(targets[name], 1.5)  # their batchers learn; not counted

    def one_round(name: str) -> _Round:
        before_s = tree_cpu_s([contenders[name].pid])
        seen = _load(targets[name], options.scaled(_ROUND_S))
        return _Round(seen, tree_cpu_s([contenders[name].pid]) - before_s)

    return interleave({name: name for name in contenders}, one_round, options.rounds(3))


def _load(given: Target, duration_s: float) -> Readings:
    readings = ask(Plan("load", (given,), connections=CLIENTS, duration_s=duration_s))
    all_answered(readings)
    return readings[given.name]


def _alone(
    texts: Sequence[str], weights: Path, threads: int, options: Options
) -> dict[str, dict[str, float]]:
    """Texts a second without HTTP: the bare engine, and InferHub's worker in a process of its own."""
    rounds, texts = ("1" if options.quick else "2"), texts[:_TEXTS_ALONE]
    env = {WEIGHTS_VARIABLE: str(weights), THREADS_VARIABLE: str(threads)}
    engine = module("benchmarks.contenders.minilm", "--ceiling", rounds)
    worker = module("benchmarks.contenders.worker_embed", rounds)
    return {
        "engine": run_json("the engine alone", engine, given=texts, env=env, timeout_s=_ALONE_S),
        "worker": run_json("the worker alone", worker, given=texts, env=env, timeout_s=_ALONE_S),
    }


def _judge(
    kind: str,
    rounds: Mapping[str, Sequence[_Round]],
    failed: Mapping[str, str],
    alone: Mapping[str, Mapping[str, float]],
) -> list[Figure]:
    rates = {name: [found.per_s for found in of] for name, of in rounds.items()}
    gains = {name: paired_ratio(rates["batched"], rates[name]) for name in rates if name != "batched"}
    best = {name: of["batched"] / of["single"] for name, of in alone.items()}
    note = f"the engine alone gains {best['engine']:.2g} x from batches of {MAX_BATCH} here"
    figures = [Figure(f"{kind} texts: over unbatched", gains["unbatched"], "x", at_least(5), note)]
    for name in _SERVERS:
        figure = f"{kind} texts: over {name}"
        figures.append(Figure(figure, gains.get(name), "x", at_least(1), failed.get(name, "")))
    figures += [Figure(f"{kind} texts a second: {name}", median(of), "/s") for name, of in rates.items()]
    figures += [
        Figure(f"{kind} texts: p99 of {name}", median(f.p99_ms for f in of), "ms")
        for name, of in rounds.items()
    ]
    figures.append(Figure(f"{kind} texts: worker alone, batched over unbatched", best["worker"], "x"))
    share = 100 * median(rates["batched"]) / alone["engine"]["batched"]
    figures.append(Figure(f"{kind} texts: of what the engine alone does in batches", share, "%"))
    return figures


MEASURE = Measure("batching", f"embeddings for {CLIENTS} clients at once", run, order=15, limit_s=600)
