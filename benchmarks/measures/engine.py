"""Tokens per second of a real model through the gateway, as a share of what its engine makes alone.

Same weights, prompts, slots, threads and batch; raw engine and gateway take turns.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from statistics import median

from benchmarks.client import Plan, Target, all_answered, ask
from benchmarks.contenders.gateway import start_serve
from benchmarks.contenders.raw_engine import EngineSettings, Generated, generate_raw
from benchmarks.contenders.weights import NAME, find_weights
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_least
from benchmarks.processes import Processes, Running
from benchmarks.stats import paired_ratio, spread

_SLOTS = 4
_TARGETS = {1: 97.0, 4: 90.0}
"""Percent of the raw engine, by streams at once."""
_BUDGET_S = 40.0
"""Rounds of one number of streams stop after this time; a busy machine makes fewer of them."""
_LEAST_ROUNDS = 2
_TOPICS = ("rivers", "bridges", "trains", "islands", "gardens", "castles", "markets", "forests")


def run(options: Options) -> Outcome:
    weights = find_weights()
    settings = EngineSettings(slots=_SLOTS, threads=max(1, len(os.sched_getaffinity(0)) // 2))
    max_tokens = int(options.scaled(96))
    figures: list[Figure] = []
    details: dict[str, object] = {"settings": asdict(settings), "max_tokens": max_tokens, "model": NAME}
    with Processes() as processes:
        gateway = start_serve(processes, "serve", [_model(settings)])
        warm_up = [_body("kitchens", number, max_tokens=4) for number in range(_SLOTS)]
        _generate(gateway, warm_up)
        for streams, target in _TARGETS.items():
            raw: list[Generated] = []
            ours: list[Generated] = []
            end = time.monotonic() + _BUDGET_S
            for number in range(options.rounds(4)):
                if number >= _LEAST_ROUNDS and time.monotonic() > end:
                    break
                bodies = [_body(_TOPICS[number], i, max_tokens) for i in range(streams)]
                raw.append(generate_raw(weights, settings, bodies, warm_up))
                ours.append(_generate(gateway, bodies))
            found, detail = _compare(streams, target, ours, raw)
            figures += found
            details[f"streams_{streams}"] = detail
    return Outcome(tuple(figures), details)


def _compare(
    streams: int, target: float, ours: list[Generated], raw: list[Generated]
) -> tuple[list[Figure], dict[str, object]]:
    rates = {"inferhub": [g.tokens_per_s for g in ours], "raw": [g.tokens_per_s for g in raw]}
    cpu = {"inferhub": [g.cpu_ms_per_token for g in ours], "raw": [g.cpu_ms_per_token for g in raw]}
    share = 100 * paired_ratio(rates["inferhub"], rates["raw"])
    title = f"{streams} stream{'s' if streams > 1 else ''}"
    figures = [
        Figure(f"tokens/s of the raw engine's, {title}", share, "%", at_least(target)),
        *(Figure(f"tokens/s, {title}: {name}", median(values), "/s") for name, values in rates.items()),
        Figure(
            f"CPU per token over the raw engine's, {title}", paired_ratio(cpu["inferhub"], cpu["raw"]), "x"
        ),
    ]
    detail = {
        "tokens_per_s_rounds": rates,
        "cpu_ms_per_token_rounds": cpu,
        "spread_of_raw": spread(rates["raw"]),
        "tokens": {"inferhub": sum(g.tokens for g in ours), "raw": sum(g.tokens for g in raw)},
    }
    return figures, detail


def _model(settings: EngineSettings) -> dict[str, object]:
    return {
        "name": "mock",
        "backend": "llamacpp",
        "weights": NAME,
        "device": "cpu",
        "slots": settings.slots,
        "options": {
            "threads": settings.threads,
            "context_tokens": settings.context_tokens,
            "batch_tokens": settings.batch_tokens,
        },
    }


def _body(topic: str, number: int, max_tokens: int) -> str:
    """Every round has its own prompts, so that no kept prompt helps one side."""
    question = f"Write a long story of {number + 3} chapters about {topic}."
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": question}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    return json.dumps(body, separators=(",", ":"))


def _generate(gateway: Running, bodies: list[str]) -> Generated:
    target = Target("gateway", f"{gateway.url}/v1/chat/completions", gateway.headers, tuple(bodies))
    before_s = tree_cpu_s([gateway.pid])
    readings = ask(Plan("streams", (target,), connections=len(bodies)))
    cpu_s = tree_cpu_s([gateway.pid]) - before_s
    all_answered(readings)
    seen = readings["gateway"]
    if not seen.tokens:
        raise CannotMeasureError("the gateway reported no tokens")
    return Generated(seen.tokens, seen.elapsed_s, cpu_s)


MEASURE = Measure(
    "engine", f"{NAME}: tokens/s through the gateway, raw engine beside it", run, order=5, limit_s=120
)
