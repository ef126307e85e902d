"""Scope of an adapter: all adaptable layers under one set of names, the text encoder's behind ``text_encoder.``."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..config import TextEncoders, TrainingConfig
from ..errors import AtelierError
from ..families import UNKNOWN, Family
from ..protocols import LayerOwner
from .adapter import Adapter
from .targets import select

TEXT = "text_encoder."
# CLIP and language models say self_attn and mlp, T5 SelfAttention and DenseReluDense, Jina's CLIP mixer; BERT has them in layer.
TEXT_LAYERS = re.compile(r"\.(self_attn|mlp|SelfAttention|DenseReluDense|mixer)\.|\.encoder\.layer\.\d+\.")
EYES = re.compile(r"(^|\.)(visual|vision\w*)\.")
CLIPS = ("clip_l.", "clip_g.", "clip_h.")

Layers = dict[str, nn.Module]
Names = dict[str, list[str]]


def adaptable_layers(model: LayerOwner, text: LayerOwner | None) -> tuple[Layers, Names]:
    """(layers, the names that each may have in a file) of the model and, if given, of the text encoder."""
    names = model.lora_names()
    layers = {name: layer for name, layer in model.layers().items() if name in names}
    if text is not None:
        known = text.lora_names()
        layers |= {TEXT + name: layer for name, layer in text.layers().items() if name in known}
        names |= {TEXT + name: found for name, found in known.items()}
    return layers, names


def trained_layers(
    layers: Mapping[str, nn.Module], config: TrainingConfig, family: Family = UNKNOWN, controls: bool = False
) -> Layers:
    """What ``config`` trains of ``adaptable_layers``, but for layers of the model's ``family`` that nothing can be learnt in.

    ``controls``: the model is shown control pictures.
    """
    of_model = {name: layer for name, layer in layers.items() if not name.startswith(TEXT)}
    chosen = select(of_model, config.network) if config.network.trains_model else {}
    chosen = {name: chosen[name] for name in family.without_untrainable(of_model, controls) if name in chosen}
    return {**chosen, **text_layers(layers, config.text.encoders)}


def text_layers(layers: Mapping[str, nn.Module], encoders: TextEncoders) -> Layers:
    """Attention and feed-forward layers of the chosen encoders."""
    if encoders == "none":
        return {}
    out = {}
    for name, layer in layers.items():
        inner = name.removeprefix(TEXT)
        reads = name.startswith(TEXT) and TEXT_LAYERS.search(inner) and not EYES.search(inner)
        if reads and (encoders == "all" or inner.startswith(CLIPS)):
            out[name] = layer
    if not out:
        kind = "CLIP-L or CLIP-G" if encoders == "clip" else "text encoder that can be trained"
        raise AtelierError(f"text encoder: the connected clip holds no {kind}. Set it to none, or connect another clip.")
    return out


def set_text_part(adapter: Adapter, config: TrainingConfig) -> None:
    """The text encoder's own rate, as a factor on the optimizer's, and its own dropout."""
    for name, branch in adapter.branches.items():
        if name.startswith(TEXT):
            if config.text.learning_rate > 0:
                branch.rate *= config.text.learning_rate / config.optimizer.peak
            if config.text.dropout >= 0:
                branch.dropout = config.text.dropout
