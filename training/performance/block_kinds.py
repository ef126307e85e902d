"""Kinds of blocks: blocks that are alike share compiled code, and each kind has code of its own that torch's caches hang on.

Alike are blocks of one class whose weights have the same shapes and whose inputs had, when they were first met, the same sizes.
The first compilation of a kind is for those very sizes; torch makes a second one for any size as soon as another comes. With one
cache for all kinds it would take the widths of a UNet's levels for sizes that vary.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

Pattern = tuple[bool, ...]
"""Which of a block's tensors carry a gradient, in the order of ``tensors_in``."""
ROW = "transformer_blocks"
"""Where a UNet's transformer has its blocks, which are alike and of which SDXL's has up to ten."""
PLACE = frozenset({"block", "block_index", "block_type", "total_blocks", "transformer_index"})
"""What the host notes in a network's options for patches: where the block stands that runs now."""
NOTES = PLACE | {
    "sigmas", "sample_sigmas", "cond_or_uncond", "uuids", "activations_shape", "original_shape", "grid_sizes", "img_slice",
    "reference_image_num_tokens", "optimized_attention_override", "prefetch_dynamic_vbars", "patches", "patches_replace",
    "wrappers", "callbacks",
}  # fmt: skip
"""What it notes there in all. Where there is more, somebody may ask for the place."""
_numbers = itertools.count()
PATCHES = ("patches", "patches_replace", "wrappers", "callbacks")


def regions(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The parts of a network that are compiled: its blocks, and of a UNet's transformers their own."""
    found: list[nn.Module] = []
    for block in blocks:
        row = getattr(block, ROW, None)
        found += row if isinstance(row, nn.ModuleList) else [block]
    return found


def tensors_in(*values: object) -> Iterator[Tensor]:
    """Tensors among ``values``, in lists and tuples too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors_in(*value)


def carries(*values: object) -> Pattern:
    return tuple(tensor.requires_grad for tensor in tensors_in(*values))


class Kind:
    """What is known of the blocks of one kind."""

    def __init__(self, name: str, function: object, compiled: Callable[..., object]):
        self.name = name
        """Their class."""
        self.function = function
        """What computes them: the class's, or what somebody has put on a block."""
        self.compiled = compiled
        """Its compiled twin."""
        self.ready = False
        """Whether a whole step with them has been seen, so that they can be compiled."""
        self.plain = ""
        """Why they stay plain; empty while they need not."""
        self._place: dict[str, object] | None = None
        self._passes: dict[tuple[int, Pattern], bool] = {}
        self._raised: dict[int, Pattern] = {}

    def note(self, block: nn.Module, inputs: Sequence[object], found: object) -> None:
        """What a plain pass shows: which inputs carried a gradient, and whether what ``block`` ``found`` does."""
        self._passes[id(block), carries(*inputs)] = any(carries(found))
        self._raised.clear()
        for options in filter(_unplaced, inputs):
            if self._place is None and isinstance(options, dict):
                self._place = {key: options[key] for key in PLACE & options.keys()}

    def learns(self, block: nn.Module, given: Pattern) -> bool:
        """Whether a gradient comes back through a pass like this, as far as is known."""
        return self._passes.get((id(block), given), True)

    def __call__(
        self, forward: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object], given: Pattern
    ) -> object:
        """The compiled pass of a block whose own is ``forward``. All blocks are told the same of what would be compiled for:

        Its inputs carry a gradient where those of some block do. The first block's come from nothing that learns; a gradient for
        them costs next to nothing. And all stand where the first stands, if nobody has a patch that asks.
        """
        marks = iter(self._wanted(given))
        notes: list[tuple[dict[str, object], dict[str, object]]] = []

        def same(value: object) -> object:
            if not isinstance(value, dict) or self._place is None or not _unplaced(value):
                return _raise(value, marks)
            notes.append((value, {k: v for k, v in value.items() if k not in PLACE} | self._place))
            return notes[-1][1]

        own = [forward.__self__] if isinstance(forward, types.MethodType) and self.function is not forward else []
        found = self.compiled(*own, *map(same, args), **{name: same(value) for name, value in kwargs.items()})
        for options, noted in notes:
            options.update((key, value) for key, value in noted.items() if key not in PLACE)
        return found

    def _wanted(self, given: Pattern) -> Pattern:
        if len(given) not in self._raised:
            some = [seen for (_, seen), learns in self._passes.items() if learns and len(seen) == len(given)]
            self._raised[len(given)] = tuple(map(any, zip(*some, strict=True))) if some else given
        return self._raised[len(given)]


class Kinds:
    """The kinds of a network's blocks. ``compile`` makes of a function its compiled twin."""

    def __init__(self, compile: Callable[[Callable[..., object]], Callable[..., object]]):
        self._compile = compile
        self._of: dict[nn.Module, Kind] = {}
        self._kinds: dict[Hashable, Kind] = {}

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._kinds.values())

    def of(self, block: nn.Module, forward: Callable[..., object], inputs: Sequence[object]) -> Kind:
        """The kind that ``block``, whose usual ``forward`` is asked for ``inputs``, belongs to from its first pass on."""
        own = isinstance(forward, types.MethodType) and isinstance(forward.__func__, types.FunctionType)
        function: Any = forward.__func__ if own and isinstance(forward, types.MethodType) else forward
        found = self._of.get(block)
        if found is None or found.function is not function:
            weights = tuple((name, p.shape, p.dtype) for name, p in block.named_parameters())
            key = function, weights, tuple((t.shape, t.dtype) for t in tensors_in(*inputs))
            if key not in self._kinds:
                self._kinds[key] = Kind(type(block).__name__, function, self._compile(_copy(function) if own else function))
            found = self._of[block] = self._kinds[key]
        return found


def _raise(value: object, marks: Iterator[bool]) -> object:
    if isinstance(value, Tensor):
        if not next(marks) or value.requires_grad:
            return value
        return value.detach().requires_grad_().clone()  # not a leaf, which could not be changed in place
    if isinstance(value, (list, tuple)) and any(True for _ in tensors_in(value)):
        kind: Any = type(value)
        items = [_raise(item, marks) for item in value]
        return kind(*items) if hasattr(value, "_fields") else kind(items)
    return value


def _unplaced(options: object) -> bool:
    """Whether these are a network's options in which nobody asks for the place."""
    return isinstance(options, dict) and NOTES.issuperset(options) and not any(map(options.get, PATCHES))


def _copy(function: types.FunctionType) -> types.FunctionType:
    """The same function with code of its own, by which torch keeps what it compiles, and with a name of its own, by which it
    keeps what sizes it has met."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_numbers)}")
    twin = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
