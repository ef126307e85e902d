"""Precomputed latents and conditioning from other nodes, taken as they are.

Both lie in the cache of latents and text encodings, under the hash of their content, and a sample holds the two keys. Nothing can
make them again but the node that stored them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..errors import AtelierError
from ..protocols import CanvasText
from ..tensors import references
from ..tensors.finite import first_lost
from .cache import TensorCache
from .samples import Dataset, Ready, Sample, counted

CELL = 8
"""Pixels of a latent's cell in each direction, where the latent doesn't say otherwise."""
Text = tuple[Tensor, dict[str, object]]


def store(latents: Sequence[object], conditioning: Sequence[CanvasText], cache: TensorCache) -> tuple[Sample, ...]:
    """One sample for every latent of a list of LATENT, with the conditioning of the same place in a list of CONDITIONING.

    A LATENT of a batch counts as its parts. One conditioning serves all latents; else there must be as many. AtelierError naming
    the input for an empty list, numbers that don't fit, latents of several kinds, NaN, or conditioning that cannot be trained on.
    """
    pictures, texts = _flat_latents(latents), _flat_texts(conditioning)
    if len(texts) not in (1, len(pictures)):
        raise AtelierError(
            f"conditioning: there are {len(texts)} for {counted(len(pictures), 'latent')}. Connect one for all, or one for each."
        )
    every = [packed(text, number) for number, text in enumerate(texts, start=1)]
    text_keys = [_put(cache, one) for one in every]
    samples = []
    for number, (latent, cell) in enumerate(pictures):
        key = _put(cache, {"latent": latent.float()})
        which = number if len(text_keys) > 1 else 0
        controls = len(references.listed(every[which]))
        cells = latent.shape[-1], latent.shape[-2]
        ready = Ready(key, text_keys[which], latent.shape[0], is_film=latent.ndim == 4, controls=controls, cells=cells)
        size = latent.shape[-1] * cell, latent.shape[-2] * cell
        samples.append(Sample(cache.path(key), *size, "", key, "", ready=ready))
    if not all(cache.has(sample.ready.latent) and cache.has(sample.ready.text) for sample in samples if sample.ready):
        raise AtelierError(
            f"latents: together they are more than the cache in {cache.folder} may hold. Connect fewer, or images."
        )
    return tuple(samples)


def check(dataset: Dataset, channels: int, frames: bool) -> None:
    """AtelierError if a latent isn't one of this model's, which has so many channels, and frames or none."""
    odd = next((s.ready.channels for s in dataset.samples if s.ready and s.ready.channels != channels), None)
    if odd is not None:
        raise AtelierError(
            f"latents: they have {counted(odd, 'channel')} and this model's have {channels}. Encode the "
            "pictures with the VAE of the model."
        )
    if not frames and any(s.ready and s.ready.is_film for s in dataset.samples):
        raise AtelierError(
            "latents: they have frames, as of a film, and this model's have none. Encode the pictures with the VAE of the model."
        )


def remarks(latents: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    """What the person should know about a list of LATENT that was taken."""
    masked = any("noise_mask" in entry for entry in latents)
    return ("the latents' noise masks are not used; all of each picture is learnt.",) if masked else ()


def lost() -> AtelierError:
    """The error for a key that the cache doesn't know any more."""
    return AtelierError(
        "latents: what Dataset From Nodes had stored is no longer in the cache. Queue again, and it is stored anew; what was "
        "trained is kept."
    )


def packed(text: Text, number: int) -> dict[str, Tensor]:
    """A conditioning as tensors: ``cond`` and all extras, numbers as tensors without dimensions; ``number`` is for the error.

    The latents of control pictures, which *Set Reference Latent* and the encoders of edit models add, are among them.
    """
    cond, extras = text
    values: dict[str, Tensor] = {"cond": cond}
    for name, value in extras.items():
        if isinstance(value, Tensor):
            values[name] = value
        elif isinstance(value, (bool, int, float)):
            values[name] = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        elif name == references.NAME and isinstance(value, (list, tuple)) and all(isinstance(v, Tensor) for v in value):
            values |= references.numbered(value)
        elif name == references.METHOD and isinstance(value, str):
            values[name] = torch.tensor(list(value.encode()), dtype=torch.uint8)
        elif value is not None:
            raise AtelierError(
                f"conditioning: number {number} carries {name!r} ({type(value).__name__}), which cannot be trained on. Take it "
                "from before the node that adds this."
            )
    if (lost := first_lost(values)) is not None:
        where = "" if lost == "cond" else f" in {lost!r}"
        raise AtelierError(
            f"conditioning: number {number} holds NaN or infinite numbers{where}. Encode the text anew, with another CLIP or "
            "with --fp32-text-enc."
        )
    return values


def unpacked(stored: Mapping[str, Tensor]) -> dict[str, Tensor | float | str]:
    """What ``packed`` took, numbers and words as such again."""
    return {name: _value(name, tensor) for name, tensor in stored.items()}


def _value(name: str, tensor: Tensor) -> Tensor | float | str:
    if name == references.METHOD:
        return bytes(tensor.tolist()).decode()
    return tensor if tensor.ndim else tensor.item()


def _put(cache: TensorCache, tensors: Mapping[str, Tensor]) -> str:
    """The key of the tensors' content, under which they are stored."""
    values = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    key = hashlib.sha256(save(values)).hexdigest()
    if not cache.has(key):
        cache.put(key, values)
    return key


def _flat_latents(latents: Sequence[Any]) -> list[tuple[Tensor, int]]:
    """(latent (C, H, W), or (C, T, H, W) of a video VAE, and pixels a cell) in order, all of one kind."""
    out: list[tuple[Tensor, int]] = []
    for entry in latents:
        batch = entry.get("samples") if isinstance(entry, Mapping) else None
        if not isinstance(batch, Tensor) or batch.ndim not in (4, 5):
            raise AtelierError(
                f"latents: number {len(out) + 1} is not the latent of a picture. Connect what a VAE Encode node gives."
            )
        out += [(latent, int(entry.get("downscale_ratio_spacial") or CELL)) for latent in batch]
    if not out:
        raise AtelierError("latents: the list is empty. Connect a node that gives at least one.")
    first = out[0][0].shape[:-2]
    for number, (latent, _) in enumerate(out, start=1):
        if latent.shape[:-2] != first:
            raise AtelierError(
                f"latents: number {number} has {_layers(latent.shape[:-2])} and number 1 has {_layers(first)}. Encode all "
                "pictures with one VAE."
            )
        if not latent.isfinite().all():
            raise AtelierError(
                f"latents: number {number} holds NaN or infinite numbers. Try another VAE, or start with --fp32-vae."
            )
    return out


def _layers(shape: Sequence[int]) -> str:
    return counted(shape[0], "channel") + (f" in {counted(shape[1], 'frame')}" if len(shape) > 1 else "")


def _flat_texts(conditioning: Sequence[CanvasText]) -> list[Text]:
    """(cond (1, tokens, width), extras) in order."""
    out: list[Text] = []
    for entry in conditioning:
        for text in entry if isinstance(entry, (list, tuple)) else [entry]:
            cond = text[0] if isinstance(text, (list, tuple)) and len(text) == 2 and isinstance(text[1], Mapping) else None
            if not isinstance(cond, Tensor) or cond.ndim != 3 or len(cond) != 1:
                raise AtelierError(
                    f"conditioning: number {len(out) + 1} is not the encoding of one text. Connect what a CLIP Text Encode "
                    "node gives."
                )
            out.append((cond, text[1]))
    if not out:
        raise AtelierError("conditioning: the list is empty. Connect one for all latents, or one for each.")
    first = out[0][0].shape[-1]
    for number, (cond, _) in enumerate(out, start=1):
        if cond.shape[-1] != first:
            raise AtelierError(
                f"conditioning: number {number} is encoded in vectors of {cond.shape[-1]} numbers and number 1 in vectors of "
                f"{first}. Encode all captions with one CLIP."
            )
    return out
