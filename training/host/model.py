"""MODEL of the host: held for training, and sampled from."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import torch
from comfy import lora as comfy_lora
from comfy import sampler_helpers
from torch import Tensor, nn

from ..config import BaseWeights
from ..config.sampling import SamplerSettings
from ..errors import AtelierError
from ..families import BESIDE, family_named
from ..network.base_layer import is_conv, is_linear, refusal
from ..objective.noise import expand_like
from ..performance.block_offload import Traffic, kept_away, scattered
from ..performance.checkpointing import blocks_of
from ..performance.eight_bit_layers import in_eight_bits, remark
from ..performance.frozen_layers import lightened
from ..performance.out_of_place import KERNELS, Care, OutOfPlace
from ..performance.quantised_layers import unpacking
from ..performance.recording import GraphRecorder, recorder_for
from ..protocols import CanvasText, Conditions, EncodedText, Prediction, Together
from ..tensors.transfer import to_device
from . import alterations, lockstep
from .attention import attention, differentiable_attention
from .text import TextEncoder
from .weights import (
    identity_of,
    lay_aside,
    mended,
    names_of_layers,
    put_back,
    put_twin_aside,
    resident,
    without_inference_tensors,
)

log = logging.getLogger("lora-atelier")
held: list[Model] = []
"""Models that a loop holds now, which nothing may put aside."""

# Networks whose code was read, in every version that is supported, and whose every in-place statement a first pass would meet:
# those of Stable Diffusion 1 and 2, SDXL, and SD3.
TRUSTED = {("comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel"),
           ("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")}  # fmt: skip


def _kernels() -> dict[Callable[..., object], Callable[..., object]]:
    """The host's fused kernels that autograd cannot pass, where it has any, and the same in single steps, from the same source.

    The host spares itself some of them while ``in_training`` is set, but not all.
    """
    home = "comfy_kitchen.backends.eager."
    parts = [sys.modules[home + name] for name in ("adaln", "rope") if home + name in sys.modules]
    if not parts:
        return {}
    plain = {name: value for part in parts for name, value in vars(part).items() if callable(value)}
    ops = torch.ops.comfy_kitchen
    # Those whose names end in _ write into their input, which is for sampling alone.
    return {getattr(ops, name): step for name, step in plain.items() if not name.endswith("_") and hasattr(ops, name)}


KERNELS.update(_kernels())


class Model:
    """A loaded diffusion model, for training beside it and for sampling."""

    def __init__(self, patcher: Any):
        self.patcher = mended(patcher)
        self.base = patcher.model
        self._compute_dtype: torch.dtype | None = None
        self._room: int | None = None
        self._parts: dict[nn.Module, list[nn.Module]] = {}
        self._care: Care | None = None
        self._origin = patcher
        self._base_weights: BaseWeights = "as loaded"

    def _is_trusted(self, modules: Iterable[nn.Module] | None = None) -> bool:
        """Whether nothing but the network's own, known code runs when it is asked; ``modules`` are the network's."""
        kind = type(self.base.diffusion_model)
        return (kind.__module__, kind.__name__) in TRUSTED and not self._has_foreign(modules)

    @property
    def is_altered(self) -> bool:
        """Whether other nodes' code has a part in its answers."""
        return self._has_foreign()

    def _has_foreign(self, modules: Iterable[nn.Module] | None = None) -> bool:
        options = self.patcher.model_options
        foreign = [options.get("transformer_options"), options.get("model_function_wrapper")]
        foreign += [name for name in self.patcher.object_patches if str(name).startswith("diffusion_model")]
        foreign += [getattr(self.patcher, n, None) for n in ("wrappers", "callbacks", "injections", "additional_models")]
        every = self.base.diffusion_model.modules() if modules is None else modules
        foreign += [dict(m._forward_hooks) or dict(m._forward_pre_hooks) for m in every]
        return alterations.holds(foreign)

    @property
    def family(self) -> str:
        """The host's name of the model family, such as ``SD15``, ``SDXL`` or ``SD3``."""
        return type(self.base.model_config).__name__

    @property
    def sampling(self) -> Any:
        return self.patcher.get_model_object("model_sampling")

    @property
    def prediction(self) -> Prediction:
        """What the model predicts. A patched sampling object (a stock node's) outranks the checkpoint's own type."""
        from comfy import model_sampling as kinds

        sampling = self.sampling
        discrete = isinstance(sampling, kinds.ModelSamplingDiscrete)
        if self._levels_are_ratios:
            return "flow"
        if isinstance(sampling, kinds.CONST) and not isinstance(sampling, getattr(kinds, "IMG_TO_IMG_FLOW", ())):
            return "flow"
        if discrete and isinstance(sampling, kinds.V_PREDICTION) and not isinstance(sampling, kinds.EDM):
            return "v"
        if discrete and isinstance(sampling, kinds.EPS) and not isinstance(sampling, (kinds.V_PREDICTION, kinds.X0)):
            return "eps"
        raise AtelierError(
            f"model: {self.family} predicts in a way ({self.base.model_type.name}) that cannot be trained here; "
            "eps, v and flow models can."
        )

    @property
    def _levels_are_ratios(self) -> bool:
        """Flow models to which the host gives sigma / (1 - sigma) as the level, and the latent divided by 1 - sigma (Cosmos)."""
        from comfy import model_sampling as kinds

        return isinstance(self.sampling, getattr(kinds, "COSMOS_RFLOW", ()))

    @property
    def frames(self) -> bool:
        """Whether its latents are (B, C, T, H, W), of which a picture is one frame."""
        return getattr(self.patcher.get_model_object("latent_format"), "latent_dimensions", 2) == 3

    def check(self) -> None:
        """AtelierError, with the reason, if this model cannot be trained rightly."""
        family = family_named(self.family)
        if family.refused:
            raise AtelierError(f"model: {self.family} {family.refused}")
        blank = torch.zeros(1, self.latent_channels, *([1] if self.frames else []), 8, 8)
        beside = None
        with suppress(KeyError, AttributeError, IndexError, RuntimeError):  # a family of tomorrow may want to be asked otherwise
            beside = self.base.concat_cond(noise=blank, latent_image=blank, device=blank.device)
        if beside is not None and not family.blank_beside:
            raise AtelierError(f"model: this {self.family} {BESIDE}")
        if self.prediction == "flow" and getattr(self.sampling, "noise_scale", 1.0) != 1.0:
            raise AtelierError(f"model: {self.family} is made with noise of another strength, which is not trained here.")
        why = next(filter(None, map(refusal, self.base.diffusion_model.modules())), None)
        if why is not None:
            raise AtelierError(f"model: {why}")

    @property
    def latent_channels(self) -> int:
        channels: int = self.patcher.get_model_object("latent_format").latent_channels
        return channels

    @property
    def cell(self) -> int | None:
        """Pixels that a cell of its latents covers in each direction; None where the host doesn't say, or not reliably."""
        form = self.patcher.get_model_object("latent_format")
        stated = type(form).__module__ == "comfy.latent_formats" and not self.frames and not family_named(self.family).refused
        return getattr(form, "spacial_downscale_ratio", None) if stated else None

    @property
    def sigmas(self) -> Tensor | None:
        """Sigma of every discrete timestep, ascending, on the CPU; None for flow models."""
        return None if self.prediction == "flow" else self.sampling.sigmas.detach().cpu().clone()

    @property
    def device(self) -> torch.device:
        device: torch.device = self.patcher.load_device
        return device

    @property
    def compute_dtype(self) -> torch.dtype:
        # Of this copy: on the network that all copies share there may be what another one has asked for.
        return self._compute_dtype or self.patcher.get_model_object("manual_cast_dtype") or self.base.get_dtype()

    def for_training(self, dtype: torch.dtype | None, base_weights: BaseWeights = "as loaded") -> Model:
        """This model as the loop can hold it, with its arithmetic in ``dtype`` (None: as loaded); its weights stay as they are,
        but while it is held, for which ``base_weights`` may ask for eight bits.

        A model whose weights the host pages in op by op may lose them between forward and backward, so its resident twin is
        taken, which the host itself makes.
        """
        patcher = resident(self.patcher, "model")
        if dtype is not None and dtype != Model(patcher).compute_dtype:
            patcher = patcher.clone()
            patcher.set_model_compute_dtype(dtype)
        changed = Model(patcher)
        changed._compute_dtype, changed._origin, changed._base_weights = dtype, self.patcher, base_weights
        return changed

    def remark(self) -> str:
        """What comes of holding its weights otherwise than as loaded, in a sentence; empty where they are as loaded."""
        return remark(self.blocks(), self._base_weights) if self._base_weights != "as loaded" else ""

    def retire(self) -> None:
        """After a run: a twin that was made for it goes back to main memory; the graph's own model stays where it is."""
        put_twin_aside(self.patcher, self._origin)

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may compute twice."""
        return blocks_of(self.base.diffusion_model)

    def leave_room(self, needed: int | None) -> None:
        """From the next ``hold`` on, so many bytes are to be free beside the weights; None: as many as there can be.

        The host puts other models aside for that, but only as far as it has to.
        """
        self._room = needed

    def weights(self) -> list[Tensor]:
        """All parameters and buffers."""
        return [*self.base.parameters(), *self.base.buffers()]

    def layers(self) -> dict[str, nn.Module]:
        """Linear and Conv2d layers by dotted name under the diffusion model."""
        with alterations.objects_in_place(self.patcher):
            found = list(self.base.diffusion_model.named_modules())
        return {name: m for name, m in found if is_linear(m) or (hasattr(m, "weight") and is_conv(m))}

    def lora_names(self) -> dict[str, list[str]]:
        """For every layer the names under which the host finds it in a LoRA file."""
        return names_of_layers(comfy_lora.model_lora_keys_unet(self.base, {}), "diffusion_model.")

    def identity(self) -> str:
        """A fingerprint, equal in every session, of all that decides the network's answers: its weights, the patches on them,
        and what other nodes have put in it. What only guides the drawing of pictures doesn't count."""
        return self._weights_identity() + alterations.of_training(self.patcher, own_dtype=self._compute_dtype is None)

    def sampling_identity(self) -> str:
        """The same of all that decides a picture that is drawn with it, guidance included."""
        return self._weights_identity() + alterations.of_sampling(self.patcher)

    def _weights_identity(self) -> str:
        with alterations.objects_in_place(self.patcher):
            return identity_of(self.base.diffusion_model, self.patcher, "diffusion_model.")

    def latents_in(self, latents: Tensor) -> Tensor:
        """From what the VAE gives to what the model sees (the latent format's scale and shift, and a picture's one frame)."""
        seen: Tensor = self.base.process_latent_in(latents.unsqueeze(2) if self.frames and latents.ndim == 4 else latents)
        return seen

    @contextmanager
    def hold(self, text: TextEncoder | None = None, offload: float | Traffic = 0.0) -> Iterator[None]:
        """The model on its device, outside inference mode, differentiable, and afterwards exactly as it was found.

        Weights made by other nodes are inference tensors, which autograd refuses; meanwhile ordinary tensors over the very
        same storage stand in their places, so nothing is copied. ``text`` is held as well, for training it. The weights of the
        blocks that ``offload`` names, or of this share of them (0 to 1), stay in main memory until they are used.
        """
        blocks = self.blocks() if offload else []
        traffic = offload if isinstance(offload, Traffic) else Traffic(scattered(len(blocks), offload))
        offloaded = [blocks[i] for i in traffic.away]
        management = comfy.model_management
        patchers = [self.patcher, *([text.clip.patcher] if text is not None else [])]
        rounded = self._base_weights if self._base_weights != "as loaded" else None
        with torch.inference_mode(False), torch.enable_grad():
            # Asking for all memory makes the host put every other model aside, and leave in main memory what need not be on the
            # device; on a CPU it has no effect. What it moves in inference mode stays what a graph has made.
            stays_home = bool(offloaded) or rounded is not None
            room = 1e20 if self._room is None or stays_home else self._room
            with torch.inference_mode():
                if rounded and self.device.type != "cpu":
                    lay_aside(self.patcher)  # what is there already, the host would leave there
                management.load_models_gpu(patchers, memory_required=room, force_full_load=not stays_home)
            with ExitStack() as stack:
                # Each of these is undone even if what comes after it fails, as other nodes' callbacks may.
                modules = [module for patcher in patchers for module in self._modules(patcher.model)]
                stack.callback(put_back, without_inference_tensors(modules))
                # Here, before there are hooks of our own; and once, since it learns which forms are harmless.
                self._care = self._care or Care(self._is_trusted(self._modules(self.base)))
                held.append(self)
                stack.callback(held.remove, self)
                if hasattr(management, "in_training"):
                    stack.callback(setattr, management, "in_training", management.in_training)
                    management.in_training = True
                stack.callback(self.patcher.cleanup)
                self.patcher.pre_run()
                if rounded:
                    stack.enter_context(in_eight_bits(self.blocks(), rounded, self.device, offloaded))
                for patcher in patchers:
                    # What the host has left in main memory it would bring for each operation, through a buffer that the next
                    # one overwrites: nothing that autograd could keep. So all comes now, but for the blocks that stay away.
                    away = offloaded if patcher is self.patcher else []
                    stack.enter_context(kept_away(away, self._modules(patcher.model), patcher.load_device, traffic))
                stack.enter_context(differentiable_attention())
                stack.enter_context(unpacking(modules))
                stack.enter_context(lightened(self._modules(self.base), self.compute_dtype, self.device))
                yield

    def _modules(self, root: nn.Module) -> list[nn.Module]:
        """All of them, found when the model is held first; those of a loaded model stay, while their tensors may change."""
        if root not in self._parts:
            self._parts[root] = list(root.modules())
        return self._parts[root]

    def condition(self, text: EncodedText, x: Tensor, size: Mapping[str, int]) -> Conditions:
        """The host's conditioning objects of one picture.

        ``x`` is its latent (1, C, H, W); ``size`` may hold ``width``, ``height``, ``crop_w``, ``crop_h``, ``target_width`` and
        ``target_height`` in pixels, used by models with size conditioning.
        """
        extras = {k: v for k, v in text.items() if k != "cond"}
        guidance = family_named(self.family).guidance
        told = {} if guidance is None else {"guidance": guidance}
        # A conditioning from the canvas may name sizes and guidance itself; those are meant.
        # As in a graph, there is always a word on the pooled vector, which some hosts ask for even where there is none.
        conds = sampler_helpers.convert_cond([[text["cond"], {"pooled_output": None, **size, **told, **extras}]])
        learns = any(isinstance(value, Tensor) and value.requires_grad for value in text.values())
        with OutOfPlace() if learns else nullcontext():
            conds = comfy.samplers.encode_model_conds(
                self.base.extra_conds, conds, x, self.device, "positive", latent_image=x, denoise_mask=None, seed=0
            )
        return {k: c.process_cond(batch_size=1, device=self.device, area=None) for k, c in conds[0]["model_conds"].items()}

    def predict(self, x: Tensor, sigma: Tensor, conditions: Sequence[Conditions]) -> Tensor:
        """``answer`` for pictures that each have their own conditioning."""
        return self.answer(x, sigma, self.merged(conditions))

    def merged(self, conditions: Sequence[Conditions]) -> list[Together]:
        """The conditionings of a batch, a picture each, as they go through the model: those of one shape together."""
        # A mean-flow network is told one further level for all pictures of a batch, so each goes alone.
        alone = getattr(self.base.diffusion_model, "time_r_in", None) is not None
        groups = [[i] for i in range(len(conditions))] if alone else _alike(conditions)
        return [Together(tuple(group), self._merged([conditions[i] for i in group])) for group in groups]

    def _merged(self, conditions: list[Conditions]) -> Conditions:
        # Left to itself the host would wait for the device here.
        found = comfy.samplers.cond_cat(conditions)
        return {k: to_device(v, self.device) if isinstance(v, Tensor) else v for k, v in found.items()}

    def answer(self, x: Tensor, sigma: Tensor, given: Sequence[Together]) -> Tensor:
        """The model's own answer (eps, v or velocity) in float32 for ``x`` (B, C, H, W) at ``sigma`` (B,).

        ``given`` is what ``merged`` has made of its conditionings. Nothing here draws a random number or comes from main memory.
        """
        if len(given) == 1:
            return self._answer(x, sigma, given[0].conditions)
        answers: dict[int, Tensor] = {}
        for group in given:
            # Indexing with a list would have to wait for the device.
            some = torch.stack([x[i] for i in group.members]), torch.stack([sigma[i] for i in group.members])
            answers |= dict(zip(group.members, self._answer(*some, group.conditions), strict=True))
        return torch.stack([answers[i] for i in range(len(x))])

    def _answer(self, x: Tensor, sigma: Tensor, merged: Conditions) -> Tensor:
        """The answer for pictures whose conditionings have become one."""
        self._care = self._care or Care(self._is_trusted())
        with self._care.around(_form(x, merged)):
            return self._raw_output(x, sigma, merged)

    def _raw_output(self, x: Tensor, sigma: Tensor, conditioning: Conditions) -> Tensor:
        """``apply_model`` returns the denoised picture; the network's own output is caught on its way there."""
        if self._levels_are_ratios:
            x, sigma = x / (1 - expand_like(sigma, x)), sigma / (1 - sigma)
        caught: list[Tensor] = []
        handle = self.base.diffusion_model.register_forward_hook(lambda _m, _i, output: caught.append(output))
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        # Mean-flow networks ask where the step ends: at its beginning, where the mean velocity is the velocity.
        ends = torch.stack([sigma[0], sigma[0]])
        options.update(sigmas=sigma, sample_sigmas=ends, cond_or_uncond=[0], optimized_attention_override=attention)
        try:
            denoised = self.base.apply_model(x, sigma, transformer_options=options, **conditioning)
        finally:
            handle.remove()
        output = caught[-1]
        if not isinstance(output, Tensor) or output.shape != denoised.shape:
            raise AtelierError(f"model: {self.family} answers in a form that cannot be trained here.")
        return output.float()

    def sample(
        self,
        positive: CanvasText,
        negative: CanvasText,
        settings: SamplerSettings,
        *,
        latent_size: tuple[int, int],
        seed: int | Sequence[int],
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """What the stock KSampler gives from an empty latent: (B, C, H, W), ``latent_size`` as (height, width) in cells.

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

        with torch.inference_mode():
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
        latent_size: tuple[int, int],
        seed: int,
        whole: bool = False,
    ) -> Tensor:
        """``count`` pictures from one seed, (count, C, H, W), each as ``sample`` gives it alone, in batches.

        ``rows`` is told before every call of the model which of them it is for. ``whole`` must be set when the conditioning has
        one row a picture: OutOfStep is raised if the sampler does not keep them in step.
        """
        empty = torch.zeros((1, self.latent_channels, *latent_size), device=comfy.model_management.intermediate_device())
        empty = comfy.sample.fix_empty_latent_channels(self.patcher, empty)
        noise = torch.cat([comfy.sample.prepare_noise(empty, seed)] * count)
        kind = comfy.samplers.sampler_object(settings.sampler)
        if not hasattr(kind, "sampler_function"):
            raise lockstep.OutOfStep(f"{settings.sampler} is not one of the host's own kind of samplers")
        together = type(kind)(
            lockstep.LockstepSampler(kind.sampler_function, rows, whole=whole), kind.extra_options, kind.inpaint_options
        )
        schedule = comfy.samplers.KSampler(
            self.patcher, steps=settings.steps, device=self.device, sampler=settings.sampler, scheduler=settings.scheduler,
            denoise=1.0, model_options=self.patcher.model_options,
        )  # fmt: skip

        def callback(_step: int, _x0: Tensor, _x: Tensor, _total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        with torch.inference_mode():
            latents: Tensor = comfy.sample.sample_custom(
                self.patcher, noise, settings.cfg, together, schedule.sigmas, positive, negative, torch.cat([empty] * count),
                callback=callback, disable_pbar=True, seed=seed,
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

    @property
    def has_copies(self) -> bool:
        """Whether copies on other devices take part, which know nothing of what is attached here."""
        return bool(getattr(self.patcher, "get_additional_models_with_key", lambda _key: [])("multigpu"))

    def recorder(self) -> GraphRecorder | None:
        """What can record the network's passes in sampling; None where nothing can, or other nodes' code takes part in them."""
        paged = getattr(self.patcher, "is_dynamic", lambda: False)()
        if recorder_for(self.device) is None or self.is_altered or self.has_copies:
            return None
        if paged:
            log.info("grid: the host pages this model's weights in and out, so that the network's passes are not recorded")
            return None
        return recorder_for(self.device)

    def pictures_that_fit(self, wanted: int, latent_size: tuple[int, int], beside: int = 0) -> int:
        """How many pictures of this size can be sampled in one batch by the host's own measure, 1 to ``wanted``.

        ``beside``: bytes of what stands beside the model and is not there yet.
        """
        free = comfy.model_management.get_free_memory(self.device) - beside
        free -= max(0, self.patcher.model_size() - self.patcher.loaded_size())
        for count in range(wanted, 1, -1):
            # The host takes conditional and unconditional parts apart by itself if both don't fit.
            if self.patcher.memory_required([count, self.latent_channels, *latent_size]) * 1.5 < free:
                return count
        return 1

    def with_lora(
        self, clip: Any, tensors: dict[str, Tensor], strength: float, text_strength: float | None = None
    ) -> tuple[Any, Any]:
        """Patched copies of MODEL and CLIP, as the stock LoraLoader makes them; the text encoder's strength may be another."""
        of_text = strength if text_strength is None else text_strength
        patcher, clip = comfy.sd.load_lora_for_models(self.patcher, clip, tensors, strength, of_text)
        return patcher, clip


def _alike(conditions: Sequence[Conditions]) -> list[list[int]]:
    """Indices of conditionings that the host can put into one batch."""
    groups: list[list[int]] = []
    for i, condition in enumerate(conditions):
        for group in groups:
            first = conditions[group[0]]
            if first.keys() == condition.keys() and all(first[k].can_concat(condition[k]) for k in first):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def _form(x: Tensor, conditioning: Conditions) -> tuple[object, ...]:
    """Shapes and types of what a network is given."""
    given = ((k, (v.shape, v.dtype) if isinstance(v, Tensor) else type(v)) for k, v in conditioning.items())
    return x.shape, x.dtype, *sorted(given, key=lambda pair: pair[0])
