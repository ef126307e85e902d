"""Answers of a loaded diffusion model, as training asks for them: its own output, for conditionings of the host's kind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import comfy.samplers
import torch
from comfy import sampler_helpers
from torch import Tensor, nn

from ..errors import AtelierError
from ..families import family_named
from ..objective.noise import expand_like
from ..performance.out_of_place import KERNELS, Care, OutOfPlace
from ..protocols import Conditions, EncodedText, Together
from ..tensors import references
from ..tensors.transfer import to_device
from .attention import attention
from .model_facts import ModelFacts
from .remembering import forgetting

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


class AnsweringModel(ModelFacts):
    """A model that is asked for its own answers, which autograd can pass."""

    def __init__(self, patcher: Any):
        super().__init__(patcher)
        self._care: Care | None = None
        self._guidance: float | None = None

    def _is_trusted(self, modules: Iterable[nn.Module] | None = None) -> bool:
        """Whether nothing but the network's own, known code runs when it is asked; ``modules`` are the network's."""
        kind = type(self.base.diffusion_model)
        return (kind.__module__, kind.__name__) in TRUSTED and not self._has_foreign(modules)

    @property
    def guidance(self) -> float | None:
        """What a guidance-distilled network is told; None for families that are told none."""
        usual = family_named(self.family).guidance
        return usual if usual is None or self._guidance is None else self._guidance

    @property
    def hears_guidance(self) -> bool:
        """Whether the network has an input for it."""
        place = getattr(self.base.diffusion_model, "guidance_in", None)  # which only passes on where it was not trained
        return self.guidance is not None and isinstance(place, nn.Module) and not isinstance(place, nn.Identity)

    def condition(self, text: EncodedText, x: Tensor, size: Mapping[str, float]) -> Conditions:
        """The host's conditioning objects of one picture.

        ``x`` is its latent (1, C, H, W); ``size`` may hold ``width``, ``height``, ``crop_w``, ``crop_h``, ``target_width`` and
        ``target_height`` in pixels, used by models with size conditioning, and ``frame_rate``, which only families are told that
        count a film's time in seconds.
        """
        if not family_named(self.family).told_rate:
            size = {key: value for key, value in size.items() if key != "frame_rate"}
        extras: dict[str, object] = {k: v for k, v in text.items() if k != "cond" and not references.is_numbered(k)}
        if latents := references.listed(text):
            extras[references.NAME] = latents
        told = {} if self.guidance is None else {"guidance": self.guidance}
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
        groups = [[i] for i in range(len(conditions))] if self.is_mean_flow else _alike(conditions)
        return [Together(tuple(group), self._merged([conditions[i] for i in group])) for group in groups]

    def _merged(self, conditions: list[Conditions]) -> Conditions:
        # Left to itself the host would wait for the device here; for lists, as those of control pictures, in every pass.
        return {k: _brought(v, self.device) for k, v in comfy.samplers.cond_cat(conditions).items()}

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
            with forgetting(self.base.diffusion_model):
                denoised = self.base.apply_model(x, sigma, transformer_options=options, **conditioning)
        finally:
            handle.remove()
        output = caught[-1]
        if not isinstance(output, Tensor) or output.shape != denoised.shape:
            raise AtelierError(f"model: {self.family} answers in a form that cannot be trained here.")
        return output.float()


def _brought(value: Any, device: torch.device) -> Any:
    """``value`` with the tensors in it on ``device``."""
    if isinstance(value, Tensor):
        return to_device(value, device)
    return type(value)(_brought(one, device) for one in value) if type(value) in (list, tuple) else value


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
