"""The semantic cache through the whole program: the setting reaches the ring, and the guard stays on."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferhub.testing.servers import SHAPES, Shape, running_hub
from inferhub.testing.talk import CHAT, Talk

SPEC = """\
models:
  - {name: echo, backend: echo}
  - {name: minilm-l6-v2, backend: onnx_embedding, weights: minilm-l6-v2}
"""


async def ask(talk: Talk, text: str) -> tuple[int, str | None]:
    body = {"model": "echo", "messages": [{"role": "user", "content": text}]}
    answer = await talk.ask("POST", CHAT, {"x-inferhub-cache": "semantic"}, body)
    return answer.status, answer.head["x-inferhub-cache"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_question_in_other_words_is_answered_from_the_cache(
    shape: Shape, tmp_path: Path, cache_dir: Path
) -> None:
    settings = {"cache_dir": cache_dir, "semantic_cache_model": "minilm-l6-v2"}
    with running_hub(shape, tmp_path, SPEC, settings) as hub:
        talk = Talk(hub.url, hub.admin_key)
        assert await ask(talk, "What is the capital city of France?") == (200, "miss")
        assert await ask(talk, "Which city is the capital of France?") == (200, "hit")
        assert await ask(talk, "Which city is the capital of Spain?") == (200, "miss")


async def test_without_the_setting_it_is_refused(tmp_path: Path) -> None:
    with running_hub("serve", tmp_path, "models:\n  - {name: echo, backend: echo}\n") as hub:
        status, _ = await ask(Talk(hub.url, hub.admin_key), "Hello?")
        assert status == 400
