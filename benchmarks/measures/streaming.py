"""What a stream loses on its way through the gateway: time to the first token, and CPU per chunk.

The scripted upstream sends paced or bursting chunks; direct, bare relay and gateway take turns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.client import Plan, Readings, Target, all_answered, ask
from benchmarks.contenders.gateway import remote_model, start_serve
from benchmarks.contenders.relay import CLIENTS, start_relay
from benchmarks.contenders.upstream import script, start_scripted_upstream
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running
from benchmarks.stats import interleave, paired_ratio, percentile

_PATH = "/v1/chat/completions"
_OURS = "inferhub"


@dataclass(frozen=True, slots=True)
class Shape:
    """How the upstream sends, and how many streams are open at once."""

    name: str
    gap_ms: float
    chunks: int
    streams: int
    count: int
    """Streams that each connection asks for, one after the other."""
    target_us: float

    @property
    def total_chunks(self) -> int:
        return self.chunks * self.streams * self.count


_SHAPES = (
    Shape("paced", gap_ms=10, chunks=100, streams=32, count=1, target_us=45),
    Shape("bursting", gap_ms=0, chunks=1000, streams=8, count=2, target_us=12),
)


@dataclass(frozen=True, slots=True)
class Round:
    cpu_us_per_chunk: float
    readings: Readings


def run(options: Options) -> Outcome:
    with Processes() as processes:
        upstream = start_scripted_upstream(processes)
        relays = {f"relay ({client})": start_relay(processes, client, upstream.url) for client in CLIENTS}
        gateway = start_serve(processes, "serve", [remote_model(upstream.url)])
        passing: dict[str, Running] = {**relays, _OURS: gateway}

        alone = _turns({"direct": upstream, **passing}, int(options.scaled(150)))
        figures = _first_token_figures(alone)
        details: dict[str, object] = {
            "first_token_ms": {name: _quantiles(seen.first_s) for name, seen in alone.items()}
        }
        for shape in _SHAPES:
            found, detail = _measure_shape(shape, {"direct": upstream, **passing}, options)
            figures += found
            details[shape.name] = detail
    return Outcome(tuple(figures), details)


def _turns(contenders: Mapping[str, Running], count: int) -> dict[str, Readings]:
    """One stream at a time, A B C A B C: what the way adds when nothing else is going on."""
    said = script(ttft_ms=20, gap_ms=2, n=4)
    targets = tuple(_target(name, contender, said) for name, contender in contenders.items())
    ask(Plan("turns", targets, count=10))  # warms; not counted
    readings = ask(Plan("turns", targets, count=count))
    all_answered(readings)
    return readings


def _first_token_figures(readings: Mapping[str, Readings]) -> list[Figure]:
    direct, ours = readings["direct"].first_s, readings[_OURS].first_s
    relay = min(percentile(seen.first_s, 50) for name, seen in readings.items() if name.startswith("relay"))
    added = {p: (percentile(ours, p) - percentile(direct, p)) * 1e3 for p in (50, 99)}
    by_relay = (relay - percentile(direct, 50)) * 1e3
    return [
        Figure("added time to first token, p50", added[50], "ms", at_most(1.0)),
        Figure("added time to first token, p99", added[99], "ms", at_most(5.0)),
        Figure("added time to first token, p50: bare relay", by_relay, "ms"),
    ]


def _measure_shape(
    shape: Shape, contenders: Mapping[str, Running], options: Options
) -> tuple[list[Figure], dict[str, object]]:
    def one_round(contender: Running) -> Round:
        return _one_round(contender, shape)

    rounds = interleave(contenders, one_round, options.rounds(4))
    cpu = {name: [found.cpu_us_per_chunk for found in founds] for name, founds in rounds.items()}
    # The same client library on both sides: what the gateway adds, not which library is quicker.
    base = cpu["relay (aiohttp)"]
    title = f"CPU per {shape.name} chunk"
    figures = [
        Figure(title, median(cpu[_OURS]), "us", at_most(shape.target_us)),
        Figure(f"{title} over the aiohttp relay's", paired_ratio(cpu[_OURS], base), "x"),
        *(Figure(f"{title}: {name}", median(cpu[name]), "us") for name in cpu if name.startswith("relay")),
    ]
    if shape.gap_ms:
        added = _jitter_ms(rounds[_OURS], shape) - _jitter_ms(rounds["direct"], shape)
        figures.append(Figure(f"added jitter between {shape.name} chunks, p99", added, "ms", at_most(2.0)))
    detail = {
        "gap_ms": shape.gap_ms,
        "chunks_per_stream": shape.chunks,
        "streams_at_once": shape.streams,
        "contenders": {
            name: {
                "cpu_us_per_chunk_rounds": cpu[name],
                "ratio_to_aiohttp_relay": paired_ratio(cpu[name], base),
                "first_token_ms": _quantiles([s for found in founds for s in found.readings.first_s]),
                "chunks_per_s": median(shape.total_chunks / found.readings.elapsed_s for found in founds),
            }
            for name, founds in rounds.items()
        },
    }
    return figures, detail


def _jitter_ms(rounds: list[Round], shape: Shape) -> float:
    """How much later than its pace a chunk comes, p99."""
    return percentile([gap * 1e3 - shape.gap_ms for found in rounds for gap in found.readings.gaps_s], 99)


def _one_round(contender: Running, shape: Shape) -> Round:
    target = _target(contender.name, contender, script(ttft_ms=20, gap_ms=shape.gap_ms, n=shape.chunks))
    # Started one after the other: streams of people do not begin in the same millisecond.
    plan = Plan("streams", (target,), connections=shape.streams, count=shape.count, stagger_s=0.0047)
    before_s = tree_cpu_s([contender.pid])
    readings = ask(plan)
    used_s = tree_cpu_s([contender.pid]) - before_s
    all_answered(readings)
    return Round(used_s * 1e6 / shape.total_chunks, readings[contender.name])


def _target(name: str, contender: Running, said: str) -> Target:
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": said,
    }
    text = json.dumps(body, separators=(",", ":"))
    return Target(name, contender.url + _PATH, contender.headers, (text,))


def _quantiles(seconds: list[float]) -> dict[str, float]:
    return {f"p{p}": percentile(seconds, p) * 1e3 for p in (50, 99)}


MEASURE = Measure("streaming", "time to first token and CPU per chunk", run, order=2)
