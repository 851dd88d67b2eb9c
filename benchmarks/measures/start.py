"""How long the first minute takes: import, help, second start to first token; and memory before a model.

Everything here is wall-clock time of cold processes with warm disk caches, so a busy machine shows.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from urllib.parse import urlsplit

from benchmarks.contenders.gateway import environment, remote_model, start_http
from benchmarks.contenders.weights import NAME, find_weights
from benchmarks.cpu import tree_rss_bytes
from benchmarks.measure import CannotMeasureError, Figure, Measure, Options, Outcome, Target, at_most
from benchmarks.processes import Processes, Running, last_words, module

_IMPORT = "import time; t = time.perf_counter(); import inferhub; print(time.perf_counter() - t)"
_MB = 1e6
_SETTLE_S = 1.5
_TIMEOUT_S = 30


def run(options: Options) -> Outcome:
    rounds = options.rounds(7)
    _help_s()  # writes the byte code; not counted
    imports = [_import_s() for _ in range(rounds)]
    helps = [_help_s() for _ in range(rounds)]
    figures = [
        Figure("import inferhub", median(imports), "s", at_most(0.5)),
        Figure("inferhub --help", median(helps), "s", at_most(0.3)),
        _attempt("idle memory before a model loads", "MB", at_most(150.0), _idle_mb),
    ]
    starts: list[tuple[float, float]] = []

    def second_start() -> float:
        starts.extend(_starts(3 if not options.quick else 1))
        return median(first_token for _, first_token in starts)

    figures.append(_attempt("second start of serve to first token", "s", at_most(5.0), second_start))
    if starts:
        figures.append(
            Figure("second start of serve to ready", median(r for r, _ in starts), "s", at_most(3.0))
        )
    return Outcome(tuple(figures), {"import_s": imports, "help_s": helps, "ready_and_first_token_s": starts})


def _attempt(name: str, unit: str, target: Target, take: Callable[[], float]) -> Figure:
    """One figure that cannot be taken does not cost the others."""
    try:
        return Figure(name, take(), unit, target)
    except CannotMeasureError as error:
        return Figure(name, None, unit, target, note=str(error))


def _import_s() -> float:
    return float(_run([sys.executable, "-c", _IMPORT]))


def _help_s() -> float:
    begin = time.perf_counter()
    _run(module("inferhub", "--help"))
    return time.perf_counter() - begin


def _run(arguments: list[str]) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    if done.returncode:
        raise CannotMeasureError(f"inferhub cannot be started: {last_words(done.stderr)}")
    return done.stdout


def _idle_mb() -> float:
    """The whole tree, a little after it said that it is ready."""
    with Processes() as processes:
        # A model that lives elsewhere: nothing loads here, and nobody is asked before the first call.
        env = environment(processes, "idle", [remote_model("http://127.0.0.1:9")])
        running = start_http(processes, "serve", env)
        time.sleep(_SETTLE_S)
        return tree_rss_bytes(running.pid) / _MB


def _starts(count: int) -> list[tuple[float, float]]:
    """(seconds to ready, seconds to first token) of starts that find their catalog already made."""
    find_weights()
    found = []
    with Processes() as processes:
        model = {"name": "mock", "backend": "llamacpp", "weights": NAME}
        env = environment(processes, "start", [model])
        first = start_http(processes, "serve", env)
        key = first.announced["admin_key"]
        processes.stop(first)
        for _ in range(count):
            begin = time.perf_counter()
            running = start_http(processes, "serve", env, key)
            ready_s = time.perf_counter() - begin
            _first_token(running)
            found.append((ready_s, time.perf_counter() - begin))
            processes.stop(running)
    return found


def _first_token(running: Running) -> None:
    """Returns when the first content of a stream has arrived."""
    body = {
        "model": "mock",
        "messages": [{"role": "user", "content": "Say hello."}],
        "stream": True,
        "max_tokens": 8,
    }
    connection = http.client.HTTPConnection(urlsplit(running.url).netloc, timeout=_TIMEOUT_S)
    try:
        headers = {"content-type": "application/json", **running.headers}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        while line := response.readline():
            if line.startswith(b"data: {") and _content(line):
                return
    except (OSError, http.client.HTTPException) as error:
        raise CannotMeasureError(f"the first request failed: {error}") from error
    finally:
        connection.close()
    raise CannotMeasureError(f"the first request was answered {response.status} without content")


def _content(line: bytes) -> bool:
    choices = json.loads(line.removeprefix(b"data: ")).get("choices")
    return bool(choices and choices[0]["delta"].get("content"))


MEASURE = Measure("start", "import, help, second start, idle memory", run, order=6)
