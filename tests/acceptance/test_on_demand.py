"""Models on demand in running services: offered at once, loaded by a call, and gone when others need the room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from inferhub.testing.servers import Hub, fetch, run_command, running_hub, start_service, wait_for

DATA = Path(__file__).parents[1] / "data"
SPEC = """
models:
  - {name: ears, backend: whisper, weights: whisper-tiny.en, options: {speakers: ""}}
  - {name: voice, backend: kokoro, weights: kokoro-82m}
  - {name: small, backend: echo}
routes:
  - {name: whisper-1, model: ears}
  - {name: tts-1, model: voice}
"""
ONE_MODEL_BYTES = 256 * 1024**2
"""The least that the setting takes: the two are measured at 110 and 180 MB before their first call."""


@pytest.fixture(scope="module", params=["serve", "split"])
def tight(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> Iterator[Hub]:
    settings = {"cache_dir": cache_dir, "memory_budget_bytes": ONE_MODEL_BYTES, "worker_refresh_s": 0.1}
    with running_hub(request.param, tmp_path_factory.mktemp("tight"), SPEC, settings) as hub:
        yield hub


def state(hub: Hub, name: str) -> dict[str, Any]:
    detail: dict[str, Any] = hub.get(f"/v1/models/{name}")["inferhub"]
    return detail


def told(hub: Hub, loaded: dict[str, bool]) -> bool:
    return all(state(hub, name)["loaded"] is is_loaded for name, is_loaded in loaded.items())


async def test_models_come_and_go_as_they_are_called(tight: Hub) -> None:
    ready = state(tight, "voice")
    assert (ready["ready"], ready["load"], ready["loaded"], ready["memory_bytes"]) == (
        True,
        "demand",
        False,
        0,
    )
    assert [c["modality"] for c in ready["capabilities"]] == ["speech"]
    assert state(tight, "small")["load"] == "start"
    async with AsyncOpenAI(base_url=tight.api, api_key=tight.admin_key, max_retries=0) as client:
        for day in ("Monday", "Friday"):  # the same again would be answered from the cache
            sound = await client.audio.speech.create(
                model="tts-1", voice="alloy", input=f"Good morning, it is {day}.", response_format="wav"
            )
            assert sound.content[:4] == b"RIFF"
            wait_for(lambda: told(tight, {"voice": True, "ears": False}), 30, "the voice to be told")
            assert state(tight, "voice")["memory_bytes"] > 50_000_000
            heard = await client.audio.transcriptions.create(
                model="whisper-1", file=("speech.wav", sound.content, "audio/wav")
            )
            assert "good morning" in heard.text.lower()
            wait_for(lambda: told(tight, {"voice": False, "ears": True}), 30, "the voice to leave")
    (worker,) = [
        w for w in tight.get("/admin/v1/workers")["data"] if any(m["name"] == "ears" for m in w["models"])
    ]
    ears = next(model for model in worker["models"] if model["name"] == "ears")
    assert (ears["load"], ears["loaded"], ears["ready"]) == ("demand", True, True)
    assert "stream" in ears["modalities"]["transcription"]


def test_metrics_tell_what_is_in_memory(tight: Hub) -> None:
    worker = tight.processes[-1]
    ops = worker.announcement()["ops_url"]
    text = fetch(f"{ops}/metrics")[1].decode()
    assert 'inferhub_model_loaded{model="small"} 1.0' in text
    assert 'inferhub_model_loaded{model="voice"} ' in text
    assert 'inferhub_model_memory_bytes{model="ears"} ' in text


def test_the_cli_shows_it(tight: Hub) -> None:
    done = run_command("models", "served", "--url", tight.url, "--key", tight.admin_key)
    assert done.exit_code == 0
    line = next(line for line in done.stdout.splitlines() if line.startswith("voice"))
    assert "speech" in line
    assert "on demand" in line or "ready" in line


@pytest.mark.parametrize("verb", ["serve", "worker"])
def test_an_unknown_modality_is_refused_with_the_list(verb: str, tmp_path: Path) -> None:
    with start_service(verb, tmp_path, {}, "--modalities", "chat,speach") as service:
        assert service.wait() != 0
    assert "There is no modality 'speach'; there are:" in service.stderr
    assert "transcription" in service.stderr


async def test_only_wanted_modalities_are_served(tmp_path: Path, cache_dir: Path) -> None:
    settings = {"cache_dir": cache_dir, "modalities": "tts"}
    spec = SPEC.replace("  - {name: small, backend: echo}\n", "")
    with running_hub("serve", tmp_path, spec, settings) as hub:
        assert hub.models == ("tts-1", "voice")
        async with AsyncOpenAI(base_url=hub.api, api_key=hub.admin_key, max_retries=0) as client:
            recording = ("nell.wav", (DATA / "endgame_nagg_nell.wav").read_bytes(), "audio/wav")
            with pytest.raises(NotFoundError):
                await client.audio.transcriptions.create(model="whisper-1", file=recording)


async def test_a_worker_for_some_modalities_declines_the_others(tmp_path: Path, cache_dir: Path) -> None:
    """The gateway knows all models; this worker takes what it is for, and the gateway does not insist."""
    settings = {"cache_dir": cache_dir, "worker_refresh_s": 0.1}
    worker_folder, gateway_folder = tmp_path / "worker", tmp_path / "gateway"
    worker_folder.mkdir()
    gateway_folder.mkdir()
    spec = gateway_folder / "hub.yaml"
    spec.write_text(SPEC, encoding="utf-8")
    with start_service("worker", worker_folder, {**settings, "modalities": "chat"}) as worker:
        target = worker.announcement()["url"]
        given = {**settings, "spec_file": spec}
        with start_service("gateway", gateway_folder, given, "--worker", target) as gateway:
            said = gateway.announcement()
            async with AsyncOpenAI(
                base_url=f"{said['url']}/v1", api_key=said["admin_key"], max_retries=0
            ) as client:
                answer = await client.chat.completions.create(
                    model="small", messages=[{"role": "user", "content": "one two"}]
                )
                assert answer.choices[0].message.content == "one two"
                with pytest.raises(BadRequestError, match="does not answer /v1/embeddings"):
                    await client.embeddings.create(model="small", input="a")
                models = {
                    model.id: model.model_extra["inferhub"] for model in (await client.models.list()).data
                }  # type: ignore[index]
                assert [c["modality"] for c in models["small"]["capabilities"]] == [
                    "chat",
                    "completion",
                    "token_count",
                ]
                assert (models["voice"]["ready"], models["voice"]["endpoints"]) == (False, 0)
            assert "waits for its first call" not in worker.stderr
