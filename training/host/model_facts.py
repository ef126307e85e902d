"""What is known of a loaded diffusion model: family, prediction, layers, number formats, fingerprints."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import torch
from comfy import lora as comfy_lora
from torch import Tensor, nn

from ..errors import AtelierError
from ..families import BESIDE, family_named
from ..network.base_layer import is_conv, is_linear, refusal
from ..performance.checkpointing import blocks_of
from ..protocols import Prediction
from . import alterations
from .weights import identity_of, mended, names_of_layers


class ModelFacts:
    """A loaded diffusion model, asked what it is; nothing is loaded or computed for it."""

    def __init__(self, patcher: Any):
        self.patcher = mended(patcher)
        self.base = patcher.model
        self._compute_dtype: torch.dtype | None = None

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
    def noise_scale(self) -> float:
        """Standard deviation of the noise that a flow model is made with, where the latents have about 1."""
        return float(getattr(self.sampling, "noise_scale", 1.0)) if self.prediction == "flow" else 1.0

    @property
    def is_mean_flow(self) -> bool:
        """Whether its network is told where a step ends too, as those are that were distilled into mean flows."""
        return getattr(self.base.diffusion_model, "time_r_in", None) is not None

    @property
    def few_steps_mark(self) -> str:
        """What of its layers, or of what other nodes have set, says that it was distilled for few steps; empty if nothing."""
        if self.is_mean_flow:
            return "its network is told where each step ends, which makes it a mean flow"
        if any("Distilled" in kind.__name__ for kind in type(self.sampling).__mro__):
            return "its sampling is set to that of a distilled model, such as LCM"
        return ""

    @property
    def patched_weights(self) -> int:
        """Weights on which other nodes have laid patches, such as LoRAs; what they inject beside the weights counts one each."""
        return len(self.patcher.patches) + self.injected

    @property
    def injected(self) -> int:
        """What other nodes inject beside the weights while the model works, such as a LoRA in bypass mode."""
        return sum(map(len, self.patcher.injections.values()))

    def drawing_bytes(self, cells: tuple[int, ...]) -> int:
        """What drawing one picture or film takes beside the weights, by the host's own measure; ``cells``: its latent's sides."""
        return int(self.base.memory_required([1, self.latent_channels, *cells]))

    @property
    def frames(self) -> bool:
        """Whether its latents are (B, C, T, H, W), of which a picture is one frame."""
        return getattr(self.patcher.get_model_object("latent_format"), "latent_dimensions", 2) == 3

    def check(self, wire: str = "model") -> None:
        """AtelierError, with the reason, if this model cannot be trained rightly, or be drawn with where it came in at another
        ``wire``."""
        family = family_named(self.family)
        if family.refused:
            raise AtelierError(f"{wire}: {self.family} {family.refused}")
        blank = torch.zeros(1, self.latent_channels, *([1] if self.frames else []), 8, 8)
        beside = None
        with suppress(KeyError, AttributeError, IndexError, RuntimeError):  # a family of tomorrow may want to be asked otherwise
            beside = self.base.concat_cond(noise=blank, latent_image=blank, device=blank.device)
        if beside is not None and not family.blank_beside:
            raise AtelierError(f"{wire}: this {self.family} {BESIDE}")
        why = next(filter(None, map(refusal, self.base.diffusion_model.modules())), None)
        if why is not None:
            raise AtelierError(f"{wire}: {why}")

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

    @property
    def is_paged(self) -> bool:
        """Whether the host pages its weights in and out while it works."""
        return bool(getattr(self.patcher, "is_dynamic", lambda: False)())

    @property
    def has_copies(self) -> bool:
        """Whether copies on other devices take part, which know nothing of what is attached here."""
        return bool(getattr(self.patcher, "get_additional_models_with_key", lambda _key: [])("multigpu"))

    def blocks(self) -> list[nn.Module]:
        """What gradient checkpointing may compute twice."""
        return blocks_of(self.base.diffusion_model, whole=True)

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
