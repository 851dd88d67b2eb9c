"""What cannot be served is refused in words, with a remedy, and loses nothing: ports, files, disks, lengths."""

from __future__ import annotations

import asyncio
import resource
import shutil
import sqlite3
from pathlib import Path

import psutil
import pytest

from inferhub.testing.servers import Hub, Process, fetch, running_hub, start_service
from inferhub.testing.talk import CHAT, COMPLETIONS, Talk, chat_body

ECHO = "models:\n  - {name: echo, backend: echo}\n"
MINILM = "models:\n  - {name: echo, backend: echo}\n  - {name: mini, backend: onnx_embedding, weights: minilm-l6-v2}\n"


def started(tmp_path: Path, spec: str, name: str, **settings: object) -> Process:
    file = tmp_path / f"{name}.yaml"
    file.write_text(spec)
    return start_service("serve", tmp_path, {"spec_file": file, **settings}, name=name)


def refusal(process: Process) -> str:
    """What a server that does not start says. It ends by itself, with 1, and without a traceback."""
    assert process.wait(60) == 1, process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    return process.stderr


def test_two_servers_on_one_port(tmp_path: Path) -> None:
    with running_hub("serve", tmp_path, ECHO) as hub:
        port = hub.url.rpartition(":")[2]
        said = refusal(started(tmp_path, ECHO, "second", port=port, data_dir=tmp_path / "other"))
        assert "port_taken" in said
        assert port in said
        assert f"process {hub.front.pid}" in said, "the holder is named"
        assert fetch(f"{hub.url}/livez")[0] == 200, "and goes on"


def test_a_second_worker_on_one_host(tmp_path: Path) -> None:
    """Its metrics take the next free port; the port that gateways know is not shared."""
    with start_service("worker", tmp_path, {}, name="first") as first:
        said = first.announcement()
        taken = int(said["ops_url"].rpartition(":")[2])
        with start_service("worker", tmp_path, {"metrics_port": taken}, name="second") as second:
            other = second.announcement()["ops_url"]
            assert taken < int(other.rpartition(":")[2]) < taken + 32
            assert fetch(f"{other}/metrics")[0] == fetch(f"{said['ops_url']}/metrics")[0] == 200
            assert str(taken) in second.stderr, "the log says that the port is another one"
        message = refusal(start_service("worker", tmp_path, {"worker_listen": said["url"]}, name="third"))
        assert said["url"] in message
        assert "port_taken" in message


def damaged_cache(cache_dir: Path, tmp_path: Path) -> Path:
    """A cache in which one byte in the middle of the model is another one."""
    shutil.copytree(cache_dir / "weights" / "minilm-l6-v2", tmp_path / "cache" / "weights" / "minilm-l6-v2")
    model = tmp_path / "cache" / "weights" / "minilm-l6-v2" / "model.onnx"
    with model.open("r+b") as file:
        file.seek(10_000_000)
        byte = file.read(1)
        file.seek(10_000_000)
        file.write(bytes([byte[0] ^ 1]))
    return tmp_path / "cache"


def test_a_corrupt_weight_file_is_never_loaded(tmp_path: Path, cache_dir: Path) -> None:
    said = refusal(started(tmp_path, MINILM, "serve", cache_dir=damaged_cache(cache_dir, tmp_path)))
    assert "minilm-l6-v2" in said
    assert "weights_corrupt" in said
    assert "models pull" in said


def test_missing_weights_are_told_with_the_remedy(tmp_path: Path) -> None:
    said = refusal(started(tmp_path, MINILM, "serve", cache_dir=tmp_path / "empty"))
    assert "weights_missing" in said
    assert "inferhub models pull" in said


@pytest.mark.parametrize("content", [b"", b"GGUF" + b"\xff" * 4000])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(content)
    spec = f'models:\n  - {{name: mine, weights: "{file}"}}\n'
    assert "broken.gguf" in refusal(started(tmp_path, spec, "serve"))


async def test_a_corrupt_weight_file_does_not_replace_what_runs(
    tmp_path: Path, cache_dir: Path, plain_hub: Hub
) -> None:
    """The same by `apply`, on a server that serves already."""
    file = tmp_path / "cut.gguf"
    with (cache_dir / "weights" / "smollm2-135m" / "SmolLM2-135M-Instruct.Q4_1.gguf").open("rb") as whole:
        file.write_bytes(whole.read(3_000_000))
    talk = Talk(plain_hub.url, plain_hub.admin_key)
    before = (await talk.get("/admin/v1/spec")).body
    spec = f'models:\n  - {{name: echo, backend: echo}}\n  - {{name: cut, weights: "{file}"}}\n'
    answer = await talk.ask("PUT", "/admin/v1/spec", {}, spec.encode())
    assert answer.status == 400, answer.body
    assert "'cut'" in answer.error["message"]
    assert (await talk.get("/admin/v1/spec")).body == before
    assert (await talk.chat("echo")).status == 200


def test_a_corrupt_catalog_is_told_and_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o700)
    file = tmp_path / "data" / "catalog.db"
    file.write_bytes(b"this was a database once " * 400)
    file.chmod(0o600)
    said = refusal(started(tmp_path, ECHO, "serve"))
    assert "catalog_corrupt" in said
    assert str(file) in said
    assert "backup" in said
    assert file.read_bytes().startswith(b"this was a database"), "nothing was overwritten"


def test_a_torn_page_in_the_catalog_is_found(tmp_path: Path) -> None:
    with started(tmp_path, ECHO, "first") as first:
        first.announcement()
    file = tmp_path / "data" / "catalog.db"
    with sqlite3.connect(file) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    size = file.stat().st_size
    with file.open("r+b") as database:
        database.seek(size // 2)
        database.write(b"\x5a" * (size // 2))
    assert "catalog_corrupt" in refusal(started(tmp_path, ECHO, "second"))


async def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    """The kernel refuses every further byte in a file; afterwards there is room again."""
    with running_hub("serve", tmp_path, ECHO, {"log_level": "error"}) as hub:
        talk = Talk(hub.url, hub.admin_key)
        before = (await talk.get("/admin/v1/spec")).body
        process = psutil.Process(hub.front.pid)
        process.rlimit(psutil.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
        grown = ECHO + "  - {name: more, backend: echo}\n" + "# filler\n" * 3000
        full = await talk.ask("PUT", "/admin/v1/spec", {}, grown.encode())
        assert full.status >= 400
        assert full.error["code"] == "disk_full", full.error
        assert (await talk.get("/admin/v1/spec")).body == before
        assert (await talk.chat("echo")).status == 200
        assert (await talk.chat("more")).status == 404, "what is not stored does not run"
        process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await talk.ask("PUT", "/admin/v1/spec", {}, grown.encode())).status == 200
        assert (await talk.chat("more")).status == 200


@pytest.mark.parametrize(("model", "limit"), [("echo", "4096"), ("smollm2-135m", "8192")])
@pytest.mark.parametrize("stream", [False, True])
async def test_context_overflow_names_both_lengths(talk: Talk, model: str, limit: str, stream: bool) -> None:
    answer = await talk.chat(model, "the " * 9000, stream=stream)
    error = answer.error
    assert (answer.status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    numbers = [
        int(word) for word in error["message"].replace(";", " ").replace(".", " ").split() if word.isdigit()
    ]
    assert int(limit) in numbers
    assert any(9000 <= number < 9100 for number in numbers), error


async def test_context_overflow_of_a_completion(talk: Talk) -> None:
    answer = await talk.post(COMPLETIONS, {"model": "smollm2-135m", "prompt": "the " * 9000})
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "context_length_exceeded",
        "prompt",
    )


async def test_the_server_survives_a_storm_of_bad_requests(talk: Talk) -> None:
    bad: list[bytes] = [
        b"{",
        b"[]",
        b"",
        b'{"model":5}',
        b"\xff",
        b"[" * 5000,
        b'{"model":"none","messages":[1]}',
    ]
    answers = await asyncio.gather(*(talk.post(CHAT, bad[i % len(bad)]) for i in range(200)))
    assert {answer.status for answer in answers} == {400}
    assert (await talk.post(CHAT, chat_body("echo"))).status == 200


def test_a_gateway_without_its_worker_starts_and_says_so(tmp_path: Path) -> None:
    """The worker may come later; until then the gateway is alive and not ready."""
    file = tmp_path / "hub.yaml"
    file.write_text(ECHO)
    with start_service("gateway", tmp_path, {"spec_file": file}, "--worker", "127.0.0.1:9") as gateway:
        url = gateway.announcement()["url"]
        assert fetch(f"{url}/livez")[0] == 200
        assert fetch(f"{url}/readyz")[0] == 503
