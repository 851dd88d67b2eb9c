"""The backend itself: options, loading, capabilities, and one `run` per call. Loaded by the worker's host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, ClassVar, Literal, cast

import msgspec
from msgspec import Meta

from inferhub.backends.base import Backend, check_options
from inferhub.backends.whisper.diarize import Diarizer
from inferhub.backends.whisper.engine import Engine, Hints
from inferhub.backends.whisper.live import Equipment, listen
from inferhub.backends.whisper.recording import Recorder
from inferhub.backends.whisper.vad import VoiceDetector
from inferhub.backends.whisper.voices import SessionVoices
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import Invalid, SetupError, Unsupported
from inferhub.core.models import Capability, Load, ModelSpec
from inferhub.media import MediaLimits, MediaPool
from inferhub.modalities.transcription import TranscriptionRequest, wants_speakers, wants_words
from inferhub.modalities.transcription.languages import NAMES, code_of
from inferhub.telemetry.resources import choose_device, default_threads

_FILES = ("model.bin", "config.json", "tokenizer.json")
_ALWAYS = frozenset({"stream", "word_timestamps", "live"})


class WhisperOptions(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Defaults fit the base and tiny models on two cores."""

    beam_size: Annotated[int, Meta(ge=1, le=10)] = 5
    """Hypotheses that are followed at once. 1 is a sixth quicker, and mistakes more words."""
    threads: Annotated[int, Meta(ge=1)] | None = None
    """Of each worker. Half the cores, because the other half serves the requests."""
    workers: Annotated[int, Meta(ge=1, le=16)] = 2
    """Recordings that are worked on at the same moment; more take turns, half a minute of sound at a time."""
    compute_type: Literal["int8", "int8_float32", "int8_float16", "float16", "float32"] = "int8"
    speakers: str = "d-vector"
    """Weights of the speaker embedder; an empty string leaves diarisation out."""
    speaker_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Voices less alike than this are two speakers, where the client does not say how many there are."""
    english_only: bool | None = None
    """Whether the model knows English only. Left out, its name says so: `….en`."""
    language: str | None = None
    """What is assumed where the client says nothing; left out, it is found out."""
    max_duration_s: Annotated[float, Meta(gt=0, le=86_400)] = 7200.0
    """Of one recording."""


class Whisper(Backend):
    """One Whisper model in CTranslate2."""

    Options = WhisperOptions
    isolated = True
    needs_weights = True
    further_weights = ("speakers",)
    default_load: ClassVar[Load] = "demand"
    default_slots = 8  # someone who speaks live takes one for as long as they speak

    capabilities: tuple[Capability, ...] = ()

    @classmethod
    def offers(cls, spec: ModelSpec) -> tuple[Capability, ...]:
        options = cast("WhisperOptions", check_options(cls, spec))
        is_english = options.english_only
        if is_english is None:
            is_english = Path(spec.weights or "").name.removesuffix("-int8").endswith(".en")
        _check_language(options, spec, is_english=is_english)
        features = _ALWAYS
        if not is_english:
            features |= {"translate"}
        if options.speakers:
            features |= {"diarize"}
        return (Capability("transcription", features),)

    async def load(self) -> None:
        options = self._options = cast("WhisperOptions", check_options(type(self), self.spec))
        folder = self._folder()
        self.device = self._choose_device()
        self._engine = await asyncio.to_thread(
            Engine,
            folder,
            workers=options.workers,
            threads=options.threads or default_threads(),
            compute_type=options.compute_type,
            device=self.device,
        )
        try:
            self._detector = await asyncio.to_thread(VoiceDetector)
            self._diarizer: Diarizer | None = None
            if options.speakers:
                path = Path(options.speakers)
                self._diarizer = await asyncio.to_thread(Diarizer, path, options.speaker_threshold)
            self.capabilities = self.offers(self.spec)
            self._check_kind()
        except BaseException:
            await asyncio.to_thread(self._engine.close)
            raise
        self._media = MediaPool(MediaLimits(duration_s=options.max_duration_s))
        self._recorder = Recorder(self._engine, self._detector, self._diarizer, self._media)

    async def run(self, call: Call) -> AsyncIterator[Delta | Finished]:
        request = call.request
        if not isinstance(request, TranscriptionRequest):
            raise Unsupported(f"Whisper cannot answer a call of modality {call.modality!r}.")
        hints = self._hints(request)
        answers: AsyncGenerator[Delta | Finished, None]
        if call.incoming is not None:
            voices = None
            if wants_speakers(request) and self._diarizer is not None:
                voices = SessionVoices(self._engine, self._diarizer, request.num_speakers)
            equipment = Equipment(self._engine, self._detector, self._media)
            answers = listen(call, equipment, hints, voices)
        elif call.media:
            answers = self._recorder.transcribe(request, call.media[0], hints)
        else:
            raise Invalid("'file' is required: the recording.", param="file")
        async with aclosing(answers) as items:
            async for item in items:
                yield item

    async def unload(self) -> None:
        await self._media.close()
        await asyncio.to_thread(self._engine.close)

    def _hints(self, request: TranscriptionRequest) -> Hints:
        language = self._options.language
        if request.language:
            language = code_of(request.language, self._engine.languages)
        return Hints(
            language=language,
            task=request.task,
            prompt=request.prompt or "",
            beam=self._options.beam_size,
            words=wants_words(request) or wants_speakers(request),
            temperature=request.temperature,
        )

    def _folder(self) -> Path:
        folder = self.weights
        missing = [n for n in _FILES if folder is None or not (folder / n).is_file()]
        if folder is None or missing:
            raise SetupError(
                f"Model {self.spec.name!r} needs a folder with a CTranslate2 Whisper model; {folder} has no "
                f"{' and no '.join(repr(name) for name in missing)}.",
                param="weights",
            )
        return folder

    def _choose_device(self) -> str:
        import ctranslate2

        if self.spec.device == "cpu" or (
            self.spec.device == "auto" and not ctranslate2.get_cuda_device_count()
        ):
            return "cpu"
        return choose_device(self.spec.device)

    def _check_kind(self) -> None:
        """What was said of the model before it was loaded must be true."""
        features = self.capabilities[0].features
        if self._engine.is_multilingual != ("translate" in features):
            what = "knows many languages" if self._engine.is_multilingual else "knows English only"
            value = "false" if self._engine.is_multilingual else "true"
            raise SetupError(
                f"Model {self.spec.name!r} {what}: set its option 'english_only' to {value}.", param="options"
            )


def _check_language(options: WhisperOptions, spec: ModelSpec, *, is_english: bool) -> None:
    known = {"en"} if is_english else NAMES
    if options.language is not None and options.language not in known:
        raise SetupError(
            f"Model {spec.name!r}: option 'language' is {options.language!r}; this model knows "
            f"{', '.join(sorted(known))}.",
            param="options",
        )
