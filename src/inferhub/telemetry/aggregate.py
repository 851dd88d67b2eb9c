"""The metrics of several processes as one exposition, for `supervisor/scrape`.

Counters and histograms are sums over the living and the dead, so that no total goes backwards when a
process starts again. It never asks a process anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

MONOTONE = frozenset({"counter", "histogram", "summary"})
"""Types whose values only grow."""

PER_PROCESS = ("process_", "python_")
"""Families that say something about one process; each keeps its own, told apart by a label."""

LABEL = "process"

Combine = Callable[[float, float], float]

GAUGES: tuple[tuple[str, Combine], ...] = (
    ("_info", max),
    ("_lag_seconds", max),
    ("_age_seconds", max),
    ("_timestamp_seconds", max),
    ("_start_time_seconds", max),
    ("_ratio", max),
    ("_up", min),
)
"""By the end of the name: gauges whose sum says nothing. The worst process speaks; all others are summed."""

_Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(slots=True)
class _Family:
    documentation: str
    type: str
    samples: dict[_Key, float] = field(default_factory=dict)


class Aggregate:
    def __init__(self) -> None:
        self._retired: dict[str, _Family] = {}

    def retire(self, process: str, exposition: str) -> None:
        """`process` has ended; `exposition` is the last that was seen of it."""
        _add(self._retired, process, exposition, lambda family: family.type in MONOTONE)

    def merge(self, expositions: Iterable[tuple[str, str]], own: Iterable[Metric] = ()) -> bytes:
        """One exposition of those of the living processes, each with its name, and of `own` as they are.

        A process and its successor have the same name, for the time in which both live.
        """
        merged = {
            name: _Family(family.documentation, family.type, dict(family.samples))
            for name, family in self._retired.items()
        }
        for process, text in expositions:
            _add(merged, process, text, lambda _: True)
        return _text([*(_metric(name, family) for name, family in merged.items()), *own])


def _add(
    families: dict[str, _Family], process: str, exposition: str, is_wanted: Callable[[Metric], bool]
) -> None:
    for family in text_string_to_metric_families(exposition):
        # When a series began means nothing for a sum of several lives.
        if family.name.endswith("_created") or not is_wanted(family):
            continue
        extra = ((LABEL, process),) if family.name.startswith(PER_PROCESS) else ()
        combine = _combine(family)
        into = families.setdefault(family.name, _Family(family.documentation, family.type)).samples
        for sample in family.samples:
            key = (sample.name, (*sample.labels.items(), *extra))
            into[key] = combine(into[key], sample.value) if key in into else sample.value


def _combine(family: Metric) -> Combine:
    if family.type not in MONOTONE:
        for ending, combine in GAUGES:
            if family.name.endswith(ending):
                return combine
    return float.__add__


def _metric(name: str, family: _Family) -> Metric:
    metric = Metric(name, family.documentation, family.type)
    metric.samples = [
        Sample(sample, dict(labels), value) for (sample, labels), value in family.samples.items()
    ]
    return metric


def _text(metrics: list[Metric]) -> bytes:
    class Collected(Collector):
        def collect(self) -> list[Metric]:
            return metrics

    registry = CollectorRegistry()
    registry.register(Collected())
    return generate_latest(registry)
