"""LoRA file of a grid column: read once, to stand beside the layers, or to be merged by the host.

Beside the layers several files and strengths share a batch, and the model's weights are never touched. That is done for plain
LoRA files of which every part is understood and every layer answers; all else goes the host's own way, one strength at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .. import host
from ..errors import AtelierError, counted
from ..network import lora_file
from ..network.lora import LoRALayer
from ..network.scope import TEXT, Layers, Names
from ..protocols import CanvasText
from . import mean
from .side_by_side import Branches

log = logging.getLogger("lora-atelier")


class Lora:
    """One file, or the mean of several, on one model and its text encoder; ``beside``: it can stand beside the layers."""

    def __init__(self, paths: Sequence[Path], model: host.Model, text: host.TextEncoder, layers: Layers, names: Names):
        self.name, self.model, self.text = ", ".join(path.name for path in paths), model, text
        self.files: list[dict[str, Tensor]] = mean.read_whole(paths)
        """What the host lays on the model, each with an equal share of the strength: one file's tensors where that can be."""
        one = mean.combined(paths, self.files) if len(paths) > 1 else self.files[0]
        self.files = self.files if one is None else [one]
        branches = {} if one is None else _plain(self.name, one, layers, names)
        self.beside = bool(branches) and not model.has_copies
        self.of_text: Branches = {name: branch for name, branch in branches.items() if name.startswith(TEXT)}
        self.of_model: Branches = {name: branch for name, branch in branches.items() if name not in self.of_text}

    def merged(self, strength: float, text_strength: float) -> tuple[host.Model, host.TextEncoder]:
        """Model and text encoder as the host's own loader makes them of this file.

        AtelierError when nothing in the file belongs to either.
        """
        count = len(self.files)
        with torch.inference_mode():
            model, clip = self.model.patcher, self.text.clip
            for tensors in self.files:
                model, clip = host.Model(model).with_lora(clip, tensors, strength / count, text_strength / count)
        changed = host.patched(self.model.patcher, model) + host.patched(self.text.clip.patcher, clip.patcher)
        if not changed:
            keys = {key for tensors in self.files for key in tensors}
            count = len({key[: part.start()] if (part := lora_file.PART.search(key)) else key for key in keys})
            raise AtelierError(
                f"{self.name}: none of its {counted(count, 'layer')} belongs to this model ({self.model.family}); it was "
                "made for another."
            )
        return host.Model(model), host.TextEncoder(clip, self.text.syntax)


def join(conditionings: Sequence[CanvasText]) -> CanvasText | None:
    """The conditionings of several pictures as one with a row for each; None if they cannot be put together."""
    first = conditionings[0]
    if all(one is first for one in conditionings):
        return first
    if any(len(one) != 1 for one in conditionings):
        return None
    texts, extras = [one[0][0] for one in conditionings], [one[0][1] for one in conditionings]
    if any(text.shape != texts[0].shape for text in texts) or any(extra.keys() != extras[0].keys() for extra in extras):
        return None
    joined = {}
    for name in extras[0]:
        values = [extra[name] for extra in extras]
        if name == "pooled_output" and all(isinstance(value, Tensor) for value in values):
            joined[name] = torch.cat(values)
        elif all(value is values[0] or value is None for value in values):
            joined[name] = values[0]
        else:
            return None
    return [[torch.cat(texts), joined]]


def _plain(name: str, tensors: Mapping[str, Tensor], layers: Layers, names: Names) -> dict[str, LoRALayer]:
    """The file's branches, none unless they are all that it holds and all plain LoRA; AtelierError for another model's file."""
    try:
        branches, unknown = lora_file.read(tensors, layers, names)
    except (ValueError, AtelierError) as error:
        if "other sizes" in str(error):  # the host would only log it, and draw the cell without these layers
            raise AtelierError(f"{name} was made for another model: {error}.") from error
        log.info("%s: %s; the host applies it", name, error)
        return {}
    plain = {n: branch for n, branch in branches.items() if isinstance(branch, LoRALayer) and branch.magnitude is None}
    if unknown or not branches or len(plain) < len(branches):
        what = f"parts such as {unknown[0]}" if unknown else "another algorithm than LoRA"
        log.info("%s: it has %s; the host applies it, one strength at a time", name, what)
        return {}
    return plain


def passed_over(path: Path, names: Names) -> str:
    """Which parts of a file belong to no layer of the model or text encoder, in words; empty where all do.

    Also empty where none does: either the host knows the file in another form, or ``merged`` says that it is another model's.
    """
    try:
        with safe_open(path, framework="pt") as file:
            keys = list(file.keys())
    except (OSError, SafetensorError):
        return ""  # which opening it will tell
    known = {name for those in names.values() for name in map(str, those)}
    stems: dict[str, bool] = {}
    for key in keys:
        dots = [place for place, character in enumerate(key) if character == "."]
        stem = next((key[:place] for place in reversed([*dots, len(key)]) if key[:place] in known), None)
        part = lora_file.PART.search(key)
        stems[stem or (key[: part.start()] if part else key)] = stem is not None
    unknown = [stem for stem, is_known in stems.items() if not is_known]
    if not unknown or len(unknown) == len(stems):
        return ""
    return (
        f"{len(unknown)} of the {len(stems)} layers in the file, such as {unknown[0]}, "
        f"{'is' if len(unknown) == 1 else 'are'} not in this model or text encoder; "
        "they are not shown, and the file may have been made for another model."
    )
