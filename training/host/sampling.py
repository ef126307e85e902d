"""Sampling from a MODEL as the stock nodes do, one picture or several in lockstep."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from torch import Tensor

from ..config.sampling import SamplerSettings
from ..performance.recording import GraphRecorder, recorder_for
from ..protocols import CanvasText
from . import lockstep
from .folders import cache_folder
from .model_facts import ModelFacts
from .remembering import forget, forgetting
from .twins import NoTwin, twin_for_sampling
from .wired import NOTHING_WIRED, Wired

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger("lora-atelier")


class SampledModel(ModelFacts):
    """A model that pictures are drawn with."""

    def sample(
        self,
        positive: CanvasText,
        negative: CanvasText,
        settings: SamplerSettings,
        *,
        latent_size: tuple[int, ...],
        seed: int | Sequence[int],
        on_step: Callable[[int], None] | None = None,
        wired: Wired = NOTHING_WIRED,
    ) -> Tensor:
        """What the stock KSampler gives from an empty latent: (B, C, H, W), ``latent_size`` as (height, width) in cells, or as
        (frames, height, width) of a film.

        With something ``wired`` it is what SamplerCustomAdvanced gives.

        B is 1, or the number of seeds: each picture begins with the noise that it would have alone. Samplers that draw noise on
        their way draw it by the first seed.
        """
        seeds = [seed] if isinstance(seed, int) else list(seed)
        empty = torch.zeros((1, self.latent_channels, *latent_size), device=comfy.model_management.intermediate_device())
        empty = comfy.sample.fix_empty_latent_channels(self.patcher, empty)
        noise = torch.cat([comfy.sample.prepare_noise(empty, one) for one in seeds])
        empty = torch.cat([empty] * len(seeds))

        def callback(step: int, _x0: Tensor, _x: Tensor, _total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            if on_step is not None:
                on_step(step)

        with torch.inference_mode(), forgetting(self.base.diffusion_model):
            if wired:
                return wired.draw(self, settings, noise, empty, positive, negative, seed=seeds[0], callback=callback)
            latents: Tensor = comfy.sample.sample(
                self.patcher, noise, settings.steps, settings.cfg, settings.sampler, settings.scheduler, positive, negative,
                empty, denoise=1.0, callback=callback, disable_pbar=True, seed=seeds[0],
            )  # fmt: skip
        return latents

    def sample_together(
        self,
        positive: CanvasText,
        negative: CanvasText,
        settings: SamplerSettings,
        count: int,
        rows: lockstep.Rows,
        *,
        latent_size: tuple[int, ...],
        seed: int,
        whole: bool = False,
        wired: Wired = NOTHING_WIRED,
    ) -> Tensor:
        """``count`` pictures from one seed, (count, C, H, W), each as ``sample`` gives it alone, in batches.

        ``rows`` is told before every call of the model which of them it is for. ``whole`` must be set when the conditioning has
        one row a picture: OutOfStep is raised if the sampler does not keep them in step.
        """
        empty = torch.zeros((1, self.latent_channels, *latent_size), device=comfy.model_management.intermediate_device())
        empty = comfy.sample.fix_empty_latent_channels(self.patcher, empty)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed)] * count)
        empty = torch.cat([empty] * count)

        def anew(some: Sequence[int]) -> None:
            forget(self.base.diffusion_model)  # the next rows may have other weights beside them
            rows(some)

        def lead(kind: Any) -> Any:
            if not hasattr(kind, "sampler_function"):
                raise lockstep.OutOfStep(f"{settings.sampler} is not one of the host's own kind of samplers")
            function = lockstep.LockstepSampler(kind.sampler_function, anew, whole=whole)
            return type(kind)(function, kind.extra_options, kind.inpaint_options)

        def callback(_step: int, _x0: Tensor, _x: Tensor, _total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        with torch.inference_mode(), forgetting(self.base.diffusion_model):
            if wired:
                return wired.draw(
                    self, settings, noise, empty, positive, negative, seed=seed, callback=callback, lead=lead
                )  # fmt: skip
            schedule = comfy.samplers.KSampler(
                self.patcher, steps=settings.steps, device=self.device, sampler=settings.sampler, scheduler=settings.scheduler,
                denoise=1.0, model_options=self.patcher.model_options,
            )  # fmt: skip
            latents: Tensor = comfy.sample.sample_custom(
                self.patcher, noise, settings.cfg, lead(comfy.samplers.sampler_object(settings.sampler)), schedule.sigmas,
                positive, negative, empty, callback=callback, disable_pbar=True, seed=seed,
            )  # fmt: skip
        return latents

    @contextmanager
    def each_call(self, tell: Callable[[int], None]) -> Iterator[None]:
        """``tell(rows)`` before every pass of the network: its real batch, conditional and unconditional parts in a row."""
        handle = self.base.diffusion_model.register_forward_pre_hook(lambda _module, inputs: tell(inputs[0].shape[0]))
        try:
            yield
        finally:
            handle.remove()

    def recorder(self) -> GraphRecorder | None:
        """What can record the network's passes in sampling.

        None where nothing can, where other nodes' code takes part in them, or where the host pages the weights in and out.
        """
        return None if self.is_paged else self._recorder()

    def _recorder(self) -> GraphRecorder | None:
        """The same for weights that stay where they are."""
        return None if self.is_altered or self.has_copies else recorder_for(self.device, cache_folder())

    @contextmanager
    def resident(self, pictures: int, latent_size: tuple[int, ...], beside: int) -> Iterator[Self]:
        """For drawing: this model, or its resident twin where that makes the network's passes recordable.

        The twin is taken where the host pages this model's weights in and out, and where there is room for it with what so many
        ``pictures`` in a batch and ``beside`` bytes more take; it samples the same pictures. Afterwards it is put aside.
        """
        with ExitStack() as stack:
            found = self
            if self.is_paged and self._recorder() is not None:
                # Conditional and unconditional parts in one pass; what a recording takes for it, nothing else can have.
                work = self.base.memory_required([2 * pictures, self.latent_channels, *latent_size])
                try:
                    twin = stack.enter_context(twin_for_sampling(self.patcher, "diffusion_model", int(work) + beside))
                except NoTwin as why:
                    log.info("grid: the host pages this model's weights in and out, so its passes are not recorded: %s", why)
                else:
                    found = type(self)(twin)
            yield found

    def pictures_that_fit(self, wanted: int, latent_size: tuple[int, ...], beside: int = 0, references: int = 0) -> int:
        """How many pictures of this size can be sampled in one batch by the host's own measure, 1 to ``wanted``.

        ``beside``: bytes of what stands beside the model and is not there yet; ``references``: cells of the control pictures'
        latents beside each picture.
        """
        free = comfy.model_management.get_free_memory(self.device) - beside
        free -= max(0, self.patcher.model_size() - self.patcher.loaded_size())
        for count in range(wanted, 1, -1):
            # The host takes conditional and unconditional parts apart by itself if both don't fit.
            shown = {"ref_latents": [[count, self.latent_channels, references]]} if references else {}
            if self.base.memory_required([count, self.latent_channels, *latent_size], shown) * 1.5 < free:
                return count
        return 1

    def with_lora(
        self, clip: Any, tensors: dict[str, Tensor], strength: float, text_strength: float | None = None
    ) -> tuple[Any, Any]:
        """Patched copies of MODEL and CLIP, as the stock LoraLoader makes them; the text encoder's strength may be another."""
        of_text = strength if text_strength is None else text_strength
        patcher, clip = comfy.sd.load_lora_for_models(self.patcher, clip, tensors, strength, of_text)
        return patcher, clip
