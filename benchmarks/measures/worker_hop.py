"""What it costs to put the worker into another process: gateway, gRPC, worker, echo.

Against the same echo behind the local transport, and against a bare grpc.aio echo: two processes too, the
same loop, and calls as far apart as those of the hop, because a process that slept answers later.
"""

from __future__ import annotations

import json
from statistics import median

from benchmarks.client import Plan, Readings, Target, all_answered, ask
from benchmarks.contenders.echo_grpc import ask_echo, start_echo
from benchmarks.contenders.gateway import echo_model, start_pair, start_serve
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running
from benchmarks.stats import percentile

_BODY = json.dumps(
    {"model": "mock", "messages": [{"role": "user", "content": "one two three"}]}, separators=(",", ":")
)


def run(options: Options) -> Outcome:
    count = int(options.scaled(150))
    with Processes() as processes:
        local = start_serve(processes, "serve", [echo_model()])
        gateway, worker = start_pair(processes, [echo_model()])
        echo = start_echo(processes)
        targets = (_target("local", local), _target("worker", gateway))
        ask(Plan("turns", targets, count=30))  # warms; not counted
        ask_echo(echo, 20)
        rounds = []
        for _ in range(options.rounds(5)):
            before_s = _cpu_s(local, gateway, worker)
            readings = ask(Plan("turns", targets, count=count))
            after_s = _cpu_s(local, gateway, worker)
            all_answered(readings)
            cpu_us = {name: (after_s[name] - before_s[name]) * 1e6 / count for name in readings}
            pause_s = percentile(readings["local"].total_s, 50)
            echoed = ask_echo(echo, count, pause_s)
            hot = ask_echo(echo, count)
            rounds.append((readings, cpu_us, {**echoed, "back to back": hot["unary"]}))
    return _judge(rounds)


def _judge(rounds: list[tuple[dict[str, Readings], dict[str, float], dict[str, list[float]]]]) -> Outcome:
    p50_ms = {
        **{name: _p50_ms([r[0][name].total_s for r in rounds]) for name in ("local", "worker")},
        **{
            f"echo ({kind})": _p50_ms([r[2][kind] for r in rounds])
            for kind in ("unary", "stream", "back to back")
        },
    }
    added_ms = p50_ms["worker"] - p50_ms["local"]
    cpu_us = {name: median(r[1][name] for r in rounds) for name in ("local", "worker")}
    noise = "" if added_ms > 0 else "the hop seemed to save time: measure on a quiet machine"
    ratio = added_ms / p50_ms["echo (unary)"] if added_ms > 0 else None
    figures = (
        Figure("added by the hop over a grpc.aio unary echo, p50", ratio, "x", at_most(2), noise),
        Figure("added by the hop over a grpc.aio stream echo, p50", added_ms / p50_ms["echo (stream)"], "x"),
        Figure(
            "added by the hop over unary echoes back to back", added_ms / p50_ms["echo (back to back)"], "x"
        ),
        Figure("added by the hop, p50", added_ms, "ms"),
        Figure("a grpc.aio unary echo, p50", p50_ms["echo (unary)"], "ms"),
        Figure("CPU per call: one process", cpu_us["local"], "us"),
        Figure("CPU per call: gateway and worker", cpu_us["worker"], "us"),
    )
    return Outcome(figures, {"p50_ms": p50_ms, "cpu_us_per_call": cpu_us, "connections": 1})


def _p50_ms(rounds: list[list[float]]) -> float:
    return median(percentile(seconds, 50) for seconds in rounds) * 1e3


def _cpu_s(local: Running, gateway: Running, worker: Running) -> dict[str, float]:
    return {"local": tree_cpu_s([local.pid]), "worker": tree_cpu_s([gateway.pid, worker.pid])}


def _target(name: str, contender: Running) -> Target:
    return Target(name, f"{contender.url}/v1/chat/completions", contender.headers, (_BODY,))


MEASURE = Measure("worker_hop", "gateway, gRPC, worker against one process", run, order=7)
