"""What a non-streaming request costs, in CPU time of the gateway's whole process tree.

Gateway (keys, metrics, request ids and the ledger on), the same with every limit, budgets, PostgreSQL
and Redis, bare relays and nginx take turns before one mock upstream.
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks.contenders.gateway import everything_on, remote_model, start_serve
from benchmarks.contenders.nginx import MISSING, start_floor, start_mock
from benchmarks.contenders.relay import CLIENTS, start_relay
from benchmarks.load import Load, Pressure, load_tool_note, press
from benchmarks.measure import Figure, Measure, Options, Outcome, at_most
from benchmarks.processes import Processes, Running
from benchmarks.stats import interleave, lowest, paired_ratio, spread

_CONNECTIONS = 32
_FULL = "inferhub, everything on"
BODY = {
    "model": "mock",
    "messages": [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Name three rivers of Europe and their lengths."},
    ],
    "temperature": 0,
    "max_tokens": 64,
}
"""200 bytes on the wire."""
_PRESSURE = Pressure("/v1/chat/completions", BODY, _CONNECTIONS, duration_s=2)


def run(options: Options) -> Outcome:
    with Processes() as processes, ExitStack() as stack:
        mock = start_mock(processes)
        contenders: dict[str, Running] = {
            f"relay ({client})": start_relay(processes, client, mock.url) for client in CLIENTS
        }
        floor = start_floor(processes, mock.url)
        if floor is not None:
            contenders["nginx proxy_pass"] = floor
        contenders["inferhub"] = start_serve(processes, "serve", [remote_model(mock.url)])
        contenders[_FULL] = stack.enter_context(everything_on(processes, "full", [remote_model(mock.url)]))

        def one_round(contender: Running) -> Load:
            return press(contender, _PRESSURE, processes.folder)

        for contender in contenders.values():
            one_round(contender)  # warms caches and connections; not counted
        rounds = interleave(contenders, one_round, options.rounds(4))
    return _judge(rounds, has_floor=floor is not None)


def _judge(rounds: dict[str, list[Load]], *, has_floor: bool) -> Outcome:
    cpu = {name: [load.cpu_us_per_request for load in loads] for name, loads in rounds.items()}
    middle = {name: median(values) for name, values in cpu.items()}
    base = lowest({name: value for name, value in middle.items() if name.startswith("relay")})
    ratio = paired_ratio(cpu["inferhub"], cpu[base])
    note = "; ".join(filter(None, (f"base: {base}", load_tool_note())))
    figures = [
        Figure("CPU per request over the bare relay's, no limits", ratio, "x", note=note),
        Figure(
            "CPU per request over the bare relay's, everything on",
            paired_ratio(cpu[_FULL], cpu[base]),
            "x",
            at_most(2.1),
        ),
        *(Figure(f"CPU per request: {name}", value, "us") for name, value in middle.items()),
    ]
    if not has_floor:
        figures.append(Figure("CPU per request: nginx proxy_pass", None, "us", note=MISSING))
    details = {
        "connections": _CONNECTIONS,
        "base": base,
        "contenders": {
            name: {
                "cpu_us_per_request": middle[name],
                "cpu_us_per_request_rounds": cpu[name],
                "spread": spread(cpu[name]),
                "ratio_to_base": paired_ratio(cpu[name], cpu[base]),
                "requests_per_s": median(load.requests_per_s for load in loads),
                "p50_ms": median(load.p50_ms for load in loads),
                "p99_ms": median(load.p99_ms for load in loads),
            }
            for name, loads in rounds.items()
        },
    }
    return Outcome(tuple(figures), details)


MEASURE = Measure("overhead", f"non-streaming requests, {_CONNECTIONS} connections", run, order=1)
