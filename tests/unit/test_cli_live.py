"""The command line against a running server: chat (also at a terminal), embed, apply, models, doctor."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferhub.testing.servers import Hub, command, environment, running_hub, start_service

SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: slow, backend: echo, options: {gap_s: 0.05}}
  - {name: z-breaks-late, backend: echo, options: {fail_every: 1, fail_at: 2}}
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("cli"), SPEC) as running:
        yield running


def surroundings(hub: Hub) -> dict[str, str]:
    server = {"OPENAI_BASE_URL": hub.api, "OPENAI_API_KEY": hub.admin_key}
    return environment({"data_dir": hub.data_dir}) | server | {"TERM": "dumb"}


def run(hub: Hub, *arguments: str, stdin: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=hub.folder,
        env=surroundings(hub) | variables,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def run_json(hub: Hub, *arguments: str, stdin: str = "") -> Any:
    done = run(hub, *arguments, "--json", stdin=stdin)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_chat_once(hub: Hub) -> None:
    done = run(hub, "chat", "one two three")
    assert (done.returncode, done.stdout, done.stderr) == (0, "one two three\n", "")


def test_chat_takes_a_pipe_after_the_prompt(hub: Hub) -> None:
    assert run(hub, "chat", "first", stdin="second\n").stdout == "first\n\nsecond\n"
    assert run(hub, "chat", stdin="only this").stdout == "only this\n"
    assert run(hub, "chat").returncode == 1


def test_chat_in_json_is_the_answer_of_the_api(hub: Hub) -> None:
    answer = run_json(hub, "chat", "one two", "--max-tokens", "1", "--system", "be brief")
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 1


def test_chat_shows_no_control_characters_of_the_model(hub: Hub) -> None:
    assert run(hub, "chat", "a\x1b[31mred\x07").stdout == "a[31mred\n"


def test_a_broken_answer_is_a_failure_and_keeps_what_came(hub: Hub) -> None:
    done = run(hub, "chat", "--model", "z-breaks-late", "one two three four")
    assert done.returncode == 4
    assert done.stdout.startswith("one two")
    assert "Error:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "words"),
    [
        (["chat", "x", "--model", "ekho"], {}, 4, "Did you mean 'echo'"),
        (["chat", "x"], {"OPENAI_API_KEY": "ih_wrong"}, 4, "inferhub keys create"),
        (["chat", "x", "--url", "http://127.0.0.1:9"], {}, 3, "inferhub serve"),
        (["embed", "x", "--url", "not an address"], {}, 1, "http://HOST:PORT"),
    ],
)
def test_failures(hub: Hub, arguments: list[str], variables: dict[str, str], code: int, words: str) -> None:
    done = run(hub, *arguments, **variables)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_embed(hub: Hub) -> None:
    assert len(run_json(hub, "embed", "a", "b")["data"]) == 2
    assert len(run_json(hub, "embed", stdin="a\n\nb\nc\n")["data"]) == 3
    shown = run(hub, "embed", "a", "a").stdout
    assert shown.count("1.000") == 2


def test_models_served(hub: Hub) -> None:
    assert {card["id"] for card in run_json(hub, "models", "served")} >= {"echo", "slow"}
    assert "ready" in run(hub, "models", "served").stdout


def test_a_key_works_within_a_second_and_not_after_its_end(hub: Hub) -> None:
    created = run_json(hub, "keys", "create", "bob", "--role", "free")
    assert until(lambda: run(hub, "chat", "hi", OPENAI_API_KEY=created["key"]).returncode == 0)
    refused = run(hub, "apply", "-f", "hub.yaml", OPENAI_API_KEY=created["key"])
    assert refused.returncode == 4
    assert "role admin" in refused.stderr
    run_json(hub, "keys", "revoke", created["id"])
    assert until(lambda: run(hub, "chat", "hi", OPENAI_API_KEY=created["key"]).returncode == 4)


def until(condition: Any, within_s: float = 30) -> bool:
    end_s = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end_s:
            return False
    return True


def test_apply_swaps_and_refuses_as_a_whole(hub: Hub) -> None:
    (hub.folder / "new.yaml").write_text(SPEC + "  - {name: added, backend: echo}\n")
    revision = run_json(hub, "apply", "-f", "new.yaml")["revision"]
    assert "added" in {card["id"] for card in run_json(hub, "models", "served")}
    (hub.folder / "bad.yaml").write_text(
        "models: [{name: ok, backend: echo}, {name: bad, backend: nonsense}]"
    )
    refused = run(hub, "apply", "-f", "bad.yaml")
    assert refused.returncode == 4
    assert "nonsense" in refused.stderr
    assert "ok" not in {card["id"] for card in run_json(hub, "models", "served")}
    assert run(hub, "apply", "-f", "new.yaml", "--if-revision", str(revision + 1)).returncode == 4


def test_doctor_sees_the_running_server(hub: Hub) -> None:
    port = hub.url.rpartition(":")[2]
    done = run(hub, "doctor", "--port", port, "--spec", "hub.yaml", "--json", INFERHUB_MAX_INFLIGHT="1")
    found = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert done.returncode == 0, found
    assert "InferHub" in found["port"]["text"]
    assert found["readiness"]["status"] == "ok"
    assert "echo" in found["key"]["text"]
    assert hub.admin_key not in done.stdout


# --- at a terminal --------------------------------------------------------------------------------


class Terminal:
    """`inferhub …` at a pseudo-terminal, typed into and read as a person does."""

    def __init__(self, hub: Hub, *arguments: str) -> None:
        self.output = ""
        self._unread = ""
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.chdir(hub.folder)
            program = command(*arguments)
            os.execve(program[0], program, surroundings(hub))  # noqa: S606 - the child of the fork

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: str, within_s: float = 60) -> None:
        """Read until `text` appears after what was waited for before."""
        os.set_blocking(self._terminal, False)
        end_s = time.monotonic() + within_s
        while text not in self._unread:
            assert time.monotonic() < end_s, f"no {text!r} in {self.output + self._unread!r}"
            try:
                self._unread += os.read(self._terminal, 4096).decode(errors="replace")
            except BlockingIOError:
                time.sleep(0.01)
            except OSError as error:
                raise AssertionError(f"ended without {text!r}: {self.output + self._unread!r}") from error
        before, found, self._unread = self._unread.partition(text)
        self.output += before + found

    def exit_code(self) -> int:
        os.set_blocking(self._terminal, False)
        while True:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self._terminal)
                return os.waitstatus_to_exitcode(status)
            try:
                self.output += os.read(self._terminal, 4096).decode(errors="replace")
            except (BlockingIOError, OSError):
                time.sleep(0.01)


CTRL_C, CTRL_D = "\x03", "\x04"


@pytest.mark.skipif(sys.platform != "linux", reason="pseudo-terminals differ")
def test_ctrl_c_stops_the_answer_and_not_the_conversation(hub: Hub) -> None:
    terminal = Terminal(hub, "chat", "--model", "slow")
    terminal.wait_for("> ")
    terminal.type("alpha " * 400 + "\n")
    terminal.wait_for("alpha alpha")
    terminal.wait_for("alpha")
    terminal.type(CTRL_C)
    terminal.wait_for("[stopped]")
    terminal.wait_for("> ")
    terminal.type("beta\n")
    terminal.wait_for("beta")
    terminal.wait_for("beta")  # the first is what was typed
    terminal.wait_for("> ")
    terminal.type(CTRL_C)
    terminal.wait_for("> ")
    terminal.type("/clear\n")
    terminal.wait_for("> ")
    terminal.type(CTRL_D)
    assert terminal.exit_code() == 0
    assert until(lambda: not running(hub, "slow"))


def running(hub: Hub, model: str) -> int:
    workers = hub.get("/admin/v1/workers")["data"]
    return sum(m["running"] for worker in workers for m in worker["models"] if m["name"] == model)


def test_ctrl_c_ends_one_answer_with_130(hub: Hub) -> None:
    terminal = Terminal(hub, "chat", "--model", "slow", "alpha " * 400)
    terminal.wait_for("alpha alpha")
    terminal.type(CTRL_C)
    assert terminal.exit_code() == 130
    assert "Traceback" not in terminal.output
    assert until(lambda: not running(hub, "slow"))


# --- serve itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "hub.yaml").write_text("models: [{name: echo, backend: echo}]")
    with start_service("serve", tmp_path, {"spec_file": tmp_path / "hub.yaml"}) as process:
        said = process.announcement()
        assert said["admin_key"].startswith("ih_")
        assert said["models"] == ["echo"]
        process.send(number)
        assert process.wait() == 0
        assert said["admin_key"] not in process.stderr
    with start_service("serve", tmp_path, {"spec_file": tmp_path / "hub.yaml"}) as again:
        assert again.announcement()["admin_key"] is None


def test_two_servers_on_one_port(hub: Hub, tmp_path: Path) -> None:
    port = hub.url.rpartition(":")[2]
    done = subprocess.run(
        command("serve", "--port", port, "--metrics-port", "0", "--data-dir", str(tmp_path / "data")),
        cwd=tmp_path,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    assert f"process {hub.front.pid}" in done.stderr
    assert "--port" in done.stderr


def test_serve_for_people_prints_a_banner(tmp_path: Path) -> None:
    (tmp_path / "hub.yaml").write_text("models: [{name: echo, backend: echo}]")
    env = environment({"data_dir": tmp_path / "data", "metrics_port": 0, "port": 0})
    with subprocess.Popen(
        command("serve", "--spec", "hub.yaml"), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        lines = []
        while not any("Ctrl-C" in line for line in lines):
            line = process.stdout.readline()
            assert line, lines
            lines.append(line)
        process.send_signal(signal.SIGINT)
    text = "".join(lines)
    assert lines[0] == "Loading echo\n"
    assert "serves echo" in text
    assert text.count("ih_") == 4, "once alone, and once in each of the three lines to copy"
    assert "\x1b" not in text


def test_a_start_that_fails_does_not_use_up_the_first_key(tmp_path: Path) -> None:
    env = environment({"data_dir": tmp_path / "data", "cache_dir": tmp_path, "metrics_port": 0, "port": 0})
    failed = subprocess.run(
        command("serve"), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert failed.returncode == 1
    assert "inferhub models pull" in failed.stderr
    (tmp_path / "hub.yaml").write_text("models: [{name: echo, backend: echo}]")
    with start_service("serve", tmp_path, {"spec_file": tmp_path / "hub.yaml"}) as process:
        assert process.announcement()["admin_key"]
