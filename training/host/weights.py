"""Weights of the host's models: fingerprints, inference tensors and their stand-ins, moving aside and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import comfy.model_management
import torch
from torch import Tensor, nn

from ..network.slices import LayerSlice
from ..tensors.inference_tensors import is_ordinary, ordinary
from ..tensors.transfer import to_cpu


def patched(before: Any, after: Any) -> int:
    """How many weights ``after`` changes that ``before`` does not; both are the host's patchers."""
    return sum(len(patches) > len(before.patches.get(key, ())) for key, patches in after.patches.items())


def lay_aside(patcher: Any) -> None:
    """Takes ``patcher`` off the device, and whatever else holds the very same model there."""
    management = comfy.model_management
    others = [loaded for loaded in management.current_loaded_models if getattr(loaded.model, "model", None) is not patcher.model]
    with torch.inference_mode():  # moved weights stay what they were
        management.free_memory(1e30, patcher.load_device, keep_loaded=others)


def names_of_layers(keys: Mapping[str, Any], prefix: str) -> dict[str, list[str]]:
    """The host's table from names in files to weights, turned round and by layer; last those for a part of a layer."""
    suffix = ".weight"
    out: dict[str, list[str]] = {}
    for name, key in keys.items():
        if isinstance(key, str) and key.startswith(prefix) and key.endswith(suffix):
            out.setdefault(key[len(prefix) : -len(suffix)], []).extend(_spellings(name))
    for name, key in keys.items():
        # (weight, (dimension, start, length)); a third says that the numbers also need turning round, which no piece here does.
        if isinstance(key, tuple) and len(key) == 2 and key[1][0] == 0:
            layer = key[0].removeprefix(prefix).removesuffix(suffix)
            if layer in out:
                out[layer].append(LayerSlice(name, *key[1][1:]))
    return out


def _spellings(name: str) -> list[str]:
    """``name``, and as diffusers writes it today where the host only knows how it was before it used PEFT."""
    if ".processor.to_" not in name:
        return [name]
    today = name.replace(".processor.to_", ".to_")
    return [name, today + ".0" if today.endswith(".to_out") else today]


Place = dict[Any, Any] | list[Any]
Swap = tuple[Place, Any, Tensor, Tensor]


def without_inference_tensors(modules: Iterable[nn.Module]) -> list[Swap]:
    """Ordinary stand-ins for all other tensors of ``modules``: (dictionary or list, key, original, stand-in).

    Besides parameters and buffers these are what modules remember from a pass in a graph, such as the sines of positions.
    """
    swapped: list[Swap] = []
    made: dict[Tensor, Tensor] = {}
    for module in modules:
        for place in _places(module):
            for key, tensor in list(place.items() if isinstance(place, dict) else enumerate(place)):
                if not isinstance(tensor, Tensor) or is_ordinary(tensor):
                    continue
                stand_in = _stand_in(tensor, made)
                if stand_in is not tensor:
                    place[key] = stand_in
                    swapped.append((place, key, tensor, stand_in))
    return swapped


def _stand_in(tensor: Tensor, made: dict[Tensor, Tensor]) -> Tensor:
    """An ordinary one for ``tensor``, with whatever was noted on it; one for all places that share it, which ``made`` tells."""
    if tensor not in made:
        view = ordinary(tensor)
        if view is not tensor:
            view = nn.Parameter(view, requires_grad=False) if isinstance(tensor, nn.Parameter) else view
            vars(view).update(vars(tensor))
        made[tensor] = view
    return made[tensor]


def _places(module: nn.Module) -> Iterator[Place]:
    """Where ``module`` itself keeps tensors: parameters, buffers, attributes, and dictionaries and lists among these."""
    yield module._parameters
    yield module._buffers
    own = vars(module)
    yield own
    yield from (value for name, value in own.items() if name not in INNER and isinstance(value, (dict, list)))


def mended(patcher: Any) -> Any:
    """``patcher``, of whose model every tensor can be used.

    Whoever has moved it outside of inference mode (a node that trains, say) has left hybrids, from which not even the host's own
    nodes can sample. Ordinary tensors over the same storage take their places for good.
    """
    made: dict[Tensor, Tensor] = {}
    for module in patcher.model.modules() if patcher is not None else ():
        for place in (module._parameters, module._buffers):
            for key, tensor in place.items():
                if tensor is not None and not tensor.is_inference() and not is_ordinary(tensor):
                    place[key] = _stand_in(tensor, made)
    return patcher


INNER = frozenset(vars(nn.Module()))
"""Attributes that every module has."""


def put_back(swapped: list[Swap]) -> None:
    for place, key, original, stand_in in swapped:
        now: Any = place.get(key) if isinstance(place, dict) else place[key] if key < len(place) else None
        # If the host itself put another tensor here meanwhile (it moved the weight), that one is right.
        if now is stand_in and now.untyped_storage().data_ptr() == original.untyped_storage().data_ptr():
            place[key] = original


def _of_patch(value: Any) -> Iterator[str | Tensor]:
    """Everything in a patch that decides what it does: numbers, kind and strengths, those of a merged model's patches too."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _of_patch(sorted(value.items(), key=lambda item: str(item[0])))
    elif isinstance(value, (tuple, list)):
        yield f"{len(value)} of"
        for part in value:
            yield from _of_patch(part)
    elif value is None or isinstance(value, (bool, int, float, str)):
        yield repr(value)
    else:  # an adapter of the host's, or a function
        yield getattr(value, "__qualname__", type(value).__qualname__)
        yield from _of_patch(getattr(value, "weights", None))


def _stored(module: nn.Module, patcher: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """``module``'s state, as it was stored, without what is patched into it for now.

    While another copy of the model is in use (with a LoRA, say) its patches are merged into the shared weights; the patcher then
    keeps the originals aside, under names that start with ``prefix``, and those are the ones that count.
    """
    originals: dict[str, Any] = {}
    for key, kept in getattr(patcher, "backup", {}).items():
        weight = getattr(kept, "weight", kept)
        # A packed one stands in a state dict as its numbers and scales.
        originals |= weight.state_dict(key) if hasattr(weight, "state_dict") else {key: weight}
    for name, tensor in module.state_dict().items():
        tensor = originals.get(prefix + name, tensor)
        if isinstance(tensor, Tensor):
            yield name, tensor


def _some_of(tensor: Tensor) -> Tensor:
    """A few of its values, evenly spread."""
    flat = ordinary(tensor).detach().reshape(-1)
    return flat[:: max(1, flat.numel() // 16)][:17]


@torch.no_grad()
def same_weights(patcher: Any, twin: Any, name: str) -> bool:
    """Whether the module ``name`` of both models has the same weights, as far as a few of each tensor tell.

    The twin's may be stored in another number format.
    """
    mine, its = (dict(_stored(getattr(one.model, name), one, f"{name}.")) for one in (patcher, twin))
    if {key: tensor.shape for key, tensor in mine.items()} != {key: tensor.shape for key, tensor in its.items()}:
        return False
    keys = [key for key in mine if mine[key].numel()]
    ours = to_cpu([_some_of(mine[key]).to(its[key].dtype).float() for key in keys])
    theirs = to_cpu([_some_of(its[key]).float() for key in keys])
    return all(map(torch.equal, ours, theirs))


def identity_of(module: nn.Module, patcher: Any, prefix: str = "", *, patches: bool = True) -> str:
    """Sha256 over every tensor's name, shape, type and a few of its values, and over the ``patches`` laid on it.

    What is merged into its weights for now, under names that start with ``prefix``, doesn't count.
    """
    said: list[str | Tensor] = []
    laid: Mapping[Any, Any] = getattr(patcher, "patches", {}) if patches else {}

    def add(name: str, tensor: Tensor) -> None:
        if tensor.numel():
            said.extend((f"{name} {tuple(tensor.shape)} {tensor.dtype}", _some_of(tensor).float()))

    with torch.no_grad():
        for name, tensor in _stored(module, patcher, prefix):
            add(name, tensor)
        for key, ones in sorted(laid.items(), key=lambda item: str(item[0])):
            said.append(str(key))
            for part in _of_patch(ones):
                if isinstance(part, Tensor):
                    add("", part)
                else:
                    said.append(part)
        read = iter(to_cpu([part for part in said if isinstance(part, Tensor)]))
    digest = hashlib.sha256()
    for part in said:
        digest.update(part.encode() if isinstance(part, str) else next(read).numpy().tobytes())
    return digest.hexdigest()[:32]
