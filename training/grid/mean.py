"""Mean of several LoRA files: what the mean of their weight changes is as one file, and that file kept.

The mean of n changes is (D1 + ... + Dn) / n. A LoRA's change is scale * B A, so the sum of n of them is the product of the B side
by side and the A one below the other (the block form of the matrix product): a LoRA whose rank is the sum of theirs. Where all
files have one scale, as the epochs of a run do, 1/n goes into alpha and no number of the factors is touched. LoHa's and LoKr's
changes are added as well, but their sum is no LoHa or LoKr; the host lays such files on the model one after the other, at
strength/n each. What is no change that is added to a weight (DoRA's magnitudes, OFT's turns) has no such mean and is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import check_run_name
from ..errors import AtelierError, counted
from ..files import Serialised, is_file, read_tensors
from ..network import lora_file
from ..network.lora import shares
from ..runs.metadata import DYNAMIC, content_hashes, is_whole
from ..tensors.safetensors_header import read_header
from .file_names import MEAN_OF

Parts = Mapping[str, Tensor]
"""The tensors of a layer by what follows its name."""
CHANGES = (".diff", ".diff_b")
"""Whole changes of a weight and of a bias."""
NAMES = re.compile(r"(\.diff(_b)?)\Z")
OF_PAIRS = {part for pair in lora_file.PAIRS for part in pair} | {".lora_mid.weight", ".alpha"}
PRODUCTS = tuple(lora_file.PREFIXES.values())
NO_MEAN = ("dora_scale", "lora_magnitude_vector")
UNTRUE = ("ss_epoch", "ss_steps", "lora_atelier.step", "training_info")
"""Metadata of a saved file that say when it was saved."""


def read_whole(paths: Sequence[Path]) -> list[dict[str, Tensor]]:
    """The tensors of files, all of them numbers."""
    out = []
    for path in paths:
        out.append(read_tensors(path, "take it out of the grid, or train again"))
        if (bad := lora_file.lost(out[-1])) is not None:
            raise AtelierError(f"{path.name} holds NaN or infinite numbers ({bad}). Take it out of the grid, or train again.")
    return out


def combined(paths: Sequence[Path], files: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor] | None:
    """The tensors of the file that is the mean of ``files``; None where only laying each on the model at 1/n gives it.

    AtelierError for files that have no mean, and for such as don't belong together.
    """
    layers = [_layers(path, tensors) for path, tensors in zip(paths, files, strict=True)]
    if any(part.startswith(PRODUCTS) for one in layers for parts in one.values() for part in parts):
        return None
    out: dict[str, Tensor] = {}
    for stem in dict.fromkeys(stem for one in layers for stem in one):
        there = [(path, one[stem]) for path, one in zip(paths, layers, strict=True) if stem in one]
        try:
            mean = _mean(stem, there, len(files))
        except RuntimeError as error:
            raise AtelierError(
                f"which_epochs: {', '.join(path.name for path, _ in there)} have no mean, since {stem} has other sizes in some "
                "of them. Choose files of one training."
            ) from error
        out |= {stem + part: tensor for part, tensor in mean.items()}
    return out


def _layers(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    out: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = lora_file.PART.search(key) or NAMES.search(key)
        part = found[0] if found else ""
        if any(name in part for name in NO_MEAN):
            raise AtelierError(
                f"which_epochs: {path.name} is a DoRA ({key}), whose magnitudes are no sum, so that it has no mean. Take "
                "the mean out."
            )
        if part not in OF_PAIRS and part not in CHANGES and not part.startswith(PRODUCTS):
            raise AtelierError(
                f"which_epochs: {path.name} has parts that are not added to a weight, such as {key}, so that it has no mean. "
                "Take the mean out."
            )
        out.setdefault(key[: len(key) - len(part)], {})[part] = tensor
    return out


def _mean(stem: str, there: Sequence[tuple[Path, Parts]], count: int) -> dict[str, Tensor]:
    """The parts of a layer; a file of ``count`` that is not ``there`` leaves the layer as it is."""
    out = {}
    for part in CHANGES:
        if found := [parts[part].float() for _, parts in there if part in parts]:
            out[part] = torch.stack(found).sum(0) / count
    pairs = []
    for path, parts in there:
        names = next((pair for pair in lora_file.PAIRS if all(part in parts for part in pair)), None)
        used = {*(names or ()), ".lora_mid.weight", ".alpha", *CHANGES} if names else {".alpha", *CHANGES}
        if left := parts.keys() - used:
            raise AtelierError(f"which_epochs: {path.name} has no whole pair of factors in {stem}{min(left)}. Train again.")
        if names:
            pairs.append((names, *_factors(parts, *names)))
    if not pairs:
        return out
    of_down, of_up = pairs[0][0]
    ranks, scales = [len(down) for _, down, _, _ in pairs], [scale for *_, scale in pairs]
    rank = sum(ranks)
    if stem.startswith("lora_"):
        shared = next((scale for scale in scales if scale), 1.0)
        parted = [shares(scale / shared) for scale in scales]
        alpha = shared * rank / count
    else:  # PEFT's readers know no alpha: it is the rank, and all else is in the factors
        parted = [shares(scale / count) for scale in scales]
        alpha = float(rank)
    downs, ups = zip(
        *((_times(down, a), _times(up, b)) for (_, down, up, _), (a, b) in zip(pairs, parted, strict=True)), strict=True
    )
    joined = {of_down: torch.cat(_of_one_kind(downs)), of_up: torch.cat(_of_one_kind(ups), 1)}
    return {**joined, ".alpha": torch.tensor(alpha), **out}


def _factors(parts: Parts, of_down: str, of_up: str) -> tuple[Tensor, Tensor, float]:
    """(A, B, scale); a core between the two (LoCon's Tucker form) becomes part of A, as ``lora_file`` reads it."""
    down, up = parts[of_down], parts[of_up]
    if (mid := parts.get(".lora_mid.weight")) is not None:
        down = torch.einsum("ijhw,jc->ichw", mid.float(), down.float().flatten(1))
    return down, up, float(parts[".alpha"]) / len(down) if ".alpha" in parts else 1.0


def _times(tensor: Tensor, factor: float) -> Tensor:
    """In the format of ``tensor`` where that holds the product exactly, else in float32."""
    if factor == 1:
        return tensor
    exact = tensor.float() * factor
    stored = exact.to(tensor.dtype)
    return stored if torch.equal(stored.float(), exact) else exact


def _of_one_kind(tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(tensors) if len({tensor.dtype for tensor in tensors}) == 1 else [tensor.float() for tensor in tensors]


def keep(paths: Sequence[Path], name: str, folder: Path) -> Path:
    """Writes the mean of LoRA files to ``folder`` under a name of one's choice; another file of that name is not overwritten."""
    name = check_run_name(name.strip().removesuffix(".safetensors"))
    target = folder / f"{name}.safetensors"
    tensors = combined(paths, read_whole(paths))
    if tensors is None:
        raise AtelierError(
            f"lora: a mean of LoHa or LoKr files is none itself, so that it cannot be kept as one file. Lay {paths[0].name} and "
            f"the others on the model in {counted(len(paths), 'loader')}, each at {1 / len(paths):.4g} of the strength."
        )
    file = Serialised(tensors)
    hashes = content_hashes(file)
    if target.exists() or target.is_symlink():
        if not is_file(target):
            raise AtelierError(f"name: {target.name} is there already and is no file; choose another name.")
        if _stated(target) == hashes["sshs_model_hash"] and is_whole(target):
            return target
        raise AtelierError(f"name: {target.name} is there already and is another LoRA; choose another name.")
    file.write(target, {**described(read_header(paths[-1]).metadata, tensors, paths, name), **hashes})
    return target


def described(last: Mapping[str, str], tensors: Mapping[str, Tensor], paths: Sequence[Path], name: str) -> dict[str, str]:
    """Metadata of the mean: those of the last file but for what is not true of it; it is of no single epoch."""
    downs = [tensor for key, tensor in tensors.items() if key.endswith(tuple(down for down, _ in lora_file.PAIRS))]
    alphas = [round(float(tensor), 4) for key, tensor in tensors.items() if key.endswith(".alpha")]
    out = {key: value for key, value in last.items() if key not in UNTRUE}
    if downs:
        out |= {"ss_network_dim": _one_of([len(down) for down in downs]), "ss_network_alpha": _one_of(alphas)}
    if convolutions := [len(down) for down in downs if down.ndim == 4]:
        out |= _of_convolutions(out.get("ss_network_args", ""), _one_of(convolutions))
    titles = {"ss_output_name": name, **({"modelspec.title": name} if "modelspec.title" in out else {})}
    return {**out, **titles, MEAN_OF: json.dumps([path.name for path in paths], ensure_ascii=False)}


def _of_convolutions(args: str, rank: str) -> dict[str, str]:
    try:
        values = json.loads(args)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict) or "conv_dim" not in values:
        return {}
    return {"ss_network_args": json.dumps({**values, "conv_dim": rank}, ensure_ascii=False)}


def _one_of(values: Sequence[float]) -> str:
    return str(values[0]) if len(set(values)) == 1 else DYNAMIC


def _stated(path: Path) -> str:
    try:
        return read_header(path).metadata.get("sshs_model_hash", "")
    except AtelierError:
        return ""
