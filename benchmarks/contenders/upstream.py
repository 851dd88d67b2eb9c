"""The scripted upstream as a paced or bursting source of streams."""

from __future__ import annotations

from benchmarks.processes import Processes, Running, module


def start_scripted_upstream(processes: Processes) -> Running:
    return processes.start("upstream", module("inferhub.testing.upstream", "--port", "0"))


def script(*, ttft_ms: float = 0, gap_ms: float = 0, n: int) -> str:
    """The body's `user` field that makes it play; it passes through every relay unchanged."""
    return f"script:ttft_ms={ttft_ms:g},gap_ms={gap_ms:g},n={n}"
