"""The pipelines of one model: they share its weights. Called by `backend` in its one thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from inferhub.backends.pictures import as_pixels
from inferhub.core.errors import SetupError

if TYPE_CHECKING:
    from inferhub.backends.pictures import Pixels

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
OnStep = Callable[[int, int, Callable[[], "Pixels"]], None]
"""(steps done, of how many, a preview if it is called); what it raises ends the painting."""


@dataclass(frozen=True, slots=True)
class Work:
    """One picture to be painted."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    guidance: float | None = None
    negative_prompt: str | None = None
    image: Pixels | None = None
    """What it starts from, in this size."""
    mask: Pixels | None = None
    """255 where it is to be painted anew."""
    strength: float = 1.0


class Pipes:
    """Loaded on construction, which blocks. Raises `SetupError`."""

    def __init__(
        self, folder: Path, family: str, *, device: str, dtype: Dtype, variant: str | None, threads: int
    ) -> None:
        try:
            import diffusers
            import torch
            import transformers
        except ImportError as error:
            raise SetupError(
                f"Backend 'diffusers' needs the package {error.name!r}: install 'inferhub[diffusion]'."
            ) from error
        self._torch = torch
        self._diffusers = diffusers
        self._family = family
        torch.set_num_threads(threads)
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()
        if dtype == "auto":
            dtype = "float32" if device == "cpu" else "bfloat16"
        try:
            pipe = diffusers.AutoPipelineForText2Image.from_pretrained(
                str(folder),
                dtype=getattr(torch, dtype),
                variant=variant,
                local_files_only=True,
                use_safetensors=True,
            )
            self._paint = pipe.to(device)
        except Exception as error:  # the libraries' exceptions share no base class
            raise SetupError(
                f"The model in {folder} cannot be loaded on {device} as {dtype}: {str(error)[:300]}",
                param="weights",
            ) from error
        self._paint.set_progress_bar_config(disable=True)
        self._change: Any = None
        self._fill: Any = None

    @property
    def grid(self) -> int:
        """Both sides of a picture are multiples of this."""
        return max(8, int(self._paint.vae_scale_factor) * (2 if self._family == "flux" else 1))

    @property
    def side(self) -> int:
        """What the model was made for."""
        return int(self._paint.default_sample_size) * int(self._paint.vae_scale_factor)

    def painted(self, work: Work, on_step: OnStep) -> Pixels:
        pipe = self._pipe(work)
        given = self._given(work)

        def callback(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1, pipe.num_timesteps, lambda: self._preview(tensors["latents"], work))
            return {}

        made = pipe(**given, callback_on_step_end=callback, output_type="np").images[0]
        return as_pixels(made * 255)

    def _pipe(self, work: Work) -> Any:
        if work.image is None:
            return self._paint
        if work.mask is None:
            if self._change is None:
                self._change = self._shared(self._diffusers.AutoPipelineForImage2Image)
            return self._change
        if self._fill is None:
            self._fill = self._shared(self._diffusers.AutoPipelineForInpainting)
        return self._fill

    def _shared(self, kind: Any) -> Any:
        pipe = kind.from_pipe(self._paint)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _given(self, work: Work) -> dict[str, Any]:
        from PIL import Image

        given: dict[str, Any] = {
            "prompt": work.prompt,
            "num_inference_steps": work.steps,
            # On the CPU, so that a seed gives the same picture on every device.
            "generator": self._torch.Generator("cpu").manual_seed(work.seed),
        }
        if work.guidance is not None:
            given["guidance_scale"] = work.guidance
        if work.negative_prompt is not None:
            given["negative_prompt"] = work.negative_prompt
        if work.image is not None:
            given |= {"image": Image.fromarray(work.image), "strength": work.strength}
        if work.mask is not None:
            given["mask_image"] = Image.fromarray(work.mask)
        # What changes a picture takes its size from it; of the families, only Flux insists on being told.
        if work.image is None or work.mask is not None or self._family == "flux":
            given |= {"width": work.width, "height": work.height}
        return given

    def _preview(self, latents: Any, work: Work) -> Pixels:
        pipe = self._paint
        with self._torch.no_grad():
            if self._family == "flux":
                latents = pipe._unpack_latents(latents, work.height, work.width, pipe.vae_scale_factor)
            scaled = latents / pipe.vae.config.scaling_factor
            scaled = scaled + (getattr(pipe.vae.config, "shift_factor", None) or 0.0)
            decoded = pipe.vae.decode(scaled.to(pipe.vae.dtype), return_dict=False)[0]
        made = pipe.image_processor.postprocess(decoded, output_type="np")[0]
        return as_pixels(made * 255)
