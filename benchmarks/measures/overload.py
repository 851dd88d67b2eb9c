"""Three times as many calls as there is room for: what is answered, how soon, how the rest is refused.

The model takes a fixed time for each call and has few slots, so that its capacity is known and is not the
machine's. The peak is the most that a closed loop gets answered, by whatever number of clients is best for
it; then an open loop offers 1, 2 and 3 times as much, without asking whether anybody answers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from benchmarks.client import Plan, Readings, Target, ask
from benchmarks.contenders.gateway import start_serve
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, at_least, at_most
from benchmarks.processes import Processes
from benchmarks.stats import percentile

_SLOTS = 8
_SERVICE_S = 0.1
_CLIENTS = (_SLOTS, _SLOTS + 2, 2 * _SLOTS)
"""One of these finds the peak: as many as slots, or some more, so that no slot waits for a client."""
_FACTORS = (1, 2, 3)
_PHASE_S = 10.0
_SETTLING_S = 2.0
_BODY = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "one"}]}, separators=(",", ":"))


def run(options: Options) -> Outcome:
    phase_s = options.scaled(_PHASE_S)
    with Processes() as processes:
        model = {"name": "mock", "backend": "echo", "slots": _SLOTS, "options": {"first_token_s": _SERVICE_S}}
        hub = start_serve(processes, "serve", [model])
        target = Target("hub", f"{hub.url}/v1/chat/completions", hub.headers, (_BODY,))
        _closed(target, _SLOTS, 1.0)  # warms; not counted
        tried = {clients: _closed(target, clients, phase_s / 2) for clients in _CLIENTS}
        clients = max(tried, key=lambda clients: _per_s(tried[clients]))
        peak, per_s = tried[clients], _per_s(tried[clients])
        offered = {factor: _open(target, factor * per_s, phase_s) for factor in _FACTORS}
    outcome = _judge(peak, per_s, offered)
    return replace(outcome, details={**outcome.details, "clients_at_peak": clients})


def _closed(target: Target, clients: int, duration_s: float) -> Readings:
    return _answered(ask(Plan("load", (target,), connections=clients, duration_s=duration_s))[target.name])


def _open(target: Target, rate_per_s: float, duration_s: float) -> Readings:
    plan = Plan("open", (target,), rate_per_s=rate_per_s, duration_s=duration_s)
    return _answered(ask(plan, timeout_s=120)[target.name])


def _answered(seen: Readings) -> Readings:
    if not seen.total_s:
        raise CannotMeasureError(f"not one call was answered: {seen.codes}")
    return seen


def _per_s(seen: Readings) -> float:
    """Until the last answer came: what was still waiting at the end is not given for nothing."""
    return len(seen.total_s) / seen.elapsed_s


def _judge(peak: Readings, per_s: float, offered: Mapping[int, Readings]) -> Outcome:
    peak_p99_s = percentile(peak.total_s, 99)
    worst = offered[_FACTORS[-1]]
    name = f"at {_FACTORS[-1]} x"
    figures = [
        Figure(f"goodput {name}, of the peak", _goodput(worst, per_s), "%", at_least(90)),
        Figure(
            f"p99 of the admitted {name}, over that at the peak",
            percentile(worst.total_s, 99) / peak_p99_s,
            "x",
            at_most(2),
        ),
        Figure(
            f"the same after {_SETTLING_S:g} s, when limits have settled",
            percentile(_settled(worst), 99) / peak_p99_s,
            "x",
        ),
        Figure(f"refusals {name}: p99", _ms(worst.refused_s, 99), "ms", note=_codes(worst)),
        Figure(f"refusals {name}: p50", _ms(worst.refused_s, 50), "ms"),
        Figure(f"cut off or never answered {name}", float(worst.codes.get("cut", 0)), "", at_most(0)),
        Figure(
            "the peak", per_s, "/s", note=f"{_SLOTS} slots of {_SERVICE_S:g} s: {_SLOTS / _SERVICE_S:g}/s"
        ),
        Figure("p99 at the peak", peak_p99_s * 1e3, "ms"),
    ]
    for factor, seen in offered.items():
        figures += [
            Figure(f"goodput at {factor} x", _goodput(seen, per_s), "%", note=_codes(seen)),
            Figure(f"p50, p99 of the admitted at {factor} x", _ms(seen.total_s, 50), "ms", note=_p99(seen)),
        ]
    details = {
        f"offered_{factor}x": {
            "answered": len(seen.total_s),
            "codes": seen.codes,
            "elapsed_s": seen.elapsed_s,
            "client_late_p99_ms": _ms(seen.late_s, 99),
        }
        for factor, seen in offered.items()
    }
    return Outcome(tuple(figures), {"slots": _SLOTS, "service_s": _SERVICE_S, **details})


def _settled(seen: Readings) -> list[float]:
    begin_s = min(seen.sent_s) + _SETTLING_S
    pairs = zip(seen.sent_s, seen.total_s, strict=True)
    return [total_s for sent_s, total_s in pairs if sent_s >= begin_s] or seen.total_s


def _goodput(seen: Readings, per_s: float) -> float:
    return 100 * _per_s(seen) / per_s


def _ms(seconds: list[float], percent: float) -> float | None:
    return percentile(seconds, percent) * 1e3 if seconds else None


def _p99(seen: Readings) -> str:
    return f"p99 {percentile(seen.total_s, 99) * 1e3:.0f} ms"


def _codes(seen: Readings) -> str:
    said = ", ".join(f"{count} × {code}" for code, count in sorted(seen.codes.items()))
    return said or "nothing was refused"


MEASURE = Measure("overload", "more calls than there is room for", run, order=17, limit_s=120)
