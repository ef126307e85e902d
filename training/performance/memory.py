"""Memory need of a run, before it starts: formulas, and one pass that is measured rather than guessed.

Bytes everywhere. What the driver, the allocator's gaps and a library's work space take comes on top, hence "about".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..config import OptimizerConfig, TrainingConfig
from ..tensors.method_patch import patched
from ..tensors.precision import has_native_support
from .activation_offload import SMALLEST, can_offload, place, places
from .block_offload import on_device
from .eight_bit_layers import spared
from .thrift import Thrift

if TYPE_CHECKING:
    from torch.multiprocessing.reductions import StorageWeakRef

GB, MB = 10**9, 10**6
MARGIN = 1.1
"""What is needed times this should be free."""
# Bytes that an optimizer keeps for each number, as its states have them.
STATES: Mapping[str, int] = {
    "AdamW": 8, "Lion": 4, "Prodigy": 16, "DAdaptAdam": 12, "DAdaptAdamW": 12, "AdamWScheduleFree": 8, "SGD": 4,
    "Lion8bit": 4,
}  # fmt: skip
GATHERED = 2
"""How often a block's weights are there while they are gathered and laid out."""
FULL_BELOW = 4096
"""bitsandbytes keeps the states of smaller tensors in 32 bits."""


@dataclass(frozen=True)
class Block:
    """What autograd keeps of one picture's pass through a block."""

    inside: int
    inputs: int
    """What enters it; under checkpointing that is all that is kept of it."""
    flops: int = 0
    """What computing it once more costs; 0 where nobody could count."""


@dataclass(frozen=True)
class Activations:
    """What autograd keeps of one picture's forward pass."""

    blocks: tuple[Block, ...]
    outside: int
    small: int
    """What is too small for offloading."""
    order: tuple[int, ...] = ()
    """The blocks as the pass goes through them; empty: as they are listed."""

    @property
    def inside(self) -> int:
        """Within blocks."""
        return sum(block.inside for block in self.blocks)

    @property
    def inputs(self) -> int:
        return sum(block.inputs for block in self.blocks)

    @property
    def largest(self) -> int:
        return max((block.inside for block in self.blocks), default=0)

    def needed(self, thrift: Thrift, config: TrainingConfig, pictures: int) -> int:
        """At the same time, for a batch of so many pictures. Steps that are recorded keep theirs in a pool of the same size."""
        one = self.largest + self.small if thrift.activations_away else self.most(thrift.recomputed)
        passes = 2 if config.loss.preservation and config.loss.held_at is not None else 1
        return one * pictures * passes

    def most(self, recomputed: Collection[int]) -> int:
        """Of one picture if these blocks are computed twice.

        As the backward pass comes to such a block, what later ones kept is gone, and the block's inner values are there again.
        """
        kept = most = self.outside
        for i in self.order or range(len(self.blocks)):
            block = self.blocks[i]
            kept += block.inputs if i in recomputed else block.inside
            most = max(most, kept + block.inside if i in recomputed else kept)
        return most


@dataclass(frozen=True)
class Weights:
    """Bytes of everything that is frozen, as it is stored."""

    blocks: tuple[int, ...]
    """Of the model's blocks, each."""
    outside: int
    spared: tuple[int, ...] = ()
    """How much less each block takes where its weights are held in eight bits."""

    @classmethod
    def of(cls, blocks: Sequence[nn.Module], everything: Iterable[Tensor]) -> Weights:
        sizes = tuple(bytes_of([*block.parameters(), *block.buffers()]) for block in blocks)
        return cls(sizes, bytes_of(everything) - sum(sizes), tuple(map(spared, blocks)))

    def held_sizes(self, thrift: Thrift) -> list[int]:
        """Of the blocks, each, in the format in which they are held."""
        less = self.spared if self.spared and thrift.eight_bits else (0,) * len(self.blocks)
        return [size - by for size, by in zip(self.blocks, less, strict=True)]

    def needed(self, thrift: Thrift) -> int:
        """On the device."""
        blocks = self.held_sizes(thrift)
        if thrift.shards > 1:
            # The block that is computed, the next one on its way, and what FSDP gathers both in before it lays them out.
            return self.outside + math.ceil(sum(blocks) / thrift.shards) + GATHERED * sum(sorted(blocks)[-2:])
        return on_device(self.outside, blocks, thrift.away)


@dataclass(frozen=True)
class Measured:
    """What decides a run's need, whatever is done for less."""

    weights: Weights
    activations: Activations
    shapes: tuple[tuple[int, ...], ...]
    """Of all that is trained."""

    def need(self, thrift: Thrift, config: TrainingConfig, pictures: int) -> Need:
        """On the model's device, for a batch of so many pictures."""
        return Need(
            model=self.weights.needed(thrift),
            adapter=adapter_needs(self.shapes, config),
            activations=self.activations.needed(thrift, config, pictures),
        )


@dataclass(frozen=True)
class Need:
    """What a run needs on the model's device."""

    model: int
    adapter: int
    """Weights, gradients, averages and the optimizer's states."""
    activations: int

    @property
    def total(self) -> int:
        return self.model + self.adapter + self.activations


def measure(
    blocks: Sequence[nn.Module], weights: Iterable[Tensor], forward: Callable[[], object], device: torch.device | None = None
) -> Activations:
    """Runs ``forward`` once, with gradients, and counts what autograd wants to keep besides ``weights``, on ``device`` if given,
    and what its blocks compute.

    Nothing is kept, so it needs no more memory than a pass without gradients. ``blocks`` are what checkpointing would compute
    again; nothing stays on them.
    """
    staying = places(weights)
    seen: dict[int, StorageWeakRef] = {}
    outer, inner = _Tally(staying, seen, device), {block: _Tally(staying, seen, device) for block in blocks}
    entered: dict[int, StorageWeakRef] = {}
    inputs = {block: _Tally(staying, entered, device) for block in blocks}
    order: dict[nn.Module, None] = {}
    flops, now = _Flops(), [outer]

    def counted(block: nn.Module, block_forward: Callable[..., object]) -> Callable[..., object]:
        tally, entering = inner[block], inputs[block]

        def run(*args: object, **kwargs: object) -> object:
            order.setdefault(block)
            for value in (*args, *kwargs.values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor) and tensor.is_floating_point():
                        entering.add(tensor)
            now.append(tally)
            before = flops.total
            try:
                return block_forward(*args, **kwargs)
            finally:
                now.pop()
                tally.flops += flops.total - before

        return run

    def refuse(_: object) -> Tensor:
        raise RuntimeError("this pass was measured; it has no gradient")

    watched = torch.autograd.graph.saved_tensors_hooks(lambda tensor: now[-1].add(tensor), refuse)
    with patched(blocks, "forward", counted), watched, torch.enable_grad(), flops:
        forward()
    places_of = {block: i for i, block in enumerate(blocks)}
    passed = [places_of[block] for block in (*order, *(block for block in blocks if block not in order))]
    return Activations(
        tuple(Block(inner[block].bytes, inputs[block].bytes, inner[block].flops) for block in blocks),
        outside=outer.bytes,
        small=sum(tally.small for tally in (outer, *inner.values())),
        order=tuple(passed) if passed != sorted(passed) else (),
    )


UNLISTED: Mapping[str, Callable[..., int]] = {
    "_slow_conv2d_forward": lambda out, _x, weight, *_: 2 * out.numel() * weight[0].numel(),
    "_int_mm": lambda out, a, *_: 2 * out.numel() * a.shape[1],
}
"""Operations of products that torch's list of formulas lacks: (what came out, *arguments) -> floating-point operations."""


class _Flops(TorchDispatchMode):
    """Counts floating-point operations by torch's own formulas: products, convolutions and attention."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        found = func(*args, **given)
        if func._overloadpacket.__name__ in UNLISTED:
            self.total += UNLISTED[func._overloadpacket.__name__](found, *args)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            with suppress(Exception):  # a form that it does not know; the block counts for cheaper then
                self.total += int(formula(*args, **given, out_val=found))
        return found


class _Tally:
    """Bytes of storages, each counted once however many views it has, by the first of the tallies that share ``seen``."""

    def __init__(self, staying: set[int], seen: dict[int, StorageWeakRef], device: torch.device | None):
        self.bytes = self.small = self.flops = 0
        self._staying, self._seen, self._device = staying, seen, device

    def add(self, tensor: Tensor) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        where = place(tensor)
        if where is None or where in self._staying or self._device not in (None, tensor.device):
            return
        seen = self._seen.get(where)
        if seen is not None and not seen.expired():
            return
        storage = tensor.untyped_storage()
        self._seen[where] = StorageWeakRef(storage)  # the same place, once that storage is gone, belongs to another tensor
        self.bytes += storage.nbytes()
        self.small += storage.nbytes() if storage.nbytes() < SMALLEST else 0


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of ``tensors``, as they are stored."""
    return sum(tensor.nbytes for tensor in tensors)


def adapter_needs(shapes: Sequence[Sequence[int]], config: TrainingConfig) -> int:
    """Weights of these shapes and their gradients in fp32, the average if there is one, and the optimizer's states.

    In a step there are also the gradients that autograd hands over, before they are added up: 4 bytes a number in fp32. In a half
    format they take 2, and the weights as the layers read them 2 more, so the sum is the same.
    """
    numbers = sum(math.prod(shape) for shape in shapes)
    return 4 * (4 if config.ema_decay else 3) * numbers + state_bytes(config.optimizer, shapes)


def kept_bytes(shapes: Sequence[Sequence[int]], config: TrainingConfig) -> int:
    """What a run of weights of these shapes keeps on the disk to go on: these, the average if there is one, and the optimizer's
    states."""
    numbers = sum(math.prod(shape) for shape in shapes)
    return 4 * (2 if config.ema_decay else 1) * numbers + state_bytes(config.optimizer, shapes)


def state_bytes(config: OptimizerConfig, shapes: Iterable[Sequence[int]]) -> int:
    """What the optimizer keeps for parameters of these shapes.

    Adafactor and CAME keep a mean for each row and each column of a matrix in place of its numbers (Shazeer & Stern 2018).
    """
    total = 0
    for shape in shapes:
        numbers = math.prod(shape)
        means = numbers // shape[-1] + numbers // shape[-2] if len(shape) > 1 else numbers
        if config.name == "Adafactor":
            total += 4 * means + (4 * numbers if config.args.get("beta1") is not None else 0)
        elif config.name == "CAME":
            total += 4 * numbers + (8 * means if len(shape) > 1 else 4 * numbers)
        elif config.name == "ProdigyPlusScheduleFree":
            total += _of_prodigy_plus(config, shape)
        elif config.name == "Muon":
            total += (4 if len(shape) > 1 and min(shape[0], numbers // shape[0]) > 1 else 8) * numbers
        elif config.eight_bit:
            full = 8 if config.name == "AdamW8bit" else 4
            total += (full // 4 if numbers >= FULL_BELOW else full) * numbers
        elif config.name != "SGD" or config.args.get("momentum", 0.9):
            total += STATES[config.name] * numbers
    return total


def _of_prodigy_plus(config: OptimizerConfig, shape: Sequence[int]) -> int:
    """The weights (or a mean gradient) in fp32, a second moment as the product of a row and a column where a side is long
    enough, and of every eleventh number where it began and the sum of its gradients, in bf16."""
    numbers, args = math.prod(shape), config.args
    rows, columns = sorted(shape)[-2:] if len(shape) > 1 else (1, 1)
    factored = args.get("factored", True) and not args.get("use_focus", False) and len(shape) > 1 and max(shape) >= 32
    second = numbers // rows + numbers // columns if factored else numbers
    return 4 * numbers + 4 * second + (2 if args.get("use_speed", False) else 4) * -(-numbers // 11)


# In words --------------------------------------------------------------------------------------------------------------


def line(need: Need, free: int) -> str:
    """``needs about 9.8 GB: 5.1 model, 0.2 LoRA and optimizer, 4.5 activations; 23 GB free``"""
    unit, name = (GB, "GB") if need.total >= GB else (MB, "MB")
    model, adapter, activations = (f"{size / unit:.1f}" for size in (need.model, need.adapter, need.activations))
    parts = f"{model} model, {adapter} LoRA and optimizer, {activations} activations"
    return f"needs about {need.total / unit:.1f} {name}: {parts}; {size_text(free)} free"


def shared(weights: Weights, thrift: Thrift) -> str:
    """What of the model each of several processes holds, and what a step brings from the others."""
    whole = sum(weights.held_sizes(thrift))
    others = whole * (thrift.shards - 1) / thrift.shards
    return (
        f"--shard: each of the {thrift.shards} processes holds {size_text(math.ceil(whole / thrift.shards))} of the "
        f"{size_text(whole)} of the model's blocks, and gathers the rest twice a step, which is {size_text(round(2 * others))}"
    )


def size_text(size: int) -> str:
    """``23 GB``, ``4.5 MB``, ``31 kB``."""
    unit, name = (GB, "GB") if size >= GB else (MB, "MB") if size >= MB / 10 else (1000, "kB")
    return f"{size / unit:.0f} {name}" if size >= 10 * unit else f"{size / unit:.1f} {name}"


def fits(need: Need, free: int) -> bool:
    return need.total * MARGIN <= free


def what_helps(config: TrainingConfig, thrift: Thrift, pictures: int, device: torch.device, spares: bool = True) -> str:
    """What of the settings can be changed to need less, most effective first; ``pictures`` is the batch size.

    ``spares``: whether weights could be held in fewer bits than they are.
    """
    ways = []
    if not thrift.recomputes_all:
        ways.append("switch gradient_checkpointing on")
    if pictures > 1:
        ways.append("lower batch_size (accumulate makes up for it)")
    if not thrift.activations_away and can_offload(device) and thrift.shards == 1:
        ways.append("switch offload_activations on")
    if thrift.shards > 1:
        ways.append("start more processes, so that each holds a smaller part of the model")
    elif not thrift.away and can_offload(device):
        ways.append("set offload_blocks above 0")
    if config.precision == "fp32" and has_native_support(torch.bfloat16, device):
        ways.append("set precision to bf16")
    if config.base_weights == "as loaded" and spares:
        ways.append("set base_weights to fp8 or int8 (another LoRA, by rounding)")
    ways.append("lower resolution")
    if config.text.encoders != "none":
        ways.append("set text_encoder to none")
    if config.network.rank > 16:
        ways.append("lower rank")
    if config.optimizer.name in ("AdamW", "Prodigy", "DAdaptAdam", "DAdaptAdamW") and device.type == "cuda":
        ways.append("choose AdamW8bit")
    if config.optimizer.name == "Lion" and device.type == "cuda":
        ways.append("choose Lion8bit")
    return f"What helps, most first: {', '.join(ways)}."
