"""Warm start from an existing LoRA file."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ..config import NetworkConfig
from ..errors import AtelierError
from ..files import read_tensors
from ..seeding import first_weights
from .adapter import Adapter, build
from .adapter_layer import AdapterLayer
from .dropout import Dropout
from .lora_file import lost, read
from .targets import settings

log = logging.getLogger("lora-atelier")
TEXT_ENCODER = ("lora_te", "text_encoder", "lora_prior_te")
TEXT = "text_encoder."
"""In front of the names of the text encoder's layers."""


def start_from(
    path: Path,
    layers: Mapping[str, nn.Module],
    names: Mapping[str, Sequence[str]],
    config: NetworkConfig,
    wanted_layers: Mapping[str, nn.Module] | None = None,
    seed: int = 0,
) -> Adapter:
    """The adapter of the file at ``path``, to be trained on with the settings of ``config``.

    ``layers`` are all that may carry an adapter, whatever the targets, with the ``names`` under which the host finds them. The
    adapter has the file's layers and ranks; alpha keeps its configured ratio to the rank (a rule's alpha counts as it stands),
    and the factors are rescaled so that the output is the file's. With weight decomposition a plain file gets magnitudes.

    ``wanted_layers`` are those that a new adapter would have. If the file holds nothing of the model, or nothing of the text
    encoder, that part of them begins anew, from ``seed``.

    Raises AtelierError when the file cannot be read, belongs to another model or holds another algorithm.
    """
    tensors = read_tensors(path, "choose another LoRA, or none", "start from")
    if (bad := lost(tensors)) is not None:
        raise AtelierError(f"start from: {path.name} holds NaN or infinite numbers ({bad}). Choose another LoRA, or none.")
    try:
        branches, unused = read(tensors, layers, names)
    except ValueError as error:
        raise AtelierError(f"start from: {path.name} does not belong to this model: {error}.") from error
    text = [stem for stem in unused if stem.startswith(TEXT_ENCODER)]
    foreign = [stem for stem in unused if stem not in text]
    if foreign or not branches:
        what = f"it has {len(foreign)} parts that this model lacks, such as {foreign[0]}" if foreign else "no layer is in both"
        raise AtelierError(f"start from: {path.name} does not belong to this model: {what}. Choose a LoRA made for it.")
    if text:
        log.warning("start from: the text encoder's part of %s (%d layers) is left out", path.name, len(text))
    _refuse_another_algorithm(path, branches, config)
    ranks = {name: branch.rank for name, branch in branches.items()}
    anew = _missing_parts(path, branches, wanted_layers or {})
    wanted = settings({name: layers[name] for name in branches} | anew, config, ranks)
    for name, branch in branches.items():
        branch.rescale(wanted[name].scale)
        branch.rate = wanted[name].rate
        if config.weight_decompose and branch.magnitude is None:
            branch.decompose(layers[name])
    generator = first_weights(seed)
    branches |= {name: build(layer, wanted[name], config, generator) for name, layer in anew.items()}
    return Adapter(branches, Dropout(config.dropout, config.rank_dropout, config.module_dropout), config.lora_plus_ratio)


def _missing_parts(path: Path, branches: Mapping[str, AdapterLayer], wanted: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The wanted layers of the model if the file has none of the model, and likewise of the text encoder."""
    anew: dict[str, nn.Module] = {}
    for is_text, part in ((False, "model"), (True, "text encoder")):
        layers = {name: layer for name, layer in wanted.items() if name.startswith(TEXT) == is_text}
        if layers and not any(name.startswith(TEXT) == is_text for name in branches):
            log.warning("start from: %s holds nothing of the %s, whose part begins anew", path.name, part)
            anew |= layers
    return anew


def _refuse_another_algorithm(path: Path, branches: Mapping[str, AdapterLayer], config: NetworkConfig) -> None:
    found = sorted({branch.algorithm for branch in branches.values()})
    if found != [config.algorithm]:
        raise AtelierError(
            f"start from: {path.name} is a {' and '.join(found)}, and algorithm is {config.algorithm}. "
            f"Set algorithm to {found[0]}, or choose another file."
        )
    if not config.weight_decompose and any(branch.magnitude is not None for branch in branches.values()):
        raise AtelierError(f"start from: {path.name} is a DoRA. Switch weight decompose on, or choose another file.")
