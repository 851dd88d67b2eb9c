"""Pieces of answers over gRPC: how many a second one core carries when they are coalesced.

A core is a second of CPU time, so the figure does not depend on who else is on the machine. Each side has a
process of its own; the slower one limits a pair of machines, both together limit one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from benchmarks.contenders.chunks_grpc import STREAMS, ask_source, start_source
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_least
from benchmarks.processes import Processes, Running
from benchmarks.stats import interleave, paired_ratio

_CHUNKS = 20_000
"""In each stream."""


@dataclass(frozen=True, slots=True)
class _Round:
    worker: float
    """Chunks for a second of the worker's CPU."""
    gateway: float
    both: float
    wall: float

    @property
    def slower_side(self) -> float:
        return min(self.worker, self.gateway)


def run(options: Options) -> Outcome:
    chunks = int(options.scaled(_CHUNKS))
    with Processes() as processes:
        sources = {
            "coalesced": (start_source(processes, is_raw=False), False),
            "raw": (start_source(processes, is_raw=True), True),
        }
        rounds = interleave(sources, lambda source: _one_round(*source, chunks), options.rounds(5))
    slower = {name: [found.slower_side for found in of] for name, of in rounds.items()}
    middle = {
        name: {
            side: median(getattr(found, side) for found in of)
            for side in ("worker", "gateway", "both", "wall")
        }
        for name, of in rounds.items()
    }
    ours, raw = middle["coalesced"], middle["raw"]
    figures = (
        Figure(
            "chunks a second and core, the busier side", median(slower["coalesced"]), "/s", at_least(20_000)
        ),
        Figure("chunks a second of CPU: worker", ours["worker"], "/s"),
        Figure("chunks a second of CPU: gateway's end", ours["gateway"], "/s"),
        Figure("chunks a second of CPU: both sides together", ours["both"], "/s"),
        Figure("chunks a second on the clock", ours["wall"], "/s"),
        Figure("raw grpc.aio, one chunk a message: the busier side", median(slower["raw"]), "/s"),
        Figure("raw grpc.aio: both sides together", raw["both"], "/s"),
        Figure("coalesced over raw, the busier side", paired_ratio(slower["coalesced"], slower["raw"]), "x"),
    )
    return Outcome(figures, {"medians": middle, "streams": STREAMS, "chunks_a_stream": chunks})


def _one_round(source: Running, is_raw: bool, chunks: int) -> _Round:
    before_s = tree_cpu_s([source.pid])
    seen = ask_source(source, chunks, is_raw=is_raw)
    worker_s = tree_cpu_s([source.pid]) - before_s
    if seen["chunks"] != STREAMS * chunks:
        raise CannotMeasureError(f"{seen['chunks']:g} of {STREAMS * chunks} chunks came")
    return _Round(
        worker=seen["chunks"] / worker_s,
        gateway=seen["chunks"] / seen["cpu_s"],
        both=seen["chunks"] / (worker_s + seen["cpu_s"]),
        wall=seen["chunks"] / seen["elapsed_s"],
    )


MEASURE = Measure("chunks", f"pieces of {STREAMS} answers at once over gRPC", run, order=16)
