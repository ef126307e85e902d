"""LoRA file format: which name a layer has in the file, and what stands under it.

The names are the host's own (it knows every dialect it can load); here only the dialect is chosen that the other tools read
too: kohya's for Stable Diffusion and Flux, PEFT's ``diffusion_model.*.lora_A`` for the rest.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache

import torch
from torch import Tensor, nn

from ..families import family_named
from ..tensors.finite import check_finite, first_lost, is_finite
from ..tensors.transfer import to_cpu
from .adapter import Adapter
from .adapter_layer import AdapterLayer
from .base_layer import weight_shape
from .lora import LoRALayer, shares
from .lycoris import LoHaLayer, LoKrLayer, ProductLayer
from .slices import LayerSlice, Pair, join

log = logging.getLogger("lora-atelier")

# What may follow a layer's name: pairs of A and B in the order in which they are looked for, and LyCORIS' prefixes.
PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
    (".lora_A", ".lora_B"),
)
ODD = (RuntimeError, KeyError, IndexError, AttributeError, TypeError, ZeroDivisionError, OverflowError)
"""What tensors of shapes that do not belong together, or that are missing, make of the formulas."""
PREFIXES: Mapping[type[ProductLayer], str] = {LoHaLayer: ".hada_", LoKrLayer: ".lokr_"}
PART = re.compile(
    r"(\.alpha|\.dora_scale|\.lora_magnitude_vector(\.weight)?|\.lora_mid\.weight|\.hada_[wt][12](_[ab])?|\.lokr_[wt][12](_[ab])?|"
    + "|".join(re.escape(part) for pair in PAIRS for part in pair)
    + r")\Z"
)


# Of a text encoder's layer the host knows several names; SD1.x and 2.x number nothing, all others count their encoders.
ONE_ENCODER = ("lora_te_", "text_encoders.")
MANY_ENCODERS = ("lora_te1_", "lora_te2_", "lora_te3_", "lora_te_", "text_encoders.")


def file_name_of(layer: str, known: Sequence[str], family: str) -> str:
    """The name of ``layer`` (dotted, under ``diffusion_model.`` or behind ``text_encoder.``) in the file.

    ``known`` are the names under which the host would find this layer.
    """
    known = [name for name in known if not isinstance(name, LayerSlice)]
    if layer.startswith("text_encoder."):
        for prefix in ONE_ENCODER if family.startswith(("SD15", "SD2")) else MANY_ENCODERS:
            for name in known:
                if name.startswith(prefix):
                    return name
        raise ValueError(f"the host knows no LoRA name for {layer}")
    generic = {"lora_unet_": "lora_unet_" + layer.replace(".", "_"), "diffusion_model.": "diffusion_model." + layer}
    for prefix in family_named(family).key_format:
        if generic.get(prefix) in known:
            return generic[prefix]
        for name in known:
            if name.startswith(prefix) and name not in generic.values():
                return name
    raise ValueError(f"the host knows no LoRA name for {layer}")


def to_file(
    adapter: Adapter,
    names: Mapping[str, Sequence[str]],
    family: str,
    dtype: torch.dtype,
    layers: Mapping[str, nn.Module] | None = None,
) -> dict[str, Tensor]:
    """Tensors for the safetensors file, as the field writes them: the factors as they were learnt, beside ``.alpha``.

    Not so a LoRA in PEFT's names, whose readers (PEFT, diffusers, ai-toolkit) know no alpha of a layer, or not for every family:
    there the scale is in the factors, as diffusers itself puts it, so that alpha equals rank and every loader agrees.

    ``layers`` are those the adapter sits beside; they are needed for weight decomposition only, whose scales depend on them.
    A layer with numbers beyond the reach of ``dtype`` is stored in float32. NotFinite for one that is NaN or infinite itself.
    """
    out = {}
    for layer, branch in adapter.branches.items():
        name = file_name_of(layer, names[layer], family)
        parts, alpha = _parts(branch, peft=not name.startswith("lora_"))
        for part, tensor in parts.items():
            out[name + part] = tensor.detach().to(dtype)
        out[name + ".alpha"] = _alpha(alpha, dtype)
        if branch.magnitude is not None:
            if layers is None:
                raise ValueError("the file of an adapter with weight decomposition depends on the layers; none were given")
            # Always float32: an error here is one of the whole weight, not of its change.
            out[name + ".dora_scale"] = branch.stored_magnitude(layers[layer]).detach().float()
    found = dict(zip(out, to_cpu(list(out.values())), strict=True))
    if first_lost(found) is None:
        return found
    beyond = [name for name, tensor in found.items() if not is_finite(tensor)]
    if dtype != torch.float32:
        exact = to_file(adapter, names, family, torch.float32, layers)
        stems = {PART.sub("", name) for name in beyond}
        found |= {name: tensor for name, tensor in exact.items() if PART.sub("", name) in stems}
        log.warning("%d layers have numbers beyond %s and are stored in float32, such as %s", len(stems), dtype, beyond[0])
    else:
        check_finite("LoRA", found)
    return found


@cache
def _alpha(value: float, dtype: torch.dtype) -> Tensor:
    """``value`` as a tensor; in float32 where ``dtype`` cannot hold it exactly. Only read."""
    exact = torch.tensor(value, dtype=torch.float32)
    return exact.to(dtype) if exact.to(dtype).float() == exact else exact


def _parts(branch: AdapterLayer, peft: bool) -> tuple[dict[str, Tensor], float]:
    """(the factors of a branch by what follows the layer's name in the file, its alpha, which in PEFT's names is the rank)."""
    if isinstance(branch, LoRALayer):
        if peft:
            of_down, of_up = shares(branch.scale, _lean(branch))
            return {".lora_B.weight": branch.up * of_up, ".lora_A.weight": branch.down * of_down}, float(branch.rank)
        return {".lora_up.weight": branch.up, ".lora_down.weight": branch.down}, branch.scale * branch.rank
    assert isinstance(branch, ProductLayer)
    prefix = PREFIXES[type(branch)]
    out: dict[str, Tensor] = {f"{prefix}{name}": p for name in branch.names if (p := getattr(branch, name)) is not None}
    if ".lokr_w2_b" in out:
        out[".lokr_w2_b"] = out[".lokr_w2_b"].flatten(1)  # a matrix also for a convolution, as LyCORIS writes it
    return out, branch.scale * branch.rank


def _lean(branch: LoRALayer) -> float:
    """How many times A is larger than B, which after a short training is near the smallest numbers of half precision; 1 where
    nothing has to be parted."""
    sizes = [factor.detach().square().mean().sqrt().item() for factor in (branch.down, branch.up)]
    return sizes[0] / sizes[1] if branch.scale != 1 and all(0 < size < math.inf for size in sizes) else 1.0


def lost(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor of a file that holds NaN or infinite numbers which count, None if there is none.

    The alpha of a LoKr with two whole halves counts for nothing: ai-toolkit writes 9999999999, which half precision lacks.
    """
    whole = {name.removesuffix(".lokr_w1") for name in tensors if name.endswith(".lokr_w1")}
    unused = {f"{stem}.alpha" for stem in whole if f"{stem}.lokr_w2" in tensors}
    return first_lost({name: tensor for name, tensor in tensors.items() if name not in unused})


def read(
    tensors: Mapping[str, Tensor], layers: Mapping[str, nn.Module], names: Mapping[str, Sequence[str]]
) -> tuple[dict[str, AdapterLayer], list[str]]:
    """(branch by layer, names in the file that none of ``layers`` has)."""
    stems: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        part = PART.search(key)
        stem = key[: part.start()] if part else key
        stems.setdefault(stem, {})[key[len(stem) :]] = tensor
    branches = {}
    used = set()
    for layer, module in layers.items():
        there = [name for name in names.get(layer, ()) if name in stems]
        for name in there:
            branch = None if isinstance(name, LayerSlice) else _branch(name, stems[name], module)
            if branch is not None:
                branches[layer] = branch
                used.add(name)
                break
        else:
            pieces = [name for name in there if isinstance(name, LayerSlice)]
            joined = _joined(pieces, stems, module) if pieces else None
            if joined is not None:
                branches[layer] = joined
                used.update(map(str, pieces))
    return branches, [stem for stem in stems if stem not in used]


def _branch(name: str, parts: Mapping[str, Tensor], module: nn.Module) -> AdapterLayer | None:
    """The branch that the tensors under one name describe, None when they are of a kind that is not known here."""
    branch: AdapterLayer | None = None
    try:
        alpha = float(parts[".alpha"]) if ".alpha" in parts else None
        for down, up in PAIRS:
            if down in parts and up in parts:
                branch = _lora(parts[down], parts[up], parts.get(".lora_mid.weight"), alpha, module)
                break
        else:
            for kind, prefix in PREFIXES.items():
                tensors = {part[len(prefix) :]: t for part, t in parts.items() if part.startswith(prefix)}
                if tensors:
                    branch = _product(kind, tensors, alpha, module)
    except (*ODD, ValueError) as error:
        raise ValueError(f"{name} has other sizes than this model's layer, {tuple(weight_shape(module))}") from error
    if branch is not None:
        _take_magnitude(name, branch, parts, module)
    return branch


def _joined(pieces: Sequence[LayerSlice], stems: Mapping[str, Mapping[str, Tensor]], module: nn.Module) -> LoRALayer | None:
    """The LoRA of a layer of which the file has pieces; None when one of them is not a plain LoRA."""
    try:
        return _joined_pieces(pieces, stems, module)
    except ODD as error:
        raise ValueError(f"{pieces[0]} has other sizes than this model's layer, {tuple(weight_shape(module))}") from error


def _joined_pieces(
    pieces: Sequence[LayerSlice], stems: Mapping[str, Mapping[str, Tensor]], module: nn.Module
) -> LoRALayer | None:
    pairs = []
    for piece in pieces:
        parts = stems[piece]
        found = next(((parts[down], parts[up]) for down, up in PAIRS if down in parts and up in parts), None)
        if found is None or any("dora" in part or "magnitude" in part for part in parts):
            return None
        down, up = (factor.float().flatten(1) for factor in found)
        if len(up) != piece.rows:
            raise ValueError(f"{piece} has other sizes than this model's layer, {(piece.rows, *weight_shape(module)[1:])}")
        alpha = float(parts[".alpha"]) if ".alpha" in parts else len(down)
        pairs.append(Pair(down, up * (alpha / len(down)), piece.start))
    return _lora(*join(pairs, weight_shape(module)[0]), None, None, module)


def _lora(down: Tensor, up: Tensor, mid: Tensor | None, alpha: float | None, module: nn.Module) -> LoRALayer:
    """A core between the two (LoCon's Tucker form) becomes part of ``down``, which is the same map."""
    if mid is not None:
        down = torch.einsum("ijhw,jc->ichw", mid.float(), down.float().flatten(1))
    rank = down.shape[0]
    branch = LoRALayer(module, rank, 1.0 if alpha is None else alpha / rank)
    branch.down.data = down.float().reshape(branch.down.shape).clone()
    branch.up.data = up.float().reshape(branch.up.shape).clone()
    return branch


def _product(kind: type[ProductLayer], tensors: dict[str, Tensor], alpha: float | None, module: nn.Module) -> ProductLayer:
    decomposed = next((tensors[n] for n in ("w2_b", "w1_b") if n in tensors), None)
    if decomposed is None and alpha is not None and not math.isfinite(alpha):
        alpha = None  # there is no rank to divide it by
    rank = decomposed.shape[0] if decomposed is not None else max(1, round(alpha or 1))
    if kind is LoKrLayer:
        if "t2" in tensors:  # the core becomes part of w2_b, which is the same map; ComfyUI cannot apply it where it was
            tensors["w2_b"] = torch.einsum("ijhw,jn->inhw", tensors.pop("t2").float(), tensors["w2_b"].float())
            tensors["w2_a"] = tensors["w2_a"].t()
        kernel = weight_shape(module)[2:]
        for name in ("w2", "w2_b"):
            if name in tensors:
                tensors[name] = tensors[name].reshape(tensors[name].shape[0], -1, *kernel)
    branch = kind(module, rank, 1.0 if alpha is None else alpha / rank, {n: t.clone() for n, t in tensors.items()})
    if branch.made_shape() != (branch.shape[0], math.prod(branch.shape[1:])):
        raise KeyError("sizes")
    return branch


def _take_magnitude(name: str, branch: AdapterLayer, parts: Mapping[str, Tensor], module: nn.Module) -> None:
    stored = parts.get(".dora_scale")
    plain = next((parts[key] for key in (".lora_magnitude_vector.weight", ".lora_magnitude_vector") if key in parts), None)
    given = stored if stored is not None else plain
    if given is None:
        return
    if given.numel() != branch.shape[0] or (stored is not None and given.shape[0] != branch.shape[0]):
        raise ValueError(f"{name} has a DoRA scale for every input; only the kind with one for every output can be used")
    branch.decompose(module, stored)
    if stored is None and branch.magnitude is not None:
        branch.magnitude.data = given.float().flatten().to(branch.magnitude.device).clone()
