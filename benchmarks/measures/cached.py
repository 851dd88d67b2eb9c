"""What an answer from the process's own cache costs: CPU of a hit over the bare relay's of the same run."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from benchmarks.contenders.gateway import remote_model, start_serve
from benchmarks.contenders.nginx import start_mock
from benchmarks.contenders.relay import CLIENTS, start_relay
from benchmarks.load import Load, Pressure, load_tool_note, press
from benchmarks.measure import Figure, Measure, Options, Outcome, at_most
from benchmarks.measures.overhead import BODY
from benchmarks.processes import Processes, Running
from benchmarks.stats import interleave, lowest, paired_ratio

_PRESSURE = Pressure("/v1/chat/completions", BODY, 32, duration_s=2)


def run(options: Options) -> Outcome:
    with Processes() as processes:
        mock = start_mock(processes)
        contenders: dict[str, Running] = {
            f"relay ({client})": start_relay(processes, client, mock.url) for client in CLIENTS
        }
        hub = start_serve(processes, "serve", [remote_model(mock.url)])
        contenders["hit"] = replace(hub, headers={**hub.headers, "x-inferhub-cache": "on"})

        def one_round(contender: Running) -> Load:
            return press(contender, _PRESSURE, processes.folder)

        for contender in contenders.values():
            one_round(contender)  # fills the cache; not counted
        rounds = interleave(contenders, one_round, options.rounds(4))
    cpu = {name: [load.cpu_us_per_request for load in loads] for name, loads in rounds.items()}
    middle = {name: median(values) for name, values in cpu.items()}
    base = lowest({name: value for name, value in middle.items() if name.startswith("relay")})
    ratio = paired_ratio(cpu["hit"], cpu[base])
    figures = (
        Figure("CPU of a hit over the bare relay's", ratio, "x", at_most(1.0), load_tool_note()),
        Figure("CPU of a hit", middle["hit"], "us"),
        Figure(f"CPU of the bare relay ({base})", middle[base], "us"),
        Figure("p99 of a hit", median(load.p99_ms for load in rounds["hit"]), "ms"),
    )
    return Outcome(figures, {"cpu_us_per_request_rounds": cpu})


MEASURE = Measure("cached", "an answer from the process-memory cache", run, order=9)
