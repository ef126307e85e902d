"""Everything this project knows about ComfyUI's insides. No other module of ``training`` imports the host.

Three thin objects wrap what a graph has loaded: ``Model`` (a MODEL), ``TextEncoder`` (a CLIP) and ``PictureCodec`` (a VAE).
Below them stand small functions for folders, progress and files. Features are detected, versions never compared.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import folder_paths
import torch
from comfy import lora as comfy_lora
from comfy import sampler_helpers
from torch import Tensor, nn

from . import lockstep
from .checkpointing import blocks_of
from .convolutions import as_products
from .errors import AtelierError
from .families import BESIDE, notes_on
from .header import Header
from .network.lora import is_conv, is_linear
from .noise import Prediction, spread
from .out_of_place import KERNELS, Care, OutOfPlace
from .transfer import to_device

log = logging.getLogger("lora-atelier")
Conditioning = dict[str, Tensor]
"""One encoded text: ``cond`` (1, tokens, width), usually ``pooled_output`` (1, width), and whatever else the encoder gives."""

_held: list[Model] = []
"""Models that a loop holds now, which nothing may put aside."""

# Networks whose code was read, in every version that is supported, and whose every in-place statement a first pass would meet:
# those of Stable Diffusion 1 and 2, SDXL, and SD3.
TRUSTED = {("comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel"),
           ("comfy.ldm.modules.diffusionmodules.mmdit", "OpenAISignatureMMDITWrapper")}  # fmt: skip
PREDICTIONS: dict[str, Prediction] = {"EPS": "eps", "V_PREDICTION": "v", "FLOW": "flow", "FLUX": "flow"}


def _kernels() -> dict[Any, Any]:
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
        self.patcher = patcher
        self.base = patcher.model
        self._compute_dtype: torch.dtype | None = None
        self._care = Care(trusted=self._is_trusted())

    def _is_trusted(self) -> bool:
        """Whether nothing but the network's own, known code runs when it is asked."""
        kind, options = type(self.base.diffusion_model), self.patcher.model_options
        foreign = [options.get("transformer_options"), options.get("model_function_wrapper")]
        foreign += [name for name in self.patcher.object_patches if str(name).startswith("diffusion_model")]
        foreign += [getattr(self.patcher, n, None) for n in ("wrappers", "callbacks", "injections", "additional_models")]
        foreign += [dict(m._forward_hooks) or dict(m._forward_pre_hooks) for m in self.base.diffusion_model.modules()]
        return (kind.__module__, kind.__name__) in TRUSTED and not _holds(foreign)

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
        family = notes_on(self.family)
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

    @property
    def latent_channels(self) -> int:
        return self.patcher.get_model_object("latent_format").latent_channels

    @property
    def sigmas(self) -> Tensor | None:
        """Sigma of every discrete timestep, ascending, on the CPU; None for flow models."""
        return None if self.prediction == "flow" else self.sampling.sigmas.detach().cpu().clone()

    @property
    def device(self) -> torch.device:
        return self.patcher.load_device

    @property
    def compute_dtype(self) -> torch.dtype:
        return self._compute_dtype or self.base.manual_cast_dtype or self.base.get_dtype()

    def for_training(self, dtype: torch.dtype | None) -> Model:
        """This model as the loop can hold it, with its arithmetic in ``dtype`` (None: as loaded); its weights stay as they are.

        A model whose weights the host pages in op by op may lose them between forward and backward, so its resident twin is
        taken, which the host itself makes.
        """
        patcher = _resident(self.patcher, "model")
        if dtype is not None and dtype != Model(patcher).compute_dtype:
            patcher = patcher.clone()
            patcher.set_model_compute_dtype(dtype)
        changed = Model(patcher)
        changed._compute_dtype = dtype
        return changed

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may compute twice."""
        return blocks_of(self.base.diffusion_model)

    def weights(self) -> list[Tensor]:
        """Everything that is stored of the model."""
        return [*self.base.parameters(), *self.base.buffers()]

    def layers(self) -> dict[str, nn.Module]:
        """Linear and Conv2d layers by dotted name under the diffusion model."""
        found = self.base.diffusion_model.named_modules()
        return {name: m for name, m in found if is_linear(m) or (hasattr(m, "weight") and is_conv(m))}

    def lora_names(self) -> dict[str, list[str]]:
        """For every layer the names under which the host finds it in a LoRA file."""
        return _names_of_layers(comfy_lora.model_lora_keys_unet(self.base, {}), "diffusion_model.")

    def identity(self) -> str:
        """A fingerprint of the weights and of the patches on them, equal in every session."""
        return _identity(self.base.diffusion_model, self.patcher, "diffusion_model.")

    def latents_in(self, latents: Tensor) -> Tensor:
        """From what the VAE gives to what the model sees (the latent format's scale and shift, and a picture's one frame)."""
        return self.base.process_latent_in(latents.unsqueeze(2) if self.frames and latents.ndim == 4 else latents)

    @contextmanager
    def hold(self, text: TextEncoder | None = None) -> Iterator[None]:
        """The model on its device, outside inference mode, differentiable, and afterwards exactly as it was found.

        Weights made by other nodes are inference tensors, which autograd refuses; meanwhile ordinary tensors over the very
        same storage stand in their places, so nothing is copied. ``text`` is held as well, for training it.
        """
        management = comfy.model_management
        patchers = [self.patcher, *([text.clip.patcher] if text is not None else [])]
        with torch.inference_mode(False), torch.enable_grad():
            # Asking for all memory makes the host put every other model aside; on a CPU it has no effect.
            management.load_models_gpu(patchers, memory_required=1e20, force_full_load=True)
            swapped = [swap for patcher in patchers for swap in _without_inference_tensors(patcher.model)]
            was_training = getattr(management, "in_training", None)
            if was_training is not None:
                management.in_training = True
            self.patcher.pre_run()
            _held.append(self)
            try:
                with as_products(self.base) if self.device.type == "cpu" else nullcontext():
                    yield
            finally:
                _held.remove(self)
                self.patcher.cleanup()
                if was_training is not None:
                    management.in_training = was_training
                _put_back(swapped)

    def condition(self, text: Mapping[str, Tensor], x: Tensor, size: Mapping[str, int]) -> dict[str, Any]:
        """The host's conditioning objects of one picture.

        ``x`` is its latent (1, C, H, W); ``size`` may hold ``width``, ``height``, ``crop_w``, ``crop_h``, ``target_width`` and
        ``target_height`` in pixels, used by models with size conditioning.
        """
        extras = {k: v for k, v in text.items() if k != "cond"}
        guidance = notes_on(self.family).guidance
        told = {} if guidance is None else {"guidance": guidance}
        # A conditioning from the canvas may name sizes and guidance itself; those are meant.
        conds = sampler_helpers.convert_cond([[text["cond"], {**size, **told, **extras}]])
        learns = any(isinstance(value, Tensor) and value.requires_grad for value in text.values())
        with OutOfPlace() if learns else nullcontext():
            conds = comfy.samplers.encode_model_conds(
                self.base.extra_conds, conds, x, self.device, "positive", latent_image=x, denoise_mask=None, seed=0
            )
        return {k: c.process_cond(batch_size=1, device=self.device, area=None) for k, c in conds[0]["model_conds"].items()}

    def predict(self, x: Tensor, sigma: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor:
        """The model's own answer (eps, v or velocity) in float32 for ``x`` (B, C, H, W) at ``sigma`` (B,).

        Every picture has its own conditioning; those of one shape go through the model together.
        """
        # A mean-flow network is told one further level for all pictures of a batch, so each goes alone.
        alone = getattr(self.base.diffusion_model, "time_r_in", None) is not None
        groups = [[i] for i in range(len(conditions))] if alone else _alike(conditions)
        if len(groups) == 1:
            return self._answer(x, sigma, conditions)
        answers: dict[int, Tensor] = {}
        for group in groups:
            # Indexing with a list would have to wait for the device.
            some = torch.stack([x[i] for i in group]), torch.stack([sigma[i] for i in group])
            answers |= dict(zip(group, self._answer(*some, [conditions[i] for i in group]), strict=True))
        return torch.stack([answers[i] for i in range(len(conditions))])

    def _answer(self, x: Tensor, sigma: Tensor, conditions: Sequence[dict[str, Any]]) -> Tensor:
        """The answer for pictures whose conditionings go into one batch."""
        merged = comfy.samplers.cond_cat(list(conditions))
        # Left to itself the host would wait for the device here.
        merged = {k: to_device(v, self.device) if isinstance(v, Tensor) else v for k, v in merged.items()}
        with self._care.around(_form(x, merged)):
            return self._raw_output(x, sigma, merged)

    def _raw_output(self, x: Tensor, sigma: Tensor, conditioning: dict[str, Any]) -> Tensor:
        """``apply_model`` returns the denoised picture; the network's own output is caught on its way there."""
        if self._levels_are_ratios:
            x, sigma = x / (1 - spread(sigma, x)), sigma / (1 - sigma)
        caught: list[Tensor] = []
        handle = self.base.diffusion_model.register_forward_hook(lambda _m, _i, output: caught.append(output))
        options = dict(self.patcher.model_options.get("transformer_options", {}))
        # Mean-flow networks ask where the step ends: at its beginning, where the mean velocity is the velocity.
        ends = torch.stack([sigma[0], sigma[0]])
        options.update(sigmas=sigma, sample_sigmas=ends, cond_or_uncond=[0], optimized_attention_override=_attention)
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
        positive: list,
        negative: list,
        *,
        latent_size: tuple[int, int],
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
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
            return comfy.sample.sample(
                self.patcher, noise, steps, cfg, sampler, scheduler, positive, negative, empty,
                denoise=1.0, callback=callback, disable_pbar=True, seed=seeds[0],
            )  # fmt: skip

    def sample_together(
        self,
        positive: list,
        negative: list,
        count: int,
        rows: lockstep.Rows,
        *,
        latent_size: tuple[int, int],
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
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
        kind = comfy.samplers.sampler_object(sampler)
        if not hasattr(kind, "sampler_function"):
            raise lockstep.OutOfStep(f"{sampler} is not one of the host's own kind of samplers")
        together = type(kind)(
            lockstep.Together(kind.sampler_function, rows, whole=whole), kind.extra_options, kind.inpaint_options
        )
        schedule = comfy.samplers.KSampler(
            self.patcher, steps=steps, device=self.device, sampler=sampler, scheduler=scheduler, denoise=1.0,
            model_options=self.patcher.model_options,
        )  # fmt: skip

        def callback(_step: int, _x0: Tensor, _x: Tensor, _total: int) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()

        with torch.inference_mode():
            return comfy.sample.sample_custom(
                self.patcher, noise, cfg, together, schedule.sigmas, positive, negative, torch.cat([empty] * count),
                callback=callback, disable_pbar=True, seed=seed,
            )  # fmt: skip

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

    def pictures_that_fit(self, wanted: int, latent_size: tuple[int, int]) -> int:
        """How many pictures of this size can be sampled in one batch by the host's own measure, 1 to ``wanted``."""
        free = comfy.model_management.get_free_memory(self.device)
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
        return comfy.sd.load_lora_for_models(self.patcher, clip, tensors, strength, of_text)


def patched(before: Any, after: Any) -> int:
    """How many weights ``after`` changes that ``before`` does not; both are the host's patchers."""
    return sum(len(patches) > len(before.patches.get(key, ())) for key, patches in after.patches.items())


def _attention(_chosen: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    """Attention by torch's own kernel instead of what the host or a node has chosen for sampling.

    Some of those kernels have no backward pass; others keep every probability for it, and choose their chunks by the memory that
    is free, so that a pass that is computed again need not be the same.
    """
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def _resident(patcher: Any, widget: str) -> Any:
    """``patcher``, or its twin whose weights stay where they are."""
    if not getattr(patcher, "is_dynamic", lambda: False)():
        return patcher
    try:
        return patcher.get_non_dynamic_delegate()
    except RuntimeError as error:
        raise AtelierError(
            f"{widget}: this loader's weights are paged in and out while the model works, which cannot be trained. Start "
            "ComfyUI with --disable-dynamic-vram, or use a stock loader."
        ) from error


def _names_of_layers(keys: Mapping[str, Any], prefix: str) -> dict[str, list[str]]:
    """The host's table from names in files to weights, turned round and by layer."""
    suffix = ".weight"
    out: dict[str, list[str]] = {}
    for name, key in keys.items():
        if isinstance(key, str) and key.startswith(prefix) and key.endswith(suffix):
            out.setdefault(key[len(prefix) : -len(suffix)], []).append(name)
    return out


def _alike(conditions: Sequence[dict[str, Any]]) -> list[list[int]]:
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


def _holds(value: Any) -> bool:
    """Whether there is anything in ``value``, whose dictionaries and lists may be nested and empty."""
    if isinstance(value, (dict, list)):
        return any(_holds(v) for v in (value.values() if isinstance(value, dict) else value))
    return value is not None


def _form(x: Tensor, conditioning: Mapping[str, Any]) -> tuple[Any, ...]:
    """Shapes and types of what a network is given."""
    given = ((k, (v.shape, v.dtype) if isinstance(v, Tensor) else type(v)) for k, v in conditioning.items())
    return x.shape, x.dtype, *sorted(given, key=lambda pair: pair[0])


Swap = tuple[dict[str, Any], str, Tensor, Tensor]


def _without_inference_tensors(root: nn.Module) -> list[Swap]:
    """Stand-ins for inference tensors among parameters and buffers: (registry, name, original, stand-in)."""
    swapped: list[Swap] = []
    for module in root.modules():
        registries: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for registry in registries:
            for name, tensor in registry.items():
                if tensor is None or not tensor.is_inference() or type(tensor.data) is not Tensor:
                    continue
                view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
                view.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
                stand_in = nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
                registry[name] = stand_in
                swapped.append((registry, name, tensor, stand_in))
    return swapped


def _put_back(swapped: list[Swap]) -> None:
    for registry, name, original, stand_in in swapped:
        # If the host itself put another tensor here meanwhile (it moved the weight), that one is right.
        if registry.get(name) is stand_in and stand_in.untyped_storage().data_ptr() == original.untyped_storage().data_ptr():
            registry[name] = original


class TextEncoder:
    """A loaded CLIP (or T5, or language model) that turns captions into conditioning."""

    def __init__(self, clip: Any):
        self.clip = clip

    def identity(self) -> str:
        extras = f"{self.clip.layer_idx} {sorted(getattr(self.clip, 'tokenizer_options', {}).items())}"
        return _identity(self.clip.cond_stage_model, self.clip.patcher) + hashlib.sha256(extras.encode()).hexdigest()[:8]

    def encode(self, text: str) -> Conditioning:
        """Tensors on the CPU, ordinary ones (not inference tensors)."""
        with torch.inference_mode(False), torch.no_grad():
            out = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True, return_dict=True)
            return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in out.items() if isinstance(v, Tensor)}

    def for_training(self) -> TextEncoder:
        """This encoder as the loop can hold it: see ``Model.for_training``."""
        patcher = _resident(self.clip.patcher, "clip")
        if patcher is self.clip.patcher:
            return self
        clip = self.clip.clone()
        clip.patcher, clip.cond_stage_model = patcher, patcher.model
        return TextEncoder(clip)

    def layers(self) -> dict[str, nn.Module]:
        """Linear layers by dotted name, the first part being the encoder's: ``clip_l``, ``clip_g``, ``t5xxl`` and so on."""
        return {name: m for name, m in self.clip.cond_stage_model.named_modules() if is_linear(m)}

    def lora_names(self) -> dict[str, list[str]]:
        """For every layer the names under which the host finds it in a LoRA file."""
        return _names_of_layers(comfy_lora.model_lora_keys_clip(self.clip.cond_stage_model, {}), "")

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may compute twice."""
        return blocks_of(self.clip.cond_stage_model)

    def weights(self) -> list[Tensor]:
        """Everything that is stored of the encoder."""
        return [*self.clip.cond_stage_model.parameters(), *self.clip.cond_stage_model.buffers()]

    def encode_live(self, text: str) -> Conditioning:
        """Like ``encode``, but on the device and connected with whatever learns in the encoder; only while it is held."""
        with OutOfPlace():
            out = self.clip.encode_from_tokens(self.clip.tokenize(text), return_pooled=True, return_dict=True)
        return {k: v for k, v in out.items() if isinstance(v, Tensor)}

    def for_sampling(self, text: str) -> list:
        """CONDITIONING as CLIPTextEncode makes it."""
        with torch.inference_mode():
            return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))


class TextWriter:
    """A loaded CLIP that is a language model with eyes, for writing about pictures."""

    def __init__(self, clip: Any):
        if not hasattr(clip, "generate"):
            raise AtelierError("clip: this ComfyUI cannot let a text encoder write. Update ComfyUI, or choose another captioner.")
        if not _writes(clip.cond_stage_model):
            raise AtelierError(
                f"clip: {type(clip.cond_stage_model).__name__} only reads text. Connect a language model that sees pictures, "
                "such as Qwen3-VL or Gemma 3, or choose another captioner."
            )
        self.clip = clip

    def write(self, pixels: Tensor, question: str, max_length: int) -> str:
        """The most probable answer, of at most ``max_length`` tokens, about ``pixels`` (1, H, W, 3) in 0..1."""
        with torch.inference_mode():
            tokens = self.clip.tokenize(question, image=pixels, skip_template=False, min_length=1, thinking=False)
            if not any(isinstance(token[0], dict) for rows in tokens.values() for row in rows for token in row):
                raise AtelierError(
                    f"clip: {type(self.clip.tokenizer).__name__} takes no pictures. Connect a language model that sees pictures, "
                    "such as Qwen3-VL or Gemma 3, or choose another captioner."
                )
            return self.clip.decode(self.clip.generate(tokens, do_sample=False, max_length=max_length))


def _writes(model: nn.Module) -> bool:
    """Whether a text encoder can generate: the host's wrapper has the method for all, the model in it only if it can."""
    inner = getattr(model, str(getattr(model, "clip", "")), None)
    transformer = getattr(inner, "transformer", None)
    return hasattr(model, "generate") and (transformer is None or hasattr(transformer, "generate"))


class PictureReader:
    """A loaded CLIP_VISION: what it sees in a picture, as one direction."""

    def __init__(self, vision: Any):
        self.vision = vision

    @property
    def name(self) -> str:
        return str(getattr(self.vision, "model_type", "")).replace("_model", "").replace("_", " ") or "vision"

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1 -> (B, D), float32 on the CPU."""
        with torch.inference_mode():
            found = self.vision.encode_image(pixels)
            seen = found["image_embeds"]
            if seen is None:
                seen = found["last_hidden_state"].mean(dim=1)
            return seen.detach().float().cpu().flatten(1)


class PictureCodec:
    """A loaded VAE."""

    def __init__(self, vae: Any):
        self.vae = vae

    @property
    def downscale(self) -> int:
        """Pixels a latent cell covers in each direction."""
        ratio = self.vae.downscale_ratio
        return int(ratio[-1]) if isinstance(ratio, (tuple, list)) else int(ratio)

    def identity(self) -> str:
        return _identity(self.vae.first_stage_model, self.vae.patcher)

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in 0..1 -> latents on the CPU, unscaled (see ``Model.latents_in``).

        AtelierError while a model is held, if the host would have to put that model aside to make room.
        """
        if any(model.device == self.vae.patcher.load_device for model in _held) and not self._fits_beside(pixels):
            raise AtelierError(
                "crop variants: there is too little memory for the VAE beside the model that is trained. Set it above 0, so that "
                "the pictures are encoded before the training."
            )
        with torch.inference_mode(False), torch.no_grad():
            return self.vae.encode(pixels).detach().to("cpu", torch.float32, copy=True)

    def _fits_beside(self, pixels: Tensor) -> bool:
        """Whether the VAE can encode ``pixels`` while all other models stay where they are, by the host's own measure."""
        management, patcher = comfy.model_management, self.vae.patcher
        if management.is_device_cpu(patcher.load_device):
            return True
        if management.DISABLE_SMART_MEMORY:
            return False
        seen = pixels.movedim(-1, 1)
        if self.vae.latent_dim == 3:
            seen = seen.unsqueeze(2) if self.vae.not_video else seen.movedim(1, 0).unsqueeze(0)
        work = self.vae.memory_used_encode(seen.shape, self.vae.vae_dtype)
        work = max(management.minimum_inference_memory(), work + management.extra_reserved_memory())
        missing = patcher.model_size() - patcher.loaded_size()
        return management.get_free_memory(patcher.load_device) > 1.1 * missing + work

    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> (B, H, W, 3) in 0..1 on the CPU."""
        with torch.inference_mode():
            pixels = self.vae.decode(latents).cpu()
        return pixels.reshape(-1, *pixels.shape[-3:])


def _identity(module: nn.Module, patcher: Any, prefix: str = "") -> str:
    """Sha256 over every tensor's name, shape, type and a few of its values, and over the patches laid on it.

    While another copy of the model is in use (with a LoRA, say) its patches are merged into the shared weights; the patcher then
    keeps the originals aside, under names that start with ``prefix``, and those are the ones that count.
    """
    digest = hashlib.sha256()
    originals = {k: getattr(kept, "weight", kept) for k, kept in getattr(patcher, "backup", {}).items()}

    def add(name: str, tensor: Tensor) -> None:
        flat = tensor.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // 16)][:17].float().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(picked.numpy().tobytes())

    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor = originals.get(prefix + name, tensor)
            if isinstance(tensor, Tensor) and tensor.numel():
                add(name, tensor)
    for key, patches in sorted(getattr(patcher, "patches", {}).items(), key=lambda item: str(item[0])):
        digest.update(f"{key} {[(p[0], p[2]) for p in patches]}".encode())
        for patch in patches:
            weights = getattr(patch[1], "weights", patch[1])
            for i, part in enumerate(weights if isinstance(weights, (tuple, list)) else [weights]):
                if isinstance(part, Tensor):
                    add(str(i), part)
    return digest.hexdigest()[:32]


# Folders --------------------------------------------------------------------------------------------------------------


def dataset_roots() -> dict[str, Path]:
    """The folders that datasets may come from, by the name shown in front of the path."""
    roots = {"input": Path(folder_paths.get_input_directory())}
    known = folder_paths.folder_names_and_paths.get("datasets")
    for i, folder in enumerate(known[0] if known else [Path(folder_paths.base_path) / "datasets"]):
        roots["datasets" if i == 0 else f"datasets{i + 1}"] = Path(folder)
    return roots


def captioner_folder() -> Path:
    return Path(folder_paths.models_dir) / "captioners"


def temp_folder() -> Path:
    return _made(Path(folder_paths.get_temp_directory()))


def output_folder() -> Path:
    return _made(Path(folder_paths.get_output_directory()))


def cache_folder() -> Path:
    return _made(Path(folder_paths.get_user_directory()) / "lora-atelier" / "cache")


def runs_folder() -> Path:
    """Where runs keep their state, history and sample pictures."""
    return _made(Path(folder_paths.get_output_directory()) / "lora-atelier")


def loras_folder() -> Path:
    """Where finished LoRA files go: a subfolder of the first ``loras`` folder, so that every stock loader lists them."""
    return _made(Path(folder_paths.get_folder_paths("loras")[0]) / "lora-atelier")


def lora_name(path: Path) -> str:
    """How the stock loaders list this file; its plain name when it lies elsewhere."""
    for root in folder_paths.get_folder_paths("loras"):
        try:
            return str(path.resolve().relative_to(Path(root).resolve()))
        except ValueError:
            continue
    return path.name


def lora_path(name: str) -> Path:
    """The file that the stock loaders list under this name."""
    found = folder_paths.get_full_path("loras", name)
    if found is None:
        raise AtelierError(f"start from: there is no LoRA called {name}; refresh the page and choose one that is listed.")
    return Path(found)


def lora_files() -> list[str]:
    """The LoRA files as the stock loaders list them, safetensors only."""
    return [name for name in folder_paths.get_filename_list("loras") if name.lower().endswith(".safetensors")]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# Progress, interrupt, memory --------------------------------------------------------------------------------------------


def progress(total: int) -> Callable[..., None]:
    """``advance(step, preview=None)``: moves the node's bar, shows a PIL picture in the node, and raises when cancelled."""
    bar = comfy.utils.ProgressBar(total)

    def advance(step: int, preview: Any = None) -> None:
        bar.update_absolute(step, total, ("JPEG", preview, 512) if preview is not None else None)
        check_interrupt()

    return advance


def check_interrupt() -> None:
    """Raises the host's own interrupt when the person pressed cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def is_interrupt(error: BaseException) -> bool:
    return type(error).__name__ == "InterruptProcessingException"


def torch_device() -> torch.device:
    return comfy.model_management.get_torch_device()


def free_bytes(device: torch.device) -> int:
    """What is free on a device, by the host's own measure."""
    return int(comfy.model_management.get_free_memory(device))


def free_memory() -> None:
    """Give back what models that are no longer used have held."""
    gc.collect()
    comfy.model_management.soft_empty_cache()


def make_room(needed: int, device: torch.device) -> None:
    """Unload so many of the host's models from the device that ``needed`` bytes are free; it loads them again when asked."""
    comfy.model_management.free_memory(needed, device)
    comfy.model_management.soft_empty_cache()


def samplers() -> list[str]:
    return list(comfy.samplers.KSampler.SAMPLERS)


def schedulers() -> list[str]:
    return list(comfy.samplers.KSampler.SCHEDULERS)


def status_of(node_id: str) -> Callable[[str], None]:
    """A function that writes one line of text under the node with this id."""

    def show(line: str) -> None:
        try:
            from server import PromptServer
        except ImportError:
            return
        instance = getattr(PromptServer, "instance", None)
        if instance is not None and hasattr(instance, "send_progress_text"):
            instance.send_progress_text(line, node_id)

    return show


def shown_picture(path: Path) -> dict[str, str]:
    """How the canvas finds a picture in the output folder."""
    relative = path.resolve().relative_to(output_folder().resolve())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}


# Model files, by their headers alone --------------------------------------------------------------------------------------

MODEL_WIDGETS = {"ckpt_name": "checkpoints", "unet_name": "diffusion_models"}
"""The stock loaders' widgets, and the folders that they list."""


def model_file(widget: str, name: str) -> Path:
    """The file that a loader lists under ``name``; AtelierError for anything that is not in its list."""
    folder = MODEL_WIDGETS.get(widget)
    if folder is None or name not in folder_paths.get_filename_list(folder):
        raise AtelierError(f"{widget}: {name!r} is not in the list of this loader; refresh the page and choose one that is.")
    return Path(folder_paths.get_full_path_or_raise(folder, name))


def _detected(header: Header) -> tuple[Any, dict[str, Tensor], str] | None:
    """The host's configuration of the model in a file, with the tensors (without contents) and the prefix it was found by."""
    from comfy import model_detection

    tensors = {k: v for k, v in header.tensors().items() if not k.endswith((".comfy_quant", "scaled_fp8"))}
    prefix = model_detection.unet_prefix_from_state_dict(tensors)
    found = model_detection.model_config_from_unet(tensors, prefix, metadata=header.metadata)
    if found is not None:
        return found, tensors, prefix
    bare = comfy.utils.state_dict_prefix_replace(dict(tensors), {prefix: ""}, filter_keys=True) or tensors
    found = model_detection.model_config_from_unet(bare, "", metadata=header.metadata)
    if found is None:
        converted = model_detection.convert_diffusers_mmdit(bare, "")
        if converted is None:
            found = model_detection.model_config_from_diffusers_unet(bare)
        else:
            bare, found = converted, model_detection.model_config_from_unet(converted, "")
    return None if found is None else (found, bare, "")


def family_of(header: Header) -> str | None:
    """The host's name of the family (as ``Model.family``) of the model in a file; None if it knows none."""
    try:
        found = _detected(header)
    except Exception as error:  # the host's detection meets a file that it was not written for
        log.info("the host could not tell a model's family: %s", error)
        return None
    return None if found is None else type(found[0]).__name__


def outline(header: Header) -> Model | None:
    """The model in a file as layers without any weights, for counting; None if the host cannot make one."""
    try:
        found = _detected(header)
        if found is None:
            return None
        config, tensors, prefix = found
        config.set_inference_dtype(torch.float16, None)
        empty = config.get_model(tensors, prefix, device="meta")
        return Model(SimpleNamespace(model=empty, model_options={}, object_patches={}))
    except Exception as error:  # many families, many ways to ask for what a header does not hold
        log.info("a model's layers could not be counted: %s", error)
        return None


# Server -------------------------------------------------------------------------------------------------------------------


def _server() -> Any:
    """The host's server, or None where a graph runs without one; nothing is imported to find out."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


def add_routes(table: Any) -> bool:
    """Lets the server answer an aiohttp table of routes too; only before it starts. False without a server."""
    server = _server()
    if server is None:
        return False
    for route in table:
        server.routes.route(route.method, route.path)(route.handler)
    return True


def send(event: str, data: dict[str, Any]) -> None:
    """Tells every open page; from any thread."""
    server = _server()
    if server is not None:
        server.send_sync(event, data)


def memory() -> tuple[int, int]:
    """(in use, there is) in bytes, on the device that models work on."""
    management = comfy.model_management
    device = management.get_torch_device()
    total = int(management.get_total_memory(device))
    return total - int(management.get_free_memory(device)), total
