"""What every acceptance test stands on: one InferHub per shape and session, and ways to talk to it.

Each shape runs the same hub.yaml: the echo and its misbehaving sisters, the two built-in models, and
remote models in front of the scripted upstream.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI
from platformdirs import user_cache_path

from inferhub.registry.integrity import State
from inferhub.registry.weights import Weights
from inferhub.testing.servers import SHAPES, Hub, Process, environment, running_hub
from inferhub.testing.talk import Talk
from inferhub.testing.upstream_process import Upstream

SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: "lab/echo:v1@2", backend: echo}}
  - {{name: slow, backend: echo, slots: 16, options: {{first_token_s: 0.6, gap_s: 0.03}}}}
  - {{name: glacial, backend: echo, slots: 2, queue_limit: 2, options: {{first_token_s: 60}}}}
  - {{name: flaky, backend: echo, options: {{fail_every: 2}}}}
  - {{name: broken, backend: echo, options: {{fail_every: 1}}}}
  - {{name: breaks-late, backend: echo, options: {{fail_every: 1, fail_at: 2}}}}
  - {{name: smollm2-135m, backend: llamacpp, weights: smollm2-135m, slots: 2}}
  - {{name: minilm-l6-v2, backend: onnx_embedding, weights: minilm-l6-v2}}
  - {{name: remote, backend: openai_compatible, slots: 64,
     options: {{base_url: "{upstream}", api_key: sk-upstream-canary, remote_urls: true}}}}
  - {{name: remote-dead, backend: openai_compatible, options: {{base_url: "http://127.0.0.1:9"}}}}
  - {{name: remote-impatient, backend: openai_compatible,
     options: {{base_url: "{upstream}", headers_timeout_s: 0.5, answer_timeout_s: 0.5}}}}
  # One for each test whose upstream asks to be left alone: it is, by whoever comes next.
  - {{name: limited-1, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: limited-2, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: limited-3, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
  - {{name: limited-4, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
routes:
  - {{name: chat, model: echo}}
  - {{name: lab/alias, model: smollm2-135m}}
"""

SETTINGS: dict[str, object] = {
    "max_body_bytes": 2**20,
    "head_hold_s": 0.2,
    "ping_interval_s": 0.3,
    "worker_refresh_s": 0.1,
    "drain_grace_s": 5,
    "cors_origins": "https://console.example",
    # What these tests break on purpose must not be left alone for the next of them.
    "breaker_failures": 0,
}

# Every limit so short that a test can wait for it.
TIGHT_SPEC = """\
models:
  - {{name: echo, backend: echo}}
  - {{name: late, backend: echo, options: {{first_token_s: 30}}}}
  - {{name: stalls, backend: echo, options: {{gap_s: 30}}}}
  - {{name: crawls, backend: echo, options: {{gap_s: 0.3}}}}
  - {{name: remote, backend: openai_compatible, options: {{base_url: "{upstream}"}}}}
"""

TIGHT_SETTINGS: dict[str, object] = {
    "request_timeout_s": 2.5,
    "first_token_timeout_s": 1,
    "idle_timeout_s": 0.8,
    "write_timeout_s": 1,
    "body_timeout_s": 1,
    "head_hold_s": 0.1,
    "ping_interval_s": 0.2,
    "drain_grace_s": 1,
    "breaker_failures": 0,
}

PLAIN_SPEC = """\
models:
  - {name: echo, backend: echo, slots: 64}
  - {name: slow, backend: echo, options: {gap_s: 0.02}}
"""


@pytest.fixture(scope="session")
def cache_dir() -> Path:
    """The folder of the weights. Says how to fill it where they are missing."""
    given = os.environ.get("INFERHUB_TEST_CACHE")
    folder = Path(given) if given else user_cache_path("inferhub", appauthor=False)
    weights = Weights(folder)
    missing = [name for name in weights.defaults if weights.state(name) is not State.PRESENT]
    if missing:
        pytest.fail(f"{missing} are not in {folder}: run `inferhub models pull`", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def upstream_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    arguments = [sys.executable, "-m", "inferhub.testing.upstream", "--port", "0", "--until-eof"]
    folder = tmp_path_factory.mktemp("upstream")
    with Process(arguments, folder, "upstream", environment({})) as process:
        yield process.announcement()["url"]


@pytest.fixture(scope="session", params=SHAPES)
def hub(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    cache_dir: Path,
    upstream_url: str,
) -> Iterator[Hub]:
    """The InferHub that most tests ask; nobody stops it or changes its spec."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = {**SETTINGS, "cache_dir": cache_dir}
    with running_hub(request.param, folder, SPEC.format(upstream=upstream_url), settings) as running:
        yield running


@pytest.fixture(scope="session", params=SHAPES)
def tight_hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream_url: str
) -> Iterator[Hub]:
    """One whose every limit is near."""
    folder = tmp_path_factory.mktemp(f"tight-{request.param}")
    with running_hub(
        request.param, folder, TIGHT_SPEC.format(upstream=upstream_url), TIGHT_SETTINGS
    ) as running:
        yield running


@pytest.fixture(scope="session", params=SHAPES)
def plain_hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """One with default settings, whose keys and spec tests may change."""
    with running_hub(request.param, tmp_path_factory.mktemp(f"plain-{request.param}"), PLAIN_SPEC) as running:
        yield running


@pytest.fixture
def talk(hub: Hub) -> Talk:
    """Raw HTTP to `hub`."""
    return Talk(hub.url, hub.admin_key)


@pytest.fixture
def tight(tight_hub: Hub) -> Talk:
    return Talk(tight_hub.url, tight_hub.admin_key)


@pytest.fixture
async def client(hub: Hub) -> AsyncIterator[AsyncOpenAI]:
    """The official client of `hub`; it does not retry, so that tests see what was answered."""
    async with AsyncOpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0) as openai:
        yield openai


@pytest.fixture
def upstream(upstream_url: str) -> Upstream:
    """The scripted upstream's log. Requests are found by their `x-request-id`."""
    scripted = Upstream()
    scripted.url = upstream_url
    return scripted


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """A failed test shows what its servers said last."""
    outcome = yield
    report = outcome.get_result()
    for hub in getattr(item, "funcargs", {}).values():
        if report.failed and isinstance(hub, Hub):
            for process in hub.processes:
                tail = "\n".join(process.stderr.splitlines()[-40:])
                report.sections.append((f"stderr of {process.name} ({hub.shape})", tail))
