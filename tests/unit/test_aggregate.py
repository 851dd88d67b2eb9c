"""The metrics of several processes as one: what is summed, what is not, and what outlives a process."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from inferhub.telemetry.aggregate import Aggregate


class Process:
    """A registry with one metric of each kind."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.calls = Counter("calls_total", 'Of "all"\nkinds.', ["model"], registry=registry)
        self.took = Histogram("took_seconds", "Time.", ["model"], buckets=(1, 2), registry=registry)
        self.inflight = Gauge("inflight", "Now.", registry=registry)
        self.lag = Gauge("loop_lag_seconds", "Late.", registry=registry)
        self.up = Gauge("store_up", "Reached.", ["store"], registry=registry)
        self.cpu = Counter("process_cpu_seconds_total", "CPU.", registry=registry)
        Info("build", "Which.", registry=registry).info({"version": "1"})

    def text(self) -> str:
        return generate_latest(self.registry).decode()


def values(exposition: bytes) -> dict[str, float]:
    """`name{label=value}` → value."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(exposition.decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            assert name not in found, "no series twice"
            found[name] = sample.value
    return found


def two() -> tuple[Process, Process]:
    first, second = Process(), Process()
    first.calls.labels("a").inc(3)
    second.calls.labels("a").inc(4)
    second.calls.labels("b").inc(1)
    first.took.labels("a").observe(0.5)
    second.took.labels("a").observe(1.5)
    second.took.labels("a").observe(9)
    for process, number in ((first, 2), (second, 5)):
        process.inflight.set(number)
        process.lag.set(number)
        process.cpu.inc(number)
        process.up.labels("redis").set(number == 5)
    return first, second


def test_each_kind_is_merged_as_it_makes_sense() -> None:
    first, second = two()
    merged = values(Aggregate().merge({"0": first.text(), "1": second.text()}.items()))
    assert merged == {
        "calls_total{model=a}": 7,
        "calls_total{model=b}": 1,
        "took_seconds_bucket{le=1.0,model=a}": 1,
        "took_seconds_bucket{le=2.0,model=a}": 2,
        "took_seconds_bucket{le=+Inf,model=a}": 3,
        "took_seconds_count{model=a}": 3,
        "took_seconds_sum{model=a}": 11,
        "inflight": 7,
        "loop_lag_seconds": 5,
        "store_up{store=redis}": 0,
        "build_info{version=1}": 1,
        "process_cpu_seconds_total{process=0}": 2,
        "process_cpu_seconds_total{process=1}": 5,
    }


def test_one_process_alone_keeps_its_words_and_types() -> None:
    process, _ = two()
    merged = Aggregate().merge({"0": process.text()}.items()).decode()
    for line in process.text().splitlines():
        if "_created" not in line and not line.startswith("process_"):
            assert line in merged.splitlines()


def test_what_the_dead_counted_stays_and_what_they_held_goes() -> None:
    first, second = two()
    aggregate = Aggregate()
    before = values(aggregate.merge({"0": first.text(), "1": second.text()}.items()))
    aggregate.retire("1", second.text())
    between = values(aggregate.merge({"0": first.text()}.items()))
    successor = Process()
    after = values(aggregate.merge({"0": first.text(), "1": successor.text()}.items()))
    growing = [name for name in before if name.startswith(("calls", "took", "process_cpu"))]
    assert len(growing) == 9
    assert (
        [between[name] for name in growing]
        == [after[name] for name in growing]
        == [before[name] for name in growing]
    )
    assert (between["inflight"], between["loop_lag_seconds"]) == (2, 2)
    successor.calls.labels("b").inc(2)
    successor.cpu.inc(1)
    later = values(aggregate.merge({"0": first.text(), "1": successor.text()}.items()))
    assert (later["calls_total{model=b}"], later["process_cpu_seconds_total{process=1}"]) == (3, 6)


def test_many_lives_add_up_and_a_life_without_a_word_adds_nothing() -> None:
    aggregate = Aggregate()
    for _ in range(3):
        process, _ = two()
        aggregate.retire("0", process.text())
        aggregate.retire("0", "")
    assert values(aggregate.merge(()))["calls_total{model=a}"] == 9
    assert values(aggregate.merge(()))["calls_total{model=a}"] == 9, "looking changes nothing"
    assert Aggregate().merge({"0": ""}.items()) == b""


def test_labels_that_need_escaping_survive() -> None:
    process = Process()
    name = 'a"b\\c\nd{e}=,f # g'
    process.calls.labels(name).inc()
    aggregate = Aggregate()
    aggregate.retire("0", process.text())
    assert values(aggregate.merge({"0": process.text()}.items()))[f"calls_total{{model={name}}}"] == 2


def test_a_process_and_its_successor_count_as_one_while_both_live() -> None:
    first, second = two()
    aggregate = Aggregate()
    both = values(aggregate.merge([("0", first.text()), ("0", second.text())]))
    assert both["process_cpu_seconds_total{process=0}"] == 7
    aggregate.retire("0", first.text())
    after = values(aggregate.merge([("0", second.text())]))
    assert after["process_cpu_seconds_total{process=0}"] == 7
    assert after["calls_total{model=a}"] == both["calls_total{model=a}"]
