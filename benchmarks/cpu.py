"""CPU time and memory of a whole process tree, read from Linux's /proc.

User + system, children included: a gateway that hands work to a child must not look cheaper.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields of `/proc/PID/stat` that count."""

    pid: int
    parent: int
    ticks: int
    """User and system time of all its threads, and of the children it already waited for."""


def parse_stat(text: str) -> Stat:
    """The program's name may hold spaces and parentheses, so fields are counted from its last one."""
    pid, _, rest = text.partition(" (")
    fields = rest.rpartition(")")[2].split()
    # Field 3 of the manual page is the first here: parent 4, utime 14, stime 15, cutime 16, cstime 17.
    return Stat(pid=int(pid), parent=int(fields[1]), ticks=sum(map(int, fields[11:15])))


def tree(stats: Iterable[Stat], root: int) -> list[Stat]:
    """The root and all its living descendants; empty when the root is gone."""
    children: dict[int, list[Stat]] = {}
    found: list[Stat] = []
    for stat in stats:
        children.setdefault(stat.parent, []).append(stat)
        if stat.pid == root:
            found.append(stat)
    for stat in found:
        found += children.get(stat.pid, [])
    return found


def read_tree(root: int) -> list[Stat]:
    stats = []
    for entry in os.scandir(_PROC):
        if entry.name.isdigit():
            try:
                stats.append(parse_stat((_PROC / entry.name / "stat").read_text()))
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we were reading
    return tree(stats, root)


def tree_cpu_s(roots: Iterable[int]) -> float:
    """Seconds of CPU that the trees of these processes have used so far (resolution: one clock tick)."""
    return sum(stat.ticks for root in roots for stat in read_tree(root)) / _TICKS_PER_S


def tree_rss_bytes(root: int) -> int:
    """Resident memory of the tree. Pages shared between its processes are counted in each of them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    for stat in read_tree(root):
        try:
            total += int((_PROC / str(stat.pid) / "statm").read_text().split()[1]) * page
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


def tree_pss_bytes(root: int) -> int:
    """Proportional memory of the tree: a page that n processes share counts as an n-th in each of them."""
    total = 0
    for stat in read_tree(root):
        try:
            text = (_PROC / str(stat.pid) / "smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Pss:"))
    return total


def busy_cores(interval_s: float) -> float:
    """How many cores were busy, on average, while this process slept for the interval."""
    before = _busy_ticks((_PROC / "stat").read_text())
    begin = time.monotonic()
    time.sleep(interval_s)
    after = _busy_ticks((_PROC / "stat").read_text())
    return (after - before) / _TICKS_PER_S / (time.monotonic() - begin)


def _busy_ticks(stat: str) -> int:
    # user nice system idle iowait irq softirq steal: idle and iowait are the only ones not in use.
    fields = [int(field) for field in stat.split("\n", 1)[0].split()[1:9]]
    return sum(fields) - fields[3] - fields[4]
