"""Activation memory from a forward pass on the meta device, before anything of the model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import host
from ..config import NetworkConfig
from ..errors import AtelierError
from ..families import family_named
from ..network.adapter import Adapter
from ..network.scope import adaptable_layers
from ..network.targets import select
from ..performance import memory
from ..step import answer, noised
from ..tensors import references
from ..tensors.autograd_context import AutogradContext

log = logging.getLogger("lora-atelier")


def activations(
    outline: host.Outline, network: NetworkConfig, size: tuple[int, int], controls: Sequence[tuple[int, int]] = ()
) -> memory.Activations | None:  # fmt: skip
    """What one picture of ``size`` (width, height in pixels) leaves for the backward pass, beside control pictures of such sizes.

    None for a family whose text encodings are not known, and for a network that cannot do without numbers.
    """
    text, family = outline.text(len(controls)), family_named(outline.family)
    if text is None:
        return None
    beside = references.numbered([outline.control(one) for one in controls])
    told: dict[str, Tensor | float | str] = {**text, **beside}
    if controls and family.edit_method:
        told[references.METHOD] = family.edit_method
    layers, _ = adaptable_layers(outline, None)
    chosen, learning = select(layers, network), family.without_untrainable(layers, bool(controls))
    chosen = {name: chosen[name] for name in learning if name in chosen}

    def forward() -> object:
        x0 = outline.latents_in(outline.latents(size))
        asked = noised(outline, x0, torch.ones(1), torch.zeros_like(x0), [told], [{}])
        return answer(outline, asked).square().mean()

    try:
        with torch.device("meta"), Shapes():
            adapter = Adapter.fresh(chosen, network, 0)
            with adapter.attached(chosen):
                return memory.measure(outline.blocks(), [*outline.weights(), *adapter.parameters()], forward)
    except AtelierError:
        raise
    except Exception as error:  # many families, many ways to ask for numbers
        log.info("the activations of %s could not be told: %s", outline.family, error)
        return None


class Shapes(TorchFunctionMode):
    """Lets ``.cpu()``, ``.to()`` and attention work on meta tensors."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given: dict[str, Any] = {
            name: value for name, value in (kwargs or {}).items() if name != "generator"
        }  # theirs is on another device
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | given
            return _Attention.apply(named["query"], named["key"], named["value"])
        # There is no way back to where numbers are.
        if func is Tensor.cpu and args[0].is_meta:
            return args[0]
        if func is Tensor.to and args[0].is_meta:
            args = (args[0], *map(_without_numbers, args[1:]))
            given = {name: _without_numbers(value) for name, value in given.items()}
        # Some numbers are made where no device is asked for; beside shapes they are shapes as well.
        if any(tensor.is_meta for tensor in _tensors((*args, *given.values()))):
            args, given = tuple(map(_shapes_of, args)), {name: _shapes_of(value) for name, value in given.items()}
        return func(*args, **given)


def _without_numbers(wish: object) -> object:
    """An argument of ``Tensor.to``: of a device only that there is one, of another tensor its number format."""
    if isinstance(wish, (str, torch.device)):
        return torch.device("meta")
    return wish.dtype if isinstance(wish, Tensor) else wish


def _tensors(values: Iterable[object]) -> Iterator[Tensor]:
    """Those among ``values`` and in the lists and tuples there."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _shapes_of(value: object) -> object:
    """``value`` with all its tensors on the meta device."""
    if isinstance(value, Tensor):
        return value if value.is_meta else value.to("meta")
    if type(value) is list or type(value) is tuple:
        return type(value)(map(_shapes_of, value))
    return value


class _Attention(torch.autograd.Function):
    """What a fused attention keeps: its inputs, its output and a number for each row, but no probabilities."""

    @staticmethod
    def forward(ctx: AutogradContext, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: AutogradContext, *gradients: Tensor) -> Any:
        raise NotImplementedError("there are no numbers to go back from")
