"""Sampling through SAMPLER, SIGMAS and GUIDER wires: what other nodes have made to draw with, in place of a node's own widgets.

A guider belongs to the graph, and is left as it was found: a copy of it draws, with the model and the prompts of the moment.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
from torch import Tensor

from ..config.sampling import SamplerSettings, Sampling
from ..errors import AtelierError, counted
from ..protocols import CanvasText
from . import alterations

OF_TEXT = {
    "cross_attn", "pooled_output", "attention_mask", "model_conds", "uuid", "deepstack_embeds", "visual_pos_masks",
    "lyrics_strength", "is_empty",
}  # fmt: skip
OF_TEXT_TOO = ("conditioning_", "t5xxl_")
"""What a text encoder gives beside its tokens, by whole names and by how they begin: none of it stays in a conditioning whose
text is another."""
OF_DRAWING = {"model_patcher", "model_options", "original_conds", "conds", "inner_model", "loaded_models"}
"""Attributes of a guider that are its model's, its conditionings', or there only while it draws."""
LONGEST = 90
"""Characters of what a sampler is called."""
Plain = (bool, int, float, str, type(None))
Kind = TypeVar("Kind", SamplerSettings, Sampling)


@dataclass(frozen=True, eq=False)
class Wired:
    """What came through the wires; None: the widgets count."""

    sampler: Any = None
    sigmas: Any = None
    guider: Any = None

    def __bool__(self) -> bool:
        return any(one is not None for one in (self.sampler, self.sigmas, self.guider))

    def check(self, model: Any, *, in_pauses: bool = False) -> None:
        """AtelierError for what cannot be drawn with, by ``model`` as the graph knows it; ``in_pauses`` of a training."""
        if self.sampler is not None and not callable(getattr(self.sampler, "sample", None)):
            raise AtelierError(f"sampler: a {type(self.sampler).__name__} came through the wire, which is no SAMPLER.")
        if self.sigmas is not None:
            _check_sigmas(self.sigmas)
        if self.guider is not None:
            _check_guider(self.guider, model, in_pauses)

    def remarks(self, model: Any) -> list[str]:
        """What may be otherwise than one thinks, a sentence each."""
        said = []
        its = type(model)(self.guider.model_patcher) if self.guider is not None else model
        if not (model.draws_alike(its) or its.sampling_identity() == model.sampling_identity()):
            said.append(
                "guider: other nodes have laid something else on its model than on the one of this node, which is what pictures "
                "are drawn with. Connect the same MODEL to both."
            )
        if self.sigmas is not None:
            first, last, most = float(self.sigmas[0]), float(self.sigmas[-1]), float(model.sampling.sigma_max)
            if first < 0.9 * most:
                said.append(
                    f"sigmas: they begin at {first:g}, and this model's noise at {most:g}, so pictures begin with less noise "
                    "than it expects of an empty one. Connect the whole schedule, with denoise 1."
                )
            if last > 0.05 * most:
                said.append(f"sigmas: they end at {last:g}, so noise stays in the pictures. Connect a schedule that ends at 0.")
        return said

    def unused(self, prefix: str = "") -> str:
        """A sentence on the widgets that do not count beside the wires, which begin with ``prefix``; empty without wires."""
        left: dict[str, list[str]] = {}
        if self.sampler is not None:
            left["sampler"] = ["sampler" if prefix else "sampler_name"]
        if self.sigmas is not None:
            left["sigmas"] = ["scheduler", "steps"]
        if self.guider is not None:
            left["guider"] = ["cfg", *([] if self.hears_negative else ["negative"])]
        if not left:
            return ""
        widgets = [f"{prefix}{name}" for names in left.values() for name in names]
        came = "it came through its wire" if len(left) == 1 else "they came through their wires"
        return f"{', '.join(left)}: {came}, so {', '.join(widgets)} {'is' if len(widgets) == 1 else 'are'} not used."

    @property
    def hears_negative(self) -> bool:
        """Whether a negative prompt counts."""
        return self.guider is None or "negative" in self.guider.original_conds

    @property
    def cfg(self) -> float | None:
        """The guidance of the guider, where that is one number."""
        own = _parameters(self.guider) if self.guider is not None else {}
        cfg = own.get("cfg")
        return float(cfg) if len(own) == 1 and isinstance(cfg, (int, float)) else None

    def told(self, settings: Kind) -> Kind:
        """``settings`` as they are told and kept: in the words and numbers of what is used in their place."""
        out: Any = settings
        if self.sampler is not None:
            out = replace(out, sampler=_sampler_name(self.sampler))
        if self.sigmas is not None:
            ends = f"{float(self.sigmas[0]):.4g} to {float(self.sigmas[-1]):.4g}"
            out = replace(out, scheduler=f"sigmas {ends}", steps=len(self.sigmas) - 1)
        if self.guider is not None:
            out = replace(out, sampler=f"{out.sampler} through {_guider_name(self.guider)}", cfg=float(_own_cfg(self.guider)))
            if not self.hears_negative and hasattr(out, "negative"):
                out = replace(out, negative="")
        found: Kind = out
        return found

    def identity(self) -> str:
        """A fingerprint of all that the wires decide of a picture, the same in every session; empty without wires.

        Where something cannot be told apart it is never the same twice, so nothing is found again that may be another picture.
        """
        if not self:
            return ""
        parts: dict[str, Any] = {"sampler": self.sampler}
        if self.sigmas is not None:
            parts["sigmas"] = [float(one) for one in self.sigmas]
        if self.guider is not None:
            parts["guider"] = f"{type(self.guider).__module__}.{type(self.guider).__qualname__}"
            parts["fields"] = {k: v for k, v in vars(self.guider).items() if k not in OF_DRAWING}
            parts["laid"] = {
                name: [_laid(one) if name in ("positive", "negative") else _without(one, {"uuid"}) for one in entries]
                for name, entries in self.guider.original_conds.items()
            }
            parts["options"] = _own_options(self.guider)
        said, whole = alterations.of_wire(parts)
        salt = "" if whole else uuid.uuid4().hex
        return hashlib.sha256(f"{said}{salt}".encode("utf-8", "surrogatepass")).hexdigest()[:16]

    @property
    def draws_batches(self) -> bool:
        """Whether several pictures in one batch are what each would be alone."""
        if self.sampler is not None:
            if type(self.sampler) is not comfy.samplers.KSAMPLER:
                return False
            if not all(isinstance(one, Plain) for one in self.sampler.extra_options.values()):
                return False
        return self.guider is None or _row_by_row(self.guider)

    def draw(
        self,
        model: Any,
        settings: SamplerSettings,
        noise: Tensor,
        empty: Tensor,
        positive: CanvasText,
        negative: CanvasText,
        *,
        seed: int,
        callback: Callable[[int, Tensor, Tensor, int], None],
        lead: Callable[[Any], Any] = lambda sampler: sampler,
    ) -> Tensor:
        """What the stock SamplerCustomAdvanced gives from ``empty``; ``lead`` may put another sampler before the chosen one.

        What no wire brings is as in the stock nodes for it: a sampler by its name (KSamplerSelect), levels by the scheduler's
        (BasicScheduler; beside a sampler's name those that KSampler gives it), guidance by the number (CFGGuider).
        """
        sampler = self.sampler if self.sampler is not None else comfy.samplers.sampler_object(settings.sampler)
        guider = self._guider(model, settings, positive, negative)
        latents: Tensor = guider.sample(
            noise, empty, lead(sampler), self._levels(model, settings), callback=callback, disable_pbar=True, seed=seed
        )
        return latents.to(comfy.model_management.intermediate_device())

    def _levels(self, model: Any, settings: SamplerSettings) -> Tensor:
        if self.sigmas is not None:
            return self.sigmas.clone()  # type: ignore[no-any-return]
        levels: Tensor
        if self.sampler is not None:
            levels = comfy.samplers.calculate_sigmas(model.sampling, settings.scheduler, settings.steps).cpu()
        else:
            levels = comfy.samplers.KSampler(
                model.patcher, steps=settings.steps, device=model.device, sampler=settings.sampler,
                scheduler=settings.scheduler, denoise=1.0, model_options=model.patcher.model_options,
            ).sigmas  # fmt: skip
        return levels

    def _guider(self, model: Any, settings: SamplerSettings, positive: CanvasText, negative: CanvasText) -> Any:
        """What guides, with this model and these prompts; the graph's own stays as it is."""
        if self.guider is None:
            guider = comfy.samplers.CFGGuider(model.patcher)
            guider.set_conds(positive, negative)
            guider.set_cfg(settings.cfg)
            return guider
        guider = copy.copy(self.guider)
        own = _own_options(self.guider)
        guider.model_patcher, guider.model_options = model.patcher, model.patcher.model_options if own is None else own
        guider.original_conds = dict(self.guider.original_conds)
        for name, said in (("positive", positive), ("negative", negative)):
            if entries := guider.original_conds.get(name):
                laid = _laid(entries[0])
                guider.original_conds[name] = [{**laid, **one} for one in comfy.sampler_helpers.convert_cond(said)]
        return guider


NOTHING_WIRED = Wired()


def _check_sigmas(sigmas: Any) -> None:
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1:
        raise AtelierError(f"sigmas: a {type(sigmas).__name__} came through the wire, which is no row of noise levels.")
    if len(sigmas) < 2:
        raise AtelierError(
            f"sigmas: {counted(len(sigmas), 'level')} came through the wire, which is no step. Connect a scheduler with at least "
            "one step, and denoise above 0."
        )
    levels = sigmas.tolist()
    if not all(map(math.isfinite, levels)):
        raise AtelierError("sigmas: they hold NaN or infinite numbers. Connect another scheduler.")
    if levels[-1] < 0 or levels[0] <= levels[-1] or any(a < b for a, b in itertools.pairwise(levels)):
        raise AtelierError(
            f"sigmas: they go from {levels[0]:g} to {levels[-1]:g} and do not fall all the way to 0 or above, so no picture "
            "comes of them. Connect a scheduler as it is, without Flip Sigmas."
        )


def _check_guider(guider: Any, model: Any, in_pauses: bool) -> None:
    name = type(guider).__name__
    conds = getattr(guider, "original_conds", None)
    if not isinstance(conds, dict) or not hasattr(guider, "model_patcher") or not callable(getattr(guider, "sample", None)):
        raise AtelierError(
            f"guider: a {name} came through the wire, in which no model and prompts can take the places of others."
        )
    if not conds.get("positive"):
        raise AtelierError(
            f"guider: {_short(guider)} has no positive conditioning whose text the prompt could take the place of. Connect "
            "another, such as CFGGuider."
        )
    for which in ("positive", "negative"):
        if len(conds.get(which, ())) > 1:
            raise AtelierError(
                f"guider: its {which} conditioning consists of {len(conds[which])} parts, and the node's prompt can take "
                "the place of one. Connect a single CLIP Text Encode to it, without Conditioning (Combine)."
            )
    if any(
        key not in OF_DRAWING and hasattr(value, "model") and hasattr(value, "patches") for key, value in vars(guider).items()
    ):
        raise AtelierError(
            f"guider: {_short(guider)} draws with a second model, on which a LoRA would not lie. Connect one that draws with a "
            "single model, such as CFGGuider."
        )
    entries = [one for ones in conds.values() for one in ones]
    if any("hooks" in one for one in entries):
        raise AtelierError("guider: hooks lie on its conditionings, which change the model while it draws. Leave them out.")
    nets = [one["control"] for one in entries if one.get("control") is not None]
    if any(net.get_extra_hooks() for net in nets):
        raise AtelierError("guider: its ControlNet has hooks, which change the model while it draws. Leave them out.")
    if in_pauses and (nets or any("gligen" in one or "additional_models" in one for one in entries)):
        raise AtelierError(
            "guider: another model, such as a ControlNet, lies on its conditionings, for which there is no room in the pauses of "
            "a training. Leave it out here; Epoch Weight Grid can draw with it."
        )
    its = guider.model_patcher
    if its.model is not model.base and type(model)(its).identity() != model.identity():
        raise AtelierError(
            f"guider: its model ({type(its.model.model_config).__name__}) is another one than the model that pictures are drawn "
            f"with ({model.family}). Connect the same MODEL to the guider and to this node."
        )


def _row_by_row(guider: Any) -> bool:
    """Whether it treats each picture of a batch by itself, as far as is known of it."""
    stock = comfy.samplers.CFGGuider
    own = {name for kind in type(guider).__mro__ if issubclass(kind, stock) and kind is not stock for name in vars(kind)}
    own = {name for name in own if not (name.startswith("__") and name not in ("__call__",))}
    is_dual = type(guider).__name__ == "Guider_DualCFG" and type(guider).__module__.endswith("nodes_custom_sampler")
    if not isinstance(guider, stock) or own - {"set_conds", "set_cfg", *(["predict_noise"] if is_dual else [])}:
        return False
    others = [one for name, ones in guider.original_conds.items() if name not in ("positive", "negative") for one in ones]
    texts = [one.get("cross_attn") for one in others]
    return all(not isinstance(text, Tensor) or len(text) == 1 for text in texts)


def _own_options(guider: Any) -> Any:
    """A guider's model options where they are others than its model's; None where not."""
    own = getattr(guider, "model_options", None)
    return None if own is guider.model_patcher.model_options else own


def _laid(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What other nodes have laid on a conditioning, such as Flux's guidance, without its text."""
    return {key: value for key, value in entry.items() if key not in OF_TEXT and not key.startswith(OF_TEXT_TOO)}


def _without(entry: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in names}


def _parameters(guider: Any) -> dict[str, Any]:
    return {k: v for k, v in vars(guider).items() if k not in OF_DRAWING and isinstance(v, (bool, int, float, str))}


def _own_cfg(guider: Any) -> float:
    cfg = getattr(guider, "cfg", 1.0)
    return cfg if isinstance(cfg, (int, float)) and math.isfinite(cfg) else 1.0


def _short(guider: Any) -> str:
    """A guider's name, as the stock nodes are called that make it."""
    name = type(guider).__name__
    return f"{name.removeprefix('Guider_')}Guider" if name.startswith("Guider_") else name


def _guider_name(guider: Any) -> str:
    own = {name: value for name, value in _parameters(guider).items() if name != "cfg"}
    return f"{_short(guider)}{_in_brackets(own)}"[:LONGEST]


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    name = getattr(function, "__name__", "").removeprefix("sample_").removesuffix("_function") or type(sampler).__name__
    return f"{name}{_in_brackets(getattr(sampler, 'extra_options', None) or {})}"[:LONGEST]


def _in_brackets(values: Mapping[str, Any]) -> str:
    plain = {k: v for k, v in values.items() if isinstance(v, (bool, int, float, str))}
    said = ", ".join(f"{k} {v:g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())
    return f" ({said})" if said else ""


__all__ = ["NOTHING_WIRED", "Wired"]
