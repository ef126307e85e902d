"""Alterations: what other nodes have laid on a MODEL, CLIP or VAE beside patches of weights, told apart and named.

Weights have numbers to compare. The rest is code: functions with what they enclose, objects in a module's place, options. Two of
them count as the same if they are of one name and hold the same numbers and words, in every session.
"""

from __future__ import annotations

import dis
import enum
import functools
import hashlib
import re
import types
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import comfy.model_base
import comfy.model_management
import comfy.utils
import torch
from torch import Tensor, nn

from ..tensors.inference_tensors import ordinary
from .weights import identity_of

DEEPEST = 12
"""Levels of containers and objects that are looked into."""
MOST_VALUES = 20_000
"""Containers and objects that are looked into for one function or object."""
MOST_NUMBERS = 4096
"""Numbers of a tensor that are read; of a larger one about as many, evenly spread."""
UNIQUE = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}|0x[0-9a-fA-F]{6,}")
"""Names that some nodes make anew for each copy."""
FOR_BOTH = ("injections", "weight_wrapper_patches", "hook_patches", "forced_hooks")
FOR_SAMPLING_ALONE = ("optimized_attention_override",)
"""Transformer options of which training makes no use."""
COMPILING = ("torch.compile", "torch_compile_kwargs")
"""Names under which the host notes that a network is compiled, which changes nothing but how fast it answers."""
_told: dict[int, tuple[weakref.ref[Any], str]] = {}


def of_training(patcher: Any, *, own_dtype: bool = True) -> str:
    """What has a part in the network's own answers; empty where there is nothing. ``own_dtype``: the number format counts."""
    options = patcher.model_options.get("transformer_options", {})
    return _digest(
        {
            "objects": {k: v for k, v in patcher.object_patches.items() if own_dtype or k != "manual_cast_dtype"},
            "options": {k: v for k, v in options.items() if k not in FOR_SAMPLING_ALONE},
            **{name: getattr(patcher, name, None) for name in FOR_BOTH},
        },
        patcher,
    )


def of_both(patcher: Any) -> bool:
    """Whether anything is laid on it that the host puts in place when it brings the weights, beside patches of these."""
    return any(holds(getattr(patcher, name, None)) for name in FOR_BOTH)


def of_sampling(patcher: Any) -> str:
    """What has a part in a picture that is drawn with it: the same, guidance, samplers' functions and wrappers."""
    return _digest({"training": of_training(patcher), **_of_drawing(patcher)}, patcher)


def _of_drawing(patcher: Any) -> dict[str, Any]:
    """What only has a part in drawing, and what it has in common with training."""
    wrappers = getattr(patcher, "wrappers", None) or {}
    return {
        "options": {k: v for k, v in patcher.model_options.items() if k not in COMPILING},
        "wrappers": {kind: {k: v for k, v in keyed.items() if k not in COMPILING} for kind, keyed in wrappers.items()},
        "callbacks": getattr(patcher, "callbacks", None),
        "models": {k: v for k, v in getattr(patcher, "additional_models", {}).items() if k != "multigpu"},
    }


def _digest(parts: Mapping[str, Any], patcher: Any) -> str:
    found = {name: value for name, value in parts.items() if holds(value)}
    said = _remembered(found, getattr(patcher, "model", None)) if found else ""
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()[:16] if found else ""


def of_wire(value: Any) -> tuple[str, bool]:
    """(what another node has made, in words that are the same in every session, whether they say all of it).

    Tensors are read whole.
    """
    teller = _Teller(numbers=None)
    return teller.tell(value), teller.is_whole


def holds(value: object) -> bool:
    """Whether there is anything in ``value``, whose dictionaries and lists may be nested and empty."""
    if isinstance(value, Mapping):
        return any(map(holds, value.values()))
    if isinstance(value, (list, tuple, set)):
        return any(map(holds, value))
    return value is not None and not (isinstance(value, str) and not value)  # an array compares by its numbers


class _Teller:
    """Says what values are, in words that are the same in every session."""

    def __init__(self, model: Any = None, numbers: int | None = MOST_NUMBERS) -> None:
        """``numbers``: how many of a tensor's are read at most; None: all."""
        self._network = getattr(model, "diffusion_model", None)
        self._numbers = numbers
        self.is_whole = True
        """Whether all was told; else there was too much, or something that is of one name only."""
        self._path: list[int] = []
        self._left = MOST_VALUES

    def tell(self, value: Any) -> str:
        if isinstance(value, str):
            return repr(UNIQUE.sub("?", value))
        if value is None or isinstance(value, (bool, int, float, complex, bytes, torch.dtype, torch.device)):
            return repr(value)
        if isinstance(value, enum.Enum):
            return f"{_name(type(value))}.{value.name}"
        if isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType)):
            return _name(value)
        if isinstance(value, Tensor):
            return _numbers(value, self._numbers)
        self._left -= 1
        if id(value) in self._path:
            return _name(type(value))
        if len(self._path) > DEEPEST or self._left < 0:
            self.is_whole = False
            return _name(type(value))
        self._path.append(id(value))
        try:
            return self._parts(value)
        finally:
            self._path.pop()

    def _parts(self, value: Any) -> str:
        if isinstance(value, Mapping):
            entries = sorted((self.tell(key), self.tell(part)) for key, part in value.items() if holds(part))
            return f"{{{', '.join(f'{key}: {part}' for key, part in entries)}}}"
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(self.tell, value))}]"
        if isinstance(value, (set, frozenset)):
            return f"<{', '.join(sorted(map(self.tell, value)))}>"
        if isinstance(value, functools.partial):
            return f"partial{self.tell([value.func, value.args, value.keywords])}"
        if isinstance(value, types.MethodType):
            return f"{_name(value.__func__)} of {self.tell(value.__self__)}"
        return self._code(value) if isinstance(value, types.FunctionType) else self._object(value)

    def _code(self, value: types.FunctionType) -> str:
        code = value.__code__
        # What it assigns itself while it works is a note of its own, and no setting.
        notes = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_DEREF", "DELETE_DEREF")}
        cells = zip(code.co_freevars, value.__closure__ or (), strict=True)
        enclosed = {name: _content(cell) for name, cell in cells if name not in notes}
        # Lambdas of one function share a name; what tells them apart is what they call and the constants in them.
        plain = [*code.co_names, *(c for c in code.co_consts if isinstance(c, (int, float, str)))]
        inside = [enclosed, value.__defaults__, value.__kwdefaults__, plain if value.__name__ == "<lambda>" else None]
        return f"{_name(value)}{self.tell(inside)}"

    def _object(self, value: Any) -> str:
        if hasattr(value, "object_patches") and hasattr(value, "patches"):  # a whole patcher
            laid = {"objects": value.object_patches, **_of_drawing(value), **{k: getattr(value, k, None) for k in FOR_BOTH}}
            return f"{_name(type(value))}({identity_of(value.model, value)}){self.tell(laid) if holds(laid) else ''}"
        if isinstance(value, comfy.model_base.BaseModel):
            # What is loaded into it at this moment, by whichever copy, is none of its own.
            return f"{_name(type(value))}({identity_of(value, _Loaded(value), patches=False)})"
        fields = dict(getattr(value, "__dict__", {}))
        if hasattr(fields.get("patcher"), "object_patches"):  # a CLIP or VAE, whose patcher says all of its network
            fields = {k: v for k, v in fields.items() if not isinstance(v, nn.Module)}
        numbers = self._numbers
        if isinstance(value, nn.Module):
            value = getattr(value, "_orig_mod", value)  # that of a compiled one
            if self._network is not None and any(value is module for module in self._network.modules()):
                return f"{_name(type(value))} of this network"
            self._numbers = MOST_NUMBERS  # it may have gigabytes of them
            fields = dict(value.state_dict())
            for place, module in value.named_modules():
                fields |= {f"{place}.{k}": v for k, v in vars(module).items() if not k.startswith("_") and k != "training"}
        for kind in type(value).__mro__:
            slots = vars(kind).get("__slots__", ())
            names = [slots] if isinstance(slots, str) else slots
            fields |= {k: getattr(value, k, None) for k in names if not k.startswith("__")}
        if not fields and not hasattr(value, "__dict__"):
            self.is_whole = False  # whatever it holds, it holds out of sight
        said = f"{_name(type(value))}{self.tell(fields)}"
        self._numbers = numbers
        return said


class _Loaded:
    """The originals of the weights that were changed for the copies of a model which are loaded now, as a patcher keeps them."""

    def __init__(self, model: nn.Module):
        self.backup: dict[str, Any] = {}
        for loaded in comfy.model_management.current_loaded_models:
            if loaded.model is not None and loaded.model.model is model:
                self.backup |= loaded.model.backup


def _remembered(value: Any, model: Any) -> str:
    """``value`` as it was when it was first seen: what a function counts while it is used is no setting of it."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(sorted(f'{key!r}: {_remembered(part, model)}' for key, part in value.items() if holds(part)))}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_remembered(part, model) for part in value)}]"
    known = _told.get(id(value))
    if known is not None and known[0]() is value:
        return known[1]
    said = _Teller(model).tell(value)
    key = id(value)

    def forget(_gone: object) -> None:
        _told.pop(key, None)

    with suppress(TypeError):  # some kinds cannot be referred to weakly
        _told[key] = weakref.ref(value, forget), said
    return said


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _numbers(value: Tensor, most: int | None = MOST_NUMBERS) -> str:
    with torch.no_grad():
        flat = ordinary(value).detach().reshape(-1)
        flat = flat[:: max(1, -(-flat.numel() // most)) if most else 1].cpu()
        plain = flat.double() if flat.is_floating_point() else flat
    return f"tensor{tuple(value.shape)} {value.dtype} {hashlib.sha256(plain.numpy().tobytes()).hexdigest()[:16]}"


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    return f"{getattr(value, '__module__', '')}.{name}"


@contextmanager
def objects_in_place(patcher: Any) -> Iterator[None]:
    """The network that all copies of a model share, with this copy's objects in it and not those of the copy that is loaded."""
    model, mine = patcher.model, getattr(patcher, "object_patches", {})
    wanted = {**getattr(patcher, "object_patches_backup", {}), **mine}
    before: dict[str, Any] = {}
    try:
        for key, value in wanted.items():
            try:
                before[key] = comfy.utils.set_attr(model, key, value)
            except AttributeError:
                continue  # of a part that only a loaded model has
        yield
    finally:
        for key, value in reversed(before.items()):
            comfy.utils.set_attr(model, key, value)
