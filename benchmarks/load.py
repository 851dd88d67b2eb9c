"""A closed loop of requests from another process: wrk where it is installed, else our own client.

Returns what was answered and how much CPU the contender's whole process tree used for it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.client import Plan, Target, ask
from benchmarks.cpu import tree_cpu_s
from benchmarks.measure import CannotMeasureError
from benchmarks.processes import Running
from benchmarks.stats import percentile

WRK_MISSING = "wrk is not installed (Debian: apt-get install wrk): our own client made the load"

_DONE = """
done = function(summary, latency)
  io.write(string.format('{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.status
    + summary.errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Pressure:
    """Keep `connections` requests open for `duration_s`."""

    path: str
    body: Mapping[str, object]
    connections: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class Load:
    """One round."""

    requests: int
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: float


def load_tool_note() -> str:
    """Empty with wrk; else how to get it. Our own client takes CPU that the contender could use."""
    return "" if shutil.which("wrk") else WRK_MISSING


def press(contender: Running, pressure: Pressure, folder: Path) -> Load:
    """Raises `CannotMeasureError` when any request is refused."""
    before_s = tree_cpu_s([contender.pid])
    seen = _drive(contender, pressure, folder)
    used_s = tree_cpu_s([contender.pid]) - before_s
    if seen["errors"] or not seen["requests"]:
        raise CannotMeasureError(
            f"{seen['errors']} of {seen['requests']} requests to {contender.name} failed"
        )
    return Load(
        requests=int(seen["requests"]),
        requests_per_s=seen["requests"] / (seen["duration_us"] / 1e6),
        p50_ms=seen["p50_us"] / 1e3,
        p99_ms=seen["p99_us"] / 1e3,
        cpu_us_per_request=used_s * 1e6 / seen["requests"],
    )


def _drive(contender: Running, pressure: Pressure, folder: Path) -> dict[str, float]:
    wrk = shutil.which("wrk")
    text = json.dumps(pressure.body, separators=(",", ":"))
    if wrk is None:
        return _own_client(contender, pressure, text)
    script = folder / "wrk.lua"
    headers = {"content-type": "application/json", **contender.headers}
    lines = [f"wrk.headers[ {_lua(key)} ] = {_lua(value)}" for key, value in headers.items()]
    script.write_text("\n".join(['wrk.method = "POST"', f"wrk.body = {_lua(text)}", *lines]) + _DONE)
    # wrk counts whole seconds with a unit; milliseconds are not among its units.
    arguments = [
        wrk,
        "-t1",
        f"-c{pressure.connections}",
        f"-d{max(1, round(pressure.duration_s))}s",
        "-s",
        str(script),
    ]
    done = subprocess.run(
        [*arguments, contender.url + pressure.path],
        capture_output=True,
        text=True,
        timeout=pressure.duration_s + 20,
        check=False,
    )
    if done.returncode:
        raise CannotMeasureError(f"wrk ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    last = done.stdout.strip().rpartition("\n")[2]
    if not last.startswith("{"):
        raise CannotMeasureError(f"wrk said nothing of its requests: {done.stderr.strip()[-300:]}")
    found: dict[str, float] = json.loads(last)
    return found


def _lua(text: str) -> str:
    """A Lua string literal; long brackets would end at `]==]`, which JSON and headers never hold."""
    return f"[==[{text}]==]"


def _own_client(contender: Running, pressure: Pressure, body: str) -> dict[str, float]:
    target = Target("load", contender.url + pressure.path, contender.headers, (body,))
    plan = Plan("load", (target,), connections=pressure.connections, duration_s=pressure.duration_s)
    seen = ask(plan)["load"]
    return {
        "requests": len(seen.total_s),
        "errors": seen.errors,
        "duration_us": seen.elapsed_s * 1e6,
        "p50_us": percentile(seen.total_s, 50) * 1e6 if seen.total_s else 0,
        "p99_us": percentile(seen.total_s, 99) * 1e6 if seen.total_s else 0,
    }
