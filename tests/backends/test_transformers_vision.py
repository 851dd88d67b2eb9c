"""The transformers backend on a tiny random LLaVA, made here: pictures, streams, stops, cancel, and what is not loaded.

What it says is noise; that it is said by the real library is what is tested. Needs the extra `diffusion`.
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.backends.transformers_vision.backend import TransformersVision
from inferhub.core.call import Call, Delta
from inferhub.core.errors import ContextOverflow, Invalid, SetupError
from inferhub.core.models import ModelSpec
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
    # The library's own.
    pytest.mark.filterwarnings(
        "default::FutureWarning", "default::DeprecationWarning", "default::UserWarning"
    ),
]

SAMPLES = Path(__file__).parents[1] / "data"
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)
PATCHES = (28 // 14) ** 2


def make_model(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    words = ["<unk>", "<pad>", "</s>", "<image>", *(f"word{n}" for n in range(60))]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    seeing = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
        patch_size=14, projection_dim=16,
    )  # fmt: skip
    speaking = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=4096, pad_token_id=1, bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(vision_config=seeing, text_config=speaking, image_token_index=3)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        image_processor=images, tokenizer=fast, patch_size=14, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE, image_token="<image>",
    ).save_pretrained(folder)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llava")
    make_model(path)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def seeing(folder: Path) -> AsyncIterator[TransformersVision]:
    backend = TransformersVision(ModelSpec("seeing", "transformers_vision", device="cpu"), folder)
    await backend.load()
    yield backend
    await backend.unload()


def data_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


COFFEE, CAT = ((SAMPLES / name).read_bytes() for name in ("coffee.png", "chelsea.png"))


def about(*urls: str, text: str = "word1 word2", **params: Any) -> Call:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
    return make_call("chat", messages=messages, **{"temperature": 0, "max_tokens": 12} | params)


async def test_it_sees_and_streams(seeing: TransformersVision) -> None:
    [chat] = seeing.capabilities
    assert (chat.modality, chat.context_tokens) == ("chat", 4096)
    assert {"vision", "stream"} <= chat.features
    without = await finish(seeing, about())
    one = await finish(seeing, about(data_url(COFFEE)))
    assert one.usage.input_tokens == without.usage.input_tokens + PATCHES
    assert (one.usage.images, one.usage.pixels) == (1, 600 * 400)
    assert 0 < one.usage.output_tokens <= 12
    assert sum(bool(delta.content) for delta in one.payloads) > 1


async def test_two_pictures_are_more_than_one(seeing: TransformersVision) -> None:
    two = await finish(seeing, about(data_url(COFFEE), data_url(CAT)))
    assert two.usage.images == 2
    assert two.usage.input_tokens == (await finish(seeing, about())).usage.input_tokens + 2 * PATCHES


async def test_seeds_repeat_and_limits_cut(seeing: TransformersVision) -> None:
    def call(seed: int) -> Call:
        return about(data_url(CAT), temperature=1.5, seed=seed, max_tokens=20)

    one, same = await finish(seeing, call(1)), await finish(seeing, call(1))
    assert one.text() == same.text()
    assert len({(await finish(seeing, call(seed))).text() for seed in range(4)}) > 1
    short = await finish(seeing, about(data_url(CAT), max_tokens=1))
    assert (short.usage.output_tokens, short.payloads[-1].finish_reason) == (1, "length")


async def test_a_stop_sequence_ends_the_answer_and_is_not_said(seeing: TransformersVision) -> None:
    whole = (await finish(seeing, about(data_url(CAT)))).text()
    words = whole.split()
    stop = words[2]
    cut = await finish(seeing, about(data_url(CAT), stop=[stop]))
    assert cut.text() == whole[: whole.index(stop)]
    assert (cut.payloads[-1].finish_reason, cut.payloads[-1].stop_sequence) == ("stop", stop)


async def test_a_cancel_frees_it_within_a_second(seeing: TransformersVision) -> None:
    async with aclosing(seeing.run(about(data_url(CAT), max_tokens=4000))) as answer:
        assert isinstance(await anext(answer), Delta)
    begin = time.monotonic()
    await finish(seeing, about(max_tokens=1))
    assert time.monotonic() - begin < 5


async def test_more_than_the_context_is_refused(seeing: TransformersVision) -> None:
    with pytest.raises(ContextOverflow) as caught:
        await finish(seeing, about(text="word1 " * 5000))
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/a.png", data_url(b"PK\x03\x04" + bytes(99)), data_url(COFFEE[:999])]
)
async def test_what_is_no_picture_is_refused(seeing: TransformersVision, url: str) -> None:
    with pytest.raises(Invalid) as caught:
        await finish(seeing, about(url))
    assert caught.value.param == "messages[0].content[0].image_url.url"


async def test_neither_code_nor_pickles_are_loaded(folder: Path, tmp_path: Path) -> None:
    coded = tmp_path / "coded"
    shutil.copytree(folder, coded)
    config = json.loads((coded / "config.json").read_text())
    (coded / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "evil.Model"}}))
    pickled = tmp_path / "pickled"
    shutil.copytree(folder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / "model.safetensors").write_bytes(b"no tensors")
    for path, match in (
        (coded, "its own code"),
        (pickled, "safetensors"),
        (broken, "check that it is whole"),
        (None, "folder"),
    ):
        with pytest.raises(SetupError, match=match):
            await TransformersVision(ModelSpec("m", "transformers_vision", device="cpu"), path).load()
