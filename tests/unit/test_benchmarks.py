"""The pure parts of the benchmark suite: statistics, CPU accounting of a process tree, verdicts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest

# `benchmarks` is run from the repository's root and never installed.
sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import client, stats
from benchmarks.client import Plan, Readings, Target
from benchmarks.contenders.environment import LOCK, contenders_versions
from benchmarks.cpu import Stat, parse_stat, read_tree, tree, tree_cpu_s, tree_rss_bytes
from benchmarks.measure import Figure, Measure, Options, Outcome, Verdict, at_least, at_most
from benchmarks.measures import batching, measures, overload, worker_hop
from benchmarks.processes import last_words
from benchmarks.report import as_json, figure_line, summary


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 99, 5.0),
        ([1.0, 2.0, 3.0], 50, 2.0),
        ([3.0, 1.0, 2.0], 0, 1.0),
        ([1.0, 2.0, 3.0], 100, 3.0),
        ([0.0, 10.0], 25, 2.5),
    ],
)
def test_percentile(values: list[float], percent: float, expected: float) -> None:
    assert stats.percentile(values, percent) == expected


def test_percentile_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        stats.percentile([], 50)


def test_interleave_takes_turns() -> None:
    order: list[str] = []

    def one_round(contender: str) -> int:
        order.append(contender)
        return len(order)

    results = stats.interleave({"a": "A", "b": "B"}, one_round, rounds=3)
    assert order == ["A", "B", "A", "B", "A", "B"]
    assert results == {"a": [1, 3, 5], "b": [2, 4, 6]}


def test_paired_ratio_survives_a_slow_round() -> None:
    # In the second round the whole machine was ten times slower; a ratio of medians would move.
    assert stats.paired_ratio([20.0, 200.0, 24.0], [10.0, 100.0, 12.0]) == 2.0
    with pytest.raises(ValueError, match="shorter"):
        stats.paired_ratio([1.0, 2.0], [1.0])


def test_lowest_and_spread() -> None:
    assert stats.lowest({"a": 2.0, "b": 1.0}) == "b"
    assert stats.spread([8.0, 10.0, 12.0]) == 0.4
    assert stats.spread([0.0, 0.0]) == 0.0


def _stat(pid: int, parent: int, *ticks: int, name: str = "python") -> str:
    user, system, waited_user, waited_system = ticks
    return f"{pid} ({name}) S {parent} 7 7 0 -1 4194560 99 0 0 0 {user} {system} {waited_user} {waited_system} 20 0 3 0 5\n"


def test_parse_stat_counts_threads_and_ended_children() -> None:
    assert parse_stat(_stat(10, 1, 5, 6, 7, 8)) == Stat(pid=10, parent=1, ticks=26)


def test_parse_stat_is_not_fooled_by_a_name() -> None:
    assert parse_stat(_stat(10, 1, 1, 2, 0, 0, name="a) S 99 (b")) == Stat(pid=10, parent=1, ticks=3)


def test_tree_is_the_root_and_its_descendants_only() -> None:
    stats_ = [Stat(4, 3, 1), Stat(3, 2, 1), Stat(2, 1, 1), Stat(5, 1, 1), Stat(6, 2, 1)]
    assert {stat.pid for stat in tree(stats_, 2)} == {2, 3, 4, 6}
    assert tree(stats_, 99) == []


_BUSY_CHILD = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c",
    "import time; t = time.process_time()\\nwhile time.process_time() - t < 0.2: pass\\nprint(); input()"],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print("ready", flush=True)
input()
child.communicate(b"\\n")
print("reaped", flush=True)
input()
"""


def test_cpu_of_a_real_tree_counts_children_alive_and_ended() -> None:
    root = subprocess.Popen(
        [sys.executable, "-c", _BUSY_CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with root:
        assert root.stdin is not None
        assert root.stdout is not None
        try:
            assert root.stdout.readline() == "ready\n"
            assert len(read_tree(root.pid)) == 2
            alive_s, memory = tree_cpu_s([root.pid]), tree_rss_bytes(root.pid)
            root.stdin.write("\n")
            root.stdin.flush()
            assert root.stdout.readline() == "reaped\n"
            assert len(read_tree(root.pid)) == 1
            assert alive_s >= 0.19
            assert tree_cpu_s([root.pid]) >= alive_s
            assert memory > tree_rss_bytes(root.pid) > 0
        finally:
            root.kill()


@pytest.mark.parametrize(
    ("figure", "verdict"),
    [
        (Figure("f", 3.2, "x", at_most(3.2)), Verdict.MET),
        (Figure("f", 3.21, "x", at_most(3.2)), Verdict.MISSED),
        (Figure("f", 97.0, "%", at_least(97)), Verdict.MET),
        (Figure("f", 96.9, "%", at_least(97)), Verdict.MISSED),
        (Figure("f", None, "%", at_least(97)), Verdict.NOT_MEASURED),
        (Figure("f", math.nan, "x", at_most(1)), Verdict.NOT_MEASURED),
        (Figure("f", 1.0, "x"), Verdict.NO_TARGET),
    ],
)
def test_verdicts(figure: Figure, verdict: Verdict) -> None:
    assert figure.verdict is verdict


def test_the_report_says_what_was_missed() -> None:
    figures = [Figure("overhead", 5.0, "x", at_most(3.2)), Figure("start", 1.0, "s", at_most(5))]
    assert "MISSED" in figure_line(figures[0])
    assert summary(figures) == "1 met, 1 missed, 0 not measured\nMISSED: overhead"


def test_a_result_is_strict_json_with_four_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import report

    monkeypatch.setattr(report, "RESULTS", tmp_path)
    outcome = Outcome((Figure("f", math.nan, "x", at_most(1)),), {"rounds": [1.23456, 2.0]})
    measure = Measure("m", "title", lambda _: outcome, order=1)
    report.write("m", as_json(measure, outcome, {"cpu": "c"}, {"python": "3"}, quick=True))
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["details"] == {"rounds": [1.235, 2.0]}
    assert written["figures"][0] == {
        "name": "f", "value": None, "unit": "x", "target": "<= 1", "note": "", "verdict": "not measured"
    }  # fmt: skip


def test_what_a_failed_process_said_names_no_folder() -> None:
    text = 'Traceback:\n  File "/home/somebody/x.py"\nOSError: no such file: /home/somebody/data/x.db\n\n'
    assert last_words(text) == "OSError: no such file: …/x.db"
    assert last_words("") == "it said nothing"


async def _answer_every_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """200 with a body, 503 without, in turns on each connection."""
    with contextlib.suppress(asyncio.IncompleteReadError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            _ANSWERS.rotate()
            writer.write(_ANSWERS[0])
    writer.close()
    await writer.wait_closed()


_ANSWERS = deque(
    [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n"]
)


def test_an_open_loop_sends_whatever_is_answered_and_tells_refusals_apart() -> None:
    async def main() -> Readings:
        connections: list[asyncio.Task[None]] = []

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(asyncio.create_task(_answer_every_second(reader, writer)))

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            target = Target("t", f"http://127.0.0.1:{port}/x", {}, ("{}",))
            readings = await client.run(Plan("open", (target,), rate_per_s=400, duration_s=0.5))
            await asyncio.gather(*connections)
            return readings["t"]

    seen = asyncio.run(main())
    sent = len(seen.total_s) + len(seen.refused_s)
    assert 100 < sent < 400
    assert seen.codes == {"503": len(seen.refused_s)}
    assert abs(len(seen.total_s) - len(seen.refused_s)) <= 1
    assert seen.errors == len(seen.refused_s)
    assert len(seen.sent_s) == len(seen.total_s)
    assert len(seen.late_s) == sent


def test_overload_tells_the_first_seconds_apart() -> None:
    peak = Readings(total_s=[0.1] * 80, elapsed_s=1.0)
    calm = [0.2] * 198
    seen = Readings(
        total_s=[9.0, 9.0, *calm], sent_s=[0.0, 1.0, *([5.0] * 198)], codes={"503": 400}, elapsed_s=2.5
    )
    figures = {f.name: f for f in overload._judge(peak, 80.0, dict.fromkeys((1, 2, 3), seen)).figures}
    assert figures["goodput at 3 x, of the peak"].value == 100
    assert figures["p99 of the admitted at 3 x, over that at the peak"].verdict is Verdict.MISSED
    assert figures["the same after 2 s, when limits have settled"].value == pytest.approx(2)


def test_a_hop_that_seems_to_save_time_was_not_measured() -> None:
    readings = {"local": Readings(total_s=[0.002]), "worker": Readings(total_s=[0.001])}
    echo = {"unary": [0.001], "stream": [0.001], "back to back": [0.001]}
    outcome = worker_hop._judge([(readings, {"local": 1.0, "worker": 2.0}, echo)])
    assert outcome.figures[0].verdict is Verdict.NOT_MEASURED


def test_texts_to_embed_are_the_same_in_every_run() -> None:
    assert batching.some_texts("short") == batching.some_texts("short")
    assert max(len(text.split()) for text in batching.some_texts("mixed")) > 64


def test_the_environment_of_contenders_is_locked_by_hashes_and_names_no_address() -> None:
    text = LOCK.read_text()
    assert set(contenders_versions()) == {"bentoml", "litserve", "onnxruntime"}
    assert "://" not in text
    assert all("==" in line for line in text.splitlines() if line and not line.startswith(" "))


def test_quick_runs_are_shorter_but_keep_a_median() -> None:
    assert Options().rounds(5) == 5
    assert Options(quick=True).rounds(5) == 3
    assert Options(quick=True).scaled(10) < Options().scaled(10) == 10


def test_every_file_of_the_folder_is_a_measure() -> None:
    files = {path.stem for path in Path(sys.modules[measures.__module__].__path__[0]).glob("[a-z]*.py")}
    assert set(measures()) == files
    assert [measure.order for measure in measures().values()] == list(range(1, len(files) + 1))
