"""LoRA file of a grid column: read once, with its strength as a number beside the layers, or merged by the host.

Beside the layers several strengths share a batch, and the model's weights are never touched. That is done for plain LoRA files of
which every part is understood and every layer answers; all else goes the host's own way, one strength at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .. import host
from ..errors import AtelierError
from ..files import read_tensors
from ..network import lora_file
from ..network.adapter import Adapter
from ..network.adapter_layer import AdapterLayer, fit_rows
from ..network.lora import LoRALayer
from ..network.scope import TEXT, Layers, Names
from ..protocols import CanvasText

log = logging.getLogger("lora-atelier")


class UnusedLayers(RuntimeError):
    """Layers that the file changes were passed by, so what was drawn is not what the file says."""


class Shown(Adapter):
    """An adapter that is looked at and not trained: a plain branch is added to the layer's own output, without a copy of it."""

    def _hook(self, branch: AdapterLayer) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor | None]:
        general = super()._hook(branch)
        if not isinstance(branch, LoRALayer) or branch.conv is not None or branch.magnitude is not None:
            return general
        prepared: dict[torch.dtype, tuple[Tensor, Tensor]] = {}

        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            x, strength = inputs[0], self.strength
            if torch.is_grad_enabled() or output.dtype != x.dtype or not output.is_contiguous():
                return general(layer, inputs, output)
            if not isinstance(strength, Tensor) and strength == 0:
                return None
            if x.dtype not in prepared:
                prepared[x.dtype] = branch.down.detach().to(x.dtype), branch.up.detach().to(x.dtype).t()
            down, up = prepared[x.dtype]
            narrow, alpha = F.linear(x, down), branch.scale
            if isinstance(strength, Tensor):
                narrow *= fit_rows(strength, narrow)
            else:
                alpha *= strength
            output.view(-1, output.shape[-1]).addmm_(narrow.view(-1, branch.rank), up, alpha=alpha)
            return None

        return hook


class Lora:
    """One file on one model and its text encoder."""

    def __init__(self, path: Path, model: host.Model, text: host.TextEncoder, layers: Layers, names: Names):
        self.path, self.model, self.text, self.layers = path, model, text, layers
        self.tensors = read_tensors(path, "take it out of the grid, or train again")
        if (bad := lora_file.lost(self.tensors)) is not None:
            raise AtelierError(f"{path.name} holds NaN or infinite numbers ({bad}). Take it out of the grid, or train again.")
        branches, self.beside = _plain(path, self.tensors, layers, names)
        self.beside = self.beside and not model.has_copies
        of_text = {name: branch for name, branch in branches.items() if name.startswith(TEXT)}
        # What the host merges may hold parts for the text encoder that are not known here.
        self.reads_text = bool(of_text) or not self.beside
        self._of_model = Shown({name: b for name, b in branches.items() if name not in of_text}).to(model.device)
        self._of_text = Shown(of_text).to(text.clip.patcher.load_device)
        self._encoded: dict[tuple[str, float], CanvasText] = {}

    def encode(self, prompt: str, strength: float) -> CanvasText:
        """The prompt as the text encoder reads it with this LoRA, encoded once; only while ``beside``."""
        if (prompt, strength) not in self._encoded:
            self._encoded[prompt, strength] = self._encode(prompt, strength)
        return self._encoded[prompt, strength]

    def _encode(self, prompt: str, strength: float) -> CanvasText:
        with _all_used(self._of_text, self.layers), self._of_text.attached(self.layers):
            self._of_text.strength = strength
            return self.text.for_sampling(prompt)

    @contextmanager
    def attached(self, strengths: Sequence[float]) -> Iterator[Strengths]:
        """The model with the LoRA beside it, picture by picture in its own strength; only while ``beside``.

        UnusedLayers when the block ended well, yet some layer of the file was never asked.
        """
        with ExitStack() as stack:
            rows = Strengths(self._of_model, strengths, self.model.device)
            stack.enter_context(self.model.each_call(rows.spread))
            stack.enter_context(_all_used(self._of_model, self.layers))
            stack.enter_context(self._of_model.attached(self.layers))
            yield rows

    def merged(self, strength: float, text_strength: float) -> tuple[host.Model, host.TextEncoder]:
        """Model and text encoder as the host's own loader makes them of this file.

        AtelierError when nothing in the file belongs to either.
        """
        with torch.inference_mode():
            model, clip = self.model.with_lora(self.text.clip, self.tensors, strength, text_strength)
        changed = host.patched(self.model.patcher, model) + host.patched(self.text.clip.patcher, clip.patcher)
        if not changed:
            count = len({key[: part.start()] if (part := lora_file.PART.search(key)) else key for key in self.tensors})
            raise AtelierError(
                f"{self.path.name}: none of its {count} layers belongs to this model ({self.model.family}); it was "
                "made for another."
            )
        return host.Model(model), host.TextEncoder(clip, self.text.syntax)


class Strengths:
    """One strength a picture, as the adapter needs them in the pass of the network that comes next."""

    def __init__(self, adapter: Adapter, strengths: Sequence[float], device: torch.device):
        self._adapter, self._strengths = adapter, list(strengths)
        self._all = torch.tensor(self._strengths, device=device)
        self.choose(range(len(strengths)))

    def choose(self, rows: Sequence[int]) -> None:
        """The next calls of the model are for these pictures."""
        self._rows = list(rows)
        self._chosen = self._all[self._rows]

    def spread(self, batch: int) -> None:
        """The host puts the chosen pictures one, two or more times into a pass of ``batch`` rows, each time all in order."""
        times, rest = divmod(batch, len(self._rows))
        if rest or not times:
            raise RuntimeError(f"{len(self._rows)} pictures do not fit a pass of {batch}")
        if len({self._strengths[row] for row in self._rows}) == 1:
            self._adapter.strength = self._strengths[self._rows[0]]
        else:
            self._adapter.strength = self._chosen.repeat(times)


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


def _plain(path: Path, tensors: Mapping[str, Tensor], layers: Layers, names: Names) -> tuple[dict[str, AdapterLayer], bool]:
    """(the file's branches, whether they are all that it holds and all plain LoRA); AtelierError for another model's file."""
    try:
        branches, unknown = lora_file.read(tensors, layers, names)
    except (ValueError, AtelierError) as error:
        if "other sizes" in str(error):  # the host would only log it, and draw the cell without these layers
            raise AtelierError(f"{path.name} was made for another model: {error}.") from error
        log.info("%s: %s; the host applies it", path.name, error)
        return {}, False
    plain = all(isinstance(branch, LoRALayer) and branch.magnitude is None for branch in branches.values())
    if unknown or not branches or not plain:
        what = f"parts such as {unknown[0]}" if unknown else "another algorithm than LoRA"
        log.info("%s: it has %s; the host applies it, one strength at a time", path.name, what)
        return {}, False
    return branches, True


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
        f"{len(unknown)} of the {len(stems)} layers in the file, such as {unknown[0]}, are not in this model or text encoder; "
        "they are not shown, and the file may have been made for another model."
    )


@contextmanager
def _all_used(adapter: Adapter, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """UnusedLayers at the end if a layer of ``adapter`` was never called: a compiled or rebuilt network passes hooks by."""
    left = {name: layers[name] for name in adapter.branches}
    handles: dict[str, torch.utils.hooks.RemovableHandle] = {}

    def seen(name: str) -> None:
        left.pop(name, None)
        handles[name].remove()

    for name, layer in left.items():
        handles[name] = layer.register_forward_hook(lambda _m, _i, _o, name=name: seen(name))
    try:
        yield
        if left:
            raise UnusedLayers(f"{len(left)} layers were passed by, such as {next(iter(left))}")
    finally:
        for handle in handles.values():
            handle.remove()
