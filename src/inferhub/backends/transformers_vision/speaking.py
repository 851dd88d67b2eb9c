"""The loaded model, one answer at a time, in the backend's thread. The border to torch and transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferhub.backends.pictures import Canvas
from inferhub.backends.transformers_vision.asking import Conversation
from inferhub.core.errors import ContextOverflow, Invalid, SetupError

_UNFINISHED = "\ufffd"
"""What the tokenizer says of a character whose other bytes are still to come."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How an answer is made."""

    max_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int | None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    text: str


@dataclass(frozen=True, slots=True)
class Ended:
    input_tokens: int
    output_tokens: int
    is_cut: bool
    """By the limit of tokens."""
    stopped_by: str | None = None


Say = Callable[[Any], None]


class Speaker:
    """Made, and used, in one thread."""

    def __init__(self, folder: Path, *, device: str, dtype: str, threads: int) -> None:
        """Raises `SetupError`."""
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise SetupError(
                f"The package {error.name!r} is missing: install torch and `inferhub[diffusion]`.",
                param="backend",
            ) from error
        torch.set_num_threads(threads)
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        safe: Any = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = AutoProcessor.from_pretrained(str(folder), **safe)
            model: Any = AutoModelForImageTextToText.from_pretrained(
                str(folder),
                use_safetensors=True,
                dtype=getattr(torch, dtype),
                **safe,
            )
        except Exception as error:  # the libraries' exceptions share no base class
            raise SetupError(
                f"transformers cannot load {folder} as a model for pictures; check that it is whole.",
                param="weights",
            ) from error
        self._model = model.to(device).eval()
        self._device = device
        self._tokenizer: Any = getattr(self._processor, "tokenizer", self._processor)
        text = self._model.config.get_text_config()
        self.context_tokens: int | None = getattr(text, "max_position_embeddings", None)

    def answer(self, asked: Conversation, pictures: Sequence[Canvas], manner: Manner, say: Say) -> None:
        """Says `Piece`s, then `Ended`."""
        import torch

        inputs = self._inputs(asked, pictures)
        prompt = int(inputs["input_ids"].shape[-1])
        room = manner.max_tokens
        if self.context_tokens is not None:
            room = min(room, self.context_tokens - prompt)
        if room < 1:
            raise ContextOverflow(
                f"'messages' has {prompt} tokens; the context of this model is {self.context_tokens} tokens.",
                param="messages",
            )
        if manner.seed is not None:
            torch.manual_seed(manner.seed)
        tongue = _Tongue(self._tokenizer, manner.stop, say)
        settings = _sampling(manner, room)
        with torch.inference_mode():
            self._model.generate(**inputs, **settings, streamer=tongue, stopping_criteria=[tongue.is_done])
        tongue.finish()
        is_cut = tongue.count >= room and tongue.stopped_by is None and not tongue.has_ended
        say(Ended(prompt, tongue.count, is_cut, tongue.stopped_by))

    def _inputs(self, asked: Conversation, pictures: Sequence[Canvas]) -> Any:
        from PIL import Image

        images = [Image.fromarray(picture.colours) for picture in pictures]
        given: dict[str, Any] = {"images": images} if images else {}
        if getattr(self._processor, "chat_template", None):
            is_going_on = bool(asked.messages) and asked.messages[-1]["role"] == "assistant"
            try:
                text = self._processor.apply_chat_template(
                    list(asked.messages),
                    tokenize=False,
                    add_generation_prompt=not is_going_on,
                    continue_final_message=is_going_on,
                )
            except Exception as error:  # a template says in its own words what it does not like
                raise Invalid("The model's chat template refuses 'messages'.", param="messages") from error
        else:
            text = asked.bare
        return self._processor(text=[text], return_tensors="pt", **given).to(self._device, self._model.dtype)


class _Tongue:
    """What `generate` calls with each token; stops it once nobody listens, or at a stop sequence."""

    def __init__(self, tokenizer: Any, stop: tuple[str, ...], say: Say) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._say = say
        self._ids: list[int] = []
        self._said = 0
        self._is_prompt = True
        self.count = 0
        self.stopped_by: str | None = None
        self.has_ended = False

    def put(self, value: Any) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        token = int(value.reshape(-1)[0])
        self.count += 1
        self._ids.append(token)
        self.has_ended = token == self._tokenizer.eos_token_id
        self._speak(is_last=False)

    def end(self) -> None:
        """Part of what `generate` expects; `finish` comes after it."""

    def finish(self) -> None:
        if self.stopped_by is None:
            self._speak(is_last=True)

    def is_done(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        return torch.full((input_ids.shape[0],), self.stopped_by is not None, device=input_ids.device)

    def _speak(self, *, is_last: bool) -> None:
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        for stop in self._stop:
            at = text.find(stop)
            if at >= 0:
                text, self.stopped_by = text[:at], stop
        until = len(text) if is_last or self.stopped_by is not None else self._sure(text)
        # Said even where it is empty: whoever listens no more makes it raise.
        self._say(Piece(text[self._said : until]))
        self._said = max(self._said, until)

    def _sure(self, text: str) -> int:
        """Up to where the text will not change, nor turn out to be the beginning of a stop sequence."""
        if text.endswith(_UNFINISHED):
            return self._said
        longest = max(
            (n for stop in self._stop for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
        )
        return max(self._said, len(text) - longest)


def _sampling(manner: Manner, room: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_new_tokens": room, "do_sample": manner.temperature > 0, "num_beams": 1}
    if manner.temperature > 0:
        settings["temperature"] = manner.temperature
        settings |= {n: v for n, v in (("top_p", manner.top_p), ("top_k", manner.top_k)) if v is not None}
    return settings
