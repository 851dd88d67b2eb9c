"""`python -m benchmarks [name ...] [--quick]`: runs measures one after the other, in bounded time.

Exit code 0 whatever the verdicts are; 2 when a name is unknown.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from benchmarks.machine import describe_machine, versions
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome
from benchmarks.measures import measures
from benchmarks.report import as_json, print_outcome, summary, write

_TOTAL_LIMIT_S = 1800.0


def main(arguments: list[str] | None = None) -> int:
    known = measures()
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(known)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds; noisier")
    parser.add_argument("--no-write", action="store_true", help="leave benchmarks/results as it is")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in known]
    if unknown:
        print(f"No such measure: {', '.join(unknown)}. Measures: {', '.join(known)}.", file=sys.stderr)
        return 2
    # A terminated run unwinds its context managers, so that no process is left behind.
    signal.signal(signal.SIGTERM, _interrupt)
    machine, tools = describe_machine(), versions()
    print(f"{machine['cpu']}, {machine['cores']} cores, kernel {machine['kernel']}")
    if not machine["is_quiet"]:
        print(f"This machine is busy ({machine['busy_cores_before']} cores): wall-clock figures are noisy.")
    options = Options(quick=chosen.quick)
    figures: list[Figure] = []
    end = time.monotonic() + _TOTAL_LIMIT_S
    for name in chosen.names or known:
        measure = known[name]
        begin = time.monotonic()
        outcome = _run(measure, options, min(measure.limit_s, end - begin))
        print_outcome(measure, outcome, time.monotonic() - begin)
        figures += outcome.figures
        # A run that found nothing does not take the place of one that did.
        if not chosen.no_write and any(figure.value is not None for figure in outcome.figures):
            write(name, as_json(measure, outcome, machine, tools, quick=chosen.quick))
    print(f"\n{summary(figures)}")
    return 0


def _run(measure: Measure, options: Options, limit_s: float) -> Outcome:
    """A measure that cannot run is a line of the report, not the end of it."""
    try:
        if limit_s <= 0:
            raise CannotMeasureError(f"all {_TOTAL_LIMIT_S:g} s were used up; run it alone")
        with _time_limit(limit_s):
            return measure.run(options)
    except CannotMeasureError as error:
        return Outcome((Figure(measure.name, None, "", note=str(error)),))
    except Exception as error:
        # A bug of the measure itself: shown whole, and the others still run.
        traceback.print_exc()
        return Outcome((Figure(measure.name, None, "", note=f"{type(error).__name__} in the measure"),))


@contextmanager
def _time_limit(seconds_s: float) -> Iterator[None]:
    def ring(_number: int, _frame: FrameType | None) -> None:
        raise CannotMeasureError(f"not finished after {seconds_s:g} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
