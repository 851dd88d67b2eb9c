"""The README as a newcomer meets it: every block that can be run is run, top to bottom, on a real server.

Blocks that go on running (a server) are started, waited for and stopped at the end; each is named in
`SERVERS`. A block that nobody knows how to run is a failure, so that none is left out in silence.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from platformdirs import user_cache_path

from inferhub.hosting import check_model
from inferhub.settings.spec import load_spec
from inferhub.testing.servers import Process, environment, wait_for

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))

SERVERS = ("make serve", "inferhub serve --model", "inferhub worker", "inferhub gateway")
"""First words of blocks that end with Ctrl-C."""
MAY_FIND_PROBLEMS = "inferhub doctor"
"""Its exit code speaks of this machine, not of the README."""
VENDOR_KEYS = ("ANTHROPIC_API_KEY", "GEMINI_API_KEY", "GROQ_API_KEY", "HOUSE_API_KEY")
"""What the README tells to set before its models of other providers are served."""


@dataclass
class Newcomer:
    """Somebody who follows the README: two terminals, and what the server printed in the first."""

    folder: Path
    env: dict[str, str]
    ports: dict[str, str]
    """Port in the README → a free one of this machine."""
    servers: list[Process]

    def localized(self, text: str) -> str:
        """The block with this machine's ports, key and model file in place of the README's."""
        for written, real in self.ports.items():
            text = re.sub(rf"(?<=[: ]){written}\b", real, text)
        weights = f"{self.env['INFERHUB_CACHE_DIR']}/weights/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"
        return text.replace("~/models/my-model.gguf", weights)

    def start(self, block: str) -> str:
        """Run a block that goes on until Ctrl-C; what it printed until it was ready."""
        line = self.localized(block.strip())
        name = f"server-{len(self.servers)}"
        if line.startswith("make"):
            # This test's own environment stands in for the one that make would make; CI has just made it.
            line = f"{line} -C {ROOT} --old-file .venv/.runtime --no-print-directory PY={sys.executable}"
        process = Process(["bash", "-c", f"exec {line}"], self.folder, name, self.env)
        self.servers.append(process)

        def printed() -> str | None:
            assert process.exit_code is None, f"{line}: {process.stdout}{process.stderr}"
            # The last line of a banner.
            return (
                process.stdout
                if re.search(r"^(Ctrl-C stops it|  inferhub gateway)", process.stdout, re.M)
                else None
            )

        return wait_for(printed, TIMEOUT_S, line)

    def type(self, block: str) -> str:
        """Run a block in the second terminal."""
        return self._run(["bash", "-euo", "pipefail", "-c", self.localized(block)])

    def python(self, block: str) -> str:
        return self._run([sys.executable, "-c", block])

    def _run(self, arguments: list[str]) -> str:
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        allowed = {0, 1} if MAY_FIND_PROBLEMS in arguments[-1] else {0}
        assert done.returncode in allowed, f"{arguments[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout


def free_port() -> str:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    ports = {written: free_port() for written in ("8000", "8001", "8002", "50051")}
    cache = os.environ.get("INFERHUB_TEST_CACHE") or str(user_cache_path("inferhub", appauthor=False))
    settings = {
        "data_dir": tmp_path / "data",
        "cache_dir": cache,
        "port": ports["8000"],
        "metrics_port": free_port(),
    }
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # `make test` runs this test, and hands its own flags and variables down to every make inside.
    outside = {k: v for k, v in environment(settings).items() if not k.startswith(("MAKE", "MFLAGS", "ARGS"))}
    somebody = Newcomer(tmp_path, outside | {"PATH": binaries}, ports, [])
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    yield somebody
    for process in reversed(somebody.servers):
        if process.exit_code is None:
            process.send(signal.SIGINT)
    for process in reversed(somebody.servers):
        process.stop()


@pytest.mark.timeout(600)
def test_every_block_of_the_readme_runs(newcomer: Newcomer) -> None:
    printed: dict[str, str] = {}
    for language, block in BLOCKS:
        first = block.strip().splitlines()[0]
        if language == "yaml":
            load_spec(block, env=dict.fromkeys(VENDOR_KEYS, "sk-x"), check_model=check_model)
        elif language == "python":
            printed[block] = newcomer.python(block)
        elif language != "bash":
            pytest.fail(f"Nobody knows how to run this block of {language}: {first}")
        elif first.startswith(SERVERS):
            printed[block] = newcomer.start(block)
        elif "OPENAI_API_KEY=ih_..." in block:
            newcomer.env |= exports_of(block, printed["make serve\n"], newcomer)
        elif "curl" in first and not shutil.which("curl"):
            pytest.fail("The README uses curl; install it to test the README.")
        else:
            printed[block] = newcomer.type(block)
    check_what_was_said(printed)


def exports_of(block: str, banner: str, newcomer: Newcomer) -> dict[str, str]:
    """The variables after this block, with the key that the server printed where the README has dots."""
    key = re.search(r"shown only now: (ih_\w+)", banner)
    assert key, banner
    script = newcomer.localized(block).replace("ih_...", key[1]) + 'echo "$OPENAI_BASE_URL $OPENAI_API_KEY"'
    url, typed = newcomer.type(script).split()
    assert f"export OPENAI_BASE_URL={url} OPENAI_API_KEY={typed}" in banner
    return {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": typed}


def check_what_was_said(printed: dict[str, str]) -> None:
    """Not what a small model says, but that each block did what the README says of it."""

    def output(part: str) -> str:
        [found] = [text for block, text in printed.items() if part in block]
        return found

    assert output("capital of France").strip()
    assert '"chat.completion"' in output("/chat/completions")
    assert '"end_turn"' in output("/messages") or '"max_tokens"' in output("/messages")
    assert output("responses.create").strip()
    assert re.search(r"\d+ tokens", output("include_usage"))
    assert re.search(r'\{\s*"city".*"people"', output("json_schema"), re.DOTALL)
    alike = [float(line.split()[-1]) for line in output("embeddings.create").splitlines()]
    assert alike[0] > alike[1] + 0.1
    applied = output("hub.yaml --dry-run")
    assert "hub.yaml is right" in applied
    assert "Revision 1 is in force" in applied
    assert "assistant" in applied
    assert "alice" in output("keys revoke")
    assert "is revoked" in output("keys revoke")
    assert "env INFERHUB_PORT" in output("config explain port")
    assert "found." in output("inferhub doctor")


def test_no_block_was_overlooked() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(BLOCKS) == text.count("```") // 2
    started = [block for language, block in BLOCKS if language == "bash" and block.startswith(SERVERS)]
    assert len(started) == len(SERVERS)
