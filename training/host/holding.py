"""Holding a MODEL for training: on its device, outside inference mode, differentiable, and afterwards as it was found."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import torch
from torch import nn

from ..config import BaseWeights
from ..families import family_named
from ..performance.block_offload import Traffic, kept_away, scattered
from ..performance.eight_bit_layers import in_eight_bits, remark
from ..performance.frozen_layers import lightened
from ..performance.out_of_place import Care
from ..performance.quantised_layers import unpacking
from ..performance.sharding import Shards
from . import alterations, in_place
from .answering import AnsweringModel
from .attention import differentiable_attention
from .text import TextEncoder
from .towers import outside
from .twins import beside_twin, put_twin_aside, resident
from .weights import lay_aside, put_back, without_inference_tensors

if TYPE_CHECKING:
    from typing_extensions import Self

held: list[HeldModel] = []
"""Models that a loop holds now, which nothing may put aside."""


class HeldModel(AnsweringModel):
    """A model that is trained beside."""

    def __init__(self, patcher: Any):
        super().__init__(patcher)
        self._room: int | None = None
        self._parts: dict[nn.Module, list[nn.Module]] = {}
        self._origin = patcher
        self._in_pauses: list[Any] = []
        self._base_weights: BaseWeights = "as loaded"

    def for_training(
        self, dtype: torch.dtype | None, base_weights: BaseWeights = "as loaded", guidance: float | None = None
    ) -> Self:
        """This model as the loop can hold it, with its arithmetic in ``dtype`` (None: as loaded); its weights stay as they are,
        but while it is held, for which ``base_weights`` may ask for eight bits. It is told this ``guidance`` where it hears any
        (None: what is usual).

        A model whose weights the host pages in op by op may lose them between forward and backward, so its resident twin is
        taken, which the host itself makes. AtelierError where the host's files have changed so that its gradient would be wrong.
        """
        in_place.check(self.base.diffusion_model)
        patcher = resident(self.patcher, "model")
        if dtype is not None and dtype != type(self)(patcher).compute_dtype:
            patcher = patcher.clone()
            patcher.set_model_compute_dtype(dtype)
        changed = type(self)(patcher)
        changed._compute_dtype, changed._origin, changed._base_weights = dtype, self.patcher, base_weights
        changed._guidance = guidance
        return changed

    def remark(self) -> str:
        """What comes of holding its weights otherwise than as loaded, in a sentence; empty where they are as loaded."""
        return remark(self.blocks(), self._base_weights) if self._base_weights != "as loaded" else ""

    def retire(self) -> None:
        """After a run: a twin that was made for it goes back to main memory; the graph's own model stays where it is."""
        put_twin_aside(self.patcher, self._origin)

    def for_pauses(self, other: HeldModel) -> Self:
        """``other`` as it draws in the pauses of a run on this model, which is ``for_training``."""
        patcher = beside_twin(other.patcher, self.patcher, self._origin)
        # Until ``retire``: where it dies first, the host takes the graph's patcher for it, and then never frees the twin.
        self._in_pauses.append(patcher)
        return type(self)(patcher)

    def has_more_patches(self, other: HeldModel) -> bool:
        """Whether this model, ``for_training``, is ``other`` with more patches on its weights."""
        return self._origin.model is other.patcher.model and self.patched_weights > other.patched_weights

    def is_same(self, other: HeldModel) -> bool:
        """Whether both are one model with the same patches, as the graph knows them."""
        mine, its = self.patcher, other.patcher
        if mine.model is not its.model or mine.injections or its.injections or mine.patches.keys() != its.patches.keys():
            return False
        return all(len(its.patches[key]) == len(ones) and _lie_on(its, key, ones) for key, ones in mine.patches.items())

    def draws_alike(self, other: HeldModel) -> bool:
        """Whether ``other`` is the same model with the same of everything, as the graph knows both."""
        return self.is_same(other) and alterations.of_sampling(self.patcher) == alterations.of_sampling(other.patcher)

    def is_laid_on(self, other: HeldModel) -> bool | None:
        """Whether what other nodes have laid on this model, ``for_training``, lies on ``other`` too; None: nobody knows."""
        if not other.patched_weights:
            return False
        alike = self._origin.model is other.patcher.model and not self.injected
        same = alike and all(_lie_on(other.patcher, key, ones) for key, ones in self.patcher.patches.items())
        return True if same else None

    def make_way(self, other: HeldModel) -> None:
        """After a pause this model goes back to main memory, unless its network is the one that ``other`` is trained on."""
        if self.base is not other.base:
            lay_aside(self.patcher)

    def leave_room(self, needed: int | None) -> None:
        """From the next ``hold`` on, so many bytes are to be free beside the weights; None: as many as there can be.

        The host puts other models aside for that, but only as far as it has to.
        """
        self._room = needed

    def always_asked(self, blocks: Sequence[nn.Module]) -> list[nn.Module]:
        """Those of the blocks that are gone through in every pass, with control pictures and without."""
        of_controls = family_named(self.family).of_controls
        if not of_controls:
            return list(blocks)
        names = {module: f"{name}." for name, module in self.base.diffusion_model.named_modules()}
        return [block for block in blocks if not re.match(of_controls, names[block])]

    @contextmanager
    def hold(self, text: TextEncoder | None = None, offload: float | Traffic | Shards = 0.0) -> Iterator[None]:
        """The model on its device, outside inference mode, differentiable, and afterwards exactly as it was found.

        Weights made by other nodes are inference tensors, which autograd refuses; meanwhile ordinary tensors over the very
        same storage stand in their places, so nothing is copied. ``text`` is held as well, for training it. The weights of the
        blocks that ``offload`` names, or of this share of them (0 to 1), stay in main memory until they are used; ``Shards``: a
        part of all blocks' weights comes to the device, and the rest from other processes.
        """
        blocks = self.blocks() if offload else []
        shards = offload if isinstance(offload, Shards) else None
        traffic = Traffic() if isinstance(offload, Shards) else offload
        if not isinstance(traffic, Traffic):
            traffic = Traffic(scattered(len(blocks), traffic))
        offloaded = self.always_asked(blocks) if shards else [blocks[i] for i in traffic.away]
        management = comfy.model_management
        patchers = [self.patcher, *([text.clip.patcher] if text is not None else [])]
        resting = text.resting if text is not None else None
        rounded = self._base_weights if self._base_weights != "as loaded" else None
        with torch.inference_mode(False), torch.enable_grad():
            # Asking for all memory makes the host put every other model aside, and leave in main memory what need not be on the
            # device; on a CPU it has no effect. What it moves in inference mode stays what a graph has made.
            stays_home = bool(offloaded) or rounded is not None
            room = 1e20 if self._room is None or stays_home else self._room
            if text is not None and resting:
                room += sum(weight.nbytes for weight in text.weights())  # what learns of it, which the host does not bring
            with torch.inference_mode():
                if (rounded or shards) and self.device.type != "cpu":
                    lay_aside(self.patcher)  # what is there already, the host would leave there
                if text is not None and resting:
                    lay_aside(text.clip.patcher)  # the host knows only all of it; what learns comes with what was left behind
                brought = [self.patcher] if resting else patchers
                management.load_models_gpu(brought, memory_required=room, force_full_load=not stays_home)
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
                    of_patcher = self._modules(patcher.model)
                    if resting and patcher is not self.patcher:
                        of_patcher = outside(of_patcher, resting)
                        stack.enter_context(resting.away(patcher.load_device))
                    if shards and away:
                        inside = {module for block in away for module in block.modules()}
                        of_patcher, away = [module for module in of_patcher if module not in inside], []
                    stack.enter_context(kept_away(away, of_patcher, patcher.load_device, traffic))
                if shards:
                    stack.enter_context(shards.on(self.base.diffusion_model, offloaded, self.device))
                stack.enter_context(differentiable_attention())
                stack.enter_context(in_place.out_of_place())
                stack.enter_context(unpacking(modules))
                stack.enter_context(lightened(self._modules(self.base), self.compute_dtype, self.device))
                yield

    def _modules(self, root: nn.Module) -> list[nn.Module]:
        """All of them, found when the model is held first; those of a loaded model stay, while their tensors may change."""
        if root not in self._parts:
            self._parts[root] = list(root.modules())
        return self._parts[root]


def _lie_on(patcher: Any, key: str, patches: Sequence[Any]) -> bool:
    """Whether the very same patches lie on the weight ``key`` of another copy."""
    there = patcher.patches.get(key, ())
    return all(any(one is its for its in there) for one in patches)
