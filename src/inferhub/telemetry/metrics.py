"""Every metric of InferHub, by name, in one place. Base units, bounded labels, no model name from a client.

Names of the `gen_ai_*` family follow OpenTelemetry's GenAI conventions in Prometheus spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from inferhub.core.models import ModelStatus
from inferhub.core.usage import Usage
from inferhub.telemetry.batches import BATCHES, BUCKETS
from inferhub.telemetry.lifecycle import BUCKETS_S, ModelTally

_DURATION_BUCKETS = tuple(0.01 * 2**k for k in range(14))


@dataclass(frozen=True, slots=True)
class Series:
    """The children of one (modality, model), resolved once; recording does no label look-up."""

    outcomes: dict[str, Counter]
    requests: Counter
    duration: Histogram
    first_token: Histogram
    tokens: tuple[Counter, Counter]
    labels: tuple[str, str]

    def record(
        self, outcome: str, elapsed_s: float, first_token_s: float | None, usage: Usage | None
    ) -> None:
        if outcome not in self.outcomes:
            self.outcomes[outcome] = self.requests.labels(*self.labels, outcome)
        self.outcomes[outcome].inc()
        self.duration.observe(elapsed_s)
        if first_token_s is not None:
            self.first_token.observe(first_token_s)
        if usage is not None:
            self.tokens[0].inc(usage.input_tokens)
            self.tokens[1].inc(usage.output_tokens)


class _ModelMemory(Collector):
    def __init__(self, models: Callable[[], Iterable[ModelStatus]]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        loaded = GaugeMetricFamily(
            "inferhub_model_loaded",
            "1 while the model is loaded, 0 while it waits for a call.",
            labels=["model"],
        )
        memory = GaugeMetricFamily(
            "inferhub_model_memory_bytes",
            "Memory of the model's own process, measured last.",
            labels=["model"],
        )
        # Two versions of a model may run side by side for a moment.
        found: dict[str, tuple[bool, int]] = {}
        for model in self._models():
            is_loaded, size = found.get(model.spec.public_name, (False, 0))
            found[model.spec.public_name] = (is_loaded or model.loaded, size + model.memory_bytes)
        for name, (is_loaded, size) in found.items():
            loaded.add_metric([name], float(is_loaded))
            memory.add_metric([name], size)
        yield loaded
        yield memory


class _ModelLife(Collector):
    def __init__(self, tally: ModelTally) -> None:
        self._tally = tally

    def collect(self) -> Iterator[Metric]:
        loads = CounterMetricFamily(
            "inferhub_model_loads", "Loads of a model: ok, error or cancelled.", labels=["model", "outcome"]
        )
        unloads = CounterMetricFamily(
            "inferhub_model_unloads",
            "Times a model left memory: by request, to make room, for being idle, or in a crash.",
            labels=["model", "reason"],
        )
        took = HistogramMetricFamily(
            "inferhub_model_cold_start_seconds", "Time from the start of a load to its end.", labels=["model"]
        )
        # Copies: the worker's loop goes on writing while a scrape reads.
        for loaded, count in list(self._tally.loads.items()):
            loads.add_metric(loaded, count)
        for unloaded, count in list(self._tally.unloads.items()):
            unloads.add_metric(unloaded, count)
        bounds = (*map(str, BUCKETS_S), "+Inf")
        for model, durations in list(self._tally.cold_starts.items()):
            took.add_metric(
                [model], list(zip(bounds, accumulate(durations.counts), strict=True)), durations.sum_s
            )
        yield from (loads, unloads, took)


MAX_ENDPOINTS = 256
"""Shown at most, those with the most calls first: a series for each of thousands helps nobody."""

Place = tuple[str, str, int, int]
"""(model, endpoint, calls there now, calls there at most)."""


class _Places(Collector):
    def __init__(self, places: Callable[[], Iterable[Place]]) -> None:
        self._places = places

    def collect(self) -> Iterator[Metric]:
        labels = ["model", "endpoint"]
        there = GaugeMetricFamily(
            "inferhub_endpoint_inflight", "Calls of this process at an endpoint now.", labels=labels
        )
        limit = GaugeMetricFamily(
            "inferhub_endpoint_limit",
            "Calls that this process gives an endpoint at most; lower while there is too much work.",
            labels=labels,
        )
        fullest = sorted(self._places(), key=lambda place: -place[2])[:MAX_ENDPOINTS]
        # Two versions of a model may run side by side for a moment.
        sums: dict[tuple[str, str], tuple[int, int]] = {}
        for model, endpoint, calls, most in fullest:
            calls_before, most_before = sums.get((model, endpoint), (0, 0))
            sums[model, endpoint] = calls_before + calls, most_before + most
        for named, (calls, most) in sums.items():
            there.add_metric(named, calls)
            limit.add_metric(named, most)
        yield there
        yield limit


class _BatchSizes(Collector):
    def collect(self) -> Iterator[Metric]:
        family = HistogramMetricFamily(
            "inferhub_batch_size",
            "Size of the batch that a call was computed in, itself included; a sample is a call.",
            labels=["modality", "model"],
        )
        for labels, sizes in list(BATCHES.sizes.items()):
            counts = accumulate(sizes.counts)
            bounds = (*map(str, map(float, BUCKETS)), "+Inf")
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), sizes.sum)
        yield family


class _FleetFigures(Collector):
    def __init__(self, figures: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        figures = self._figures()
        members = GaugeMetricFamily(
            "inferhub_fleet_members", "Workers in the fleet, by state.", labels=["state"]
        )
        for state, count in figures["members"].items():
            members.add_metric([state], count)
        yield members
        for name, label, help_ in (
            ("changes", "change", "What happened to workers: came, fell silent, were lost, left."),
            ("actions", "action", "Models loaded and unloaded on workers, and attempts that failed."),
            ("refused", "reason", "Registrations and heartbeats that were not believed."),
        ):
            counter = CounterMetricFamily(f"inferhub_fleet_{name}", help_, labels=[label])
            for what, count in figures[name].items():
                counter.add_metric([what], count)
            yield counter


class Metrics:
    """One registry a process, never the library's global one, so that tests can have many."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(_BatchSizes())
        names = ["modality", "model"]
        self._requests = Counter(
            "inferhub_requests_total",
            "Calls that ended, by outcome: ok, cancelled, or an error code.",
            [*names, "outcome"],
            registry=registry,
        )
        self._duration = Histogram(
            "gen_ai_server_request_duration_seconds",
            "Time from the parsed request to the end of its answer.",
            names,
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._first_token = Histogram(
            "gen_ai_server_time_to_first_token_seconds",
            "Time from the parsed request to the first piece of its answer.",
            names,
            buckets=_DURATION_BUCKETS,
            registry=registry,
        )
        self._tokens = Counter(
            "inferhub_tokens_total", "Tokens of finished calls.", [*names, "type"], registry=registry
        )
        self.inflight = Gauge("inferhub_requests_inflight", "Calls being answered now.", registry=registry)
        self.loop_lag = Gauge(
            "inferhub_event_loop_lag_seconds", "How late the event loop ran, seen last.", registry=registry
        )
        self.refused = Counter(
            "inferhub_refused_total",
            "Requests refused at the door, by error code.",
            ["code"],
            registry=registry,
        )
        self.shed = Counter(
            "inferhub_shed_total",
            "Calls that there was no room for, by reason and criticality.",
            ["reason", "criticality"],
            registry=registry,
        )
        self.attempts_failed = Counter(
            "inferhub_attempts_failed_total",
            "Attempts at an endpoint that came to nothing, or broke off, by cause.",
            ["endpoint", "cause"],
            registry=registry,
        )
        self.retries_refused = Counter(
            "inferhub_retries_refused_total",
            "Calls that were not tried again because too many were being tried again already.",
            registry=registry,
        )
        self.store_up = Gauge(
            "inferhub_store_up",
            "1 while a store is used as it should be, 0 while the gateway does without it.",
            ["store"],
            registry=registry,
        )
        self.spool_bytes = Gauge(
            "inferhub_spool_backlog_bytes",
            "Usage that is written down here and not yet in the stores behind.",
            registry=registry,
        )
        self.spool_oldest = Gauge(
            "inferhub_spool_oldest_age_seconds", "Age of the oldest of it.", registry=registry
        )
        self._series: dict[tuple[str, str], Series] = {}

    def watch_models(self, models: Callable[[], Iterable[ModelStatus]], tally: ModelTally) -> None:
        """Show, at every scrape, which models of this process's worker are in memory, and how they came and
        went."""
        self._registry.register(_ModelMemory(models))
        self._registry.register(_ModelLife(tally))

    def watch_places(self, places: Callable[[], Iterable[Place]]) -> None:
        """Show, at every scrape, how many calls endpoints have, and may have, of this process."""
        self._registry.register(_Places(places))

    def watch_fleet(self, figures: Callable[[], Mapping[str, Mapping[str, int]]]) -> None:
        """Show, at every scrape, how an orchestrator's fleet is: counts by kind of members, changes, actions
        and of what was refused."""
        self._registry.register(_FleetFigures(figures))

    def series(self, modality: str, model: str) -> Series:
        key = (modality, model)
        if key not in self._series:
            self._series[key] = Series(
                outcomes={},
                requests=self._requests,
                duration=self._duration.labels(*key),
                first_token=self._first_token.labels(*key),
                tokens=(self._tokens.labels(*key, "input"), self._tokens.labels(*key, "output")),
                labels=key,
            )
        return self._series[key]

    def exposition(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)
