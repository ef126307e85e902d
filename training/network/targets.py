"""Target layers: which layers of a model get an adapter, and of which rank, scale and rate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..config import NetworkConfig, Targets
from ..config.layer_rules import parse_patterns, parse_rules
from ..errors import AtelierError
from .base_layer import is_conv, is_linear, weight_shape

# Components of a layer's dotted name. UNets say attn1 / to_q / ff.net, DiTs qkv / proj / mlp; single-stream blocks fuse both.
ATTENTION = re.compile(r"(^|[._])(attn\d*|attention|self_attn|cross_attn|[a-z]+_attn)([._]|$)|\.(to_[qkv]|to_out)(\.|$)")
FEED_FORWARD = re.compile(r"(^|[._])(ff|ffn|mlp|feed_forward|ff_context|txt_mlp|img_mlp)([._]|$)|\.(linear1|linear2)$")
TRANSFORMER_PROJECTIONS = re.compile(r"\.(proj_in|proj_out)$")
# Embedders and modulation of the noise level, the text and the size: a LoRA there fits the noise, not the picture.
EMBEDDERS = re.compile(r"(^|\.)(time_embed|label_emb|emb_layers|t_embedder|y_embedder|adaLN_modulation|modulation|\w*_mod)(\.|$)")


def choose(layers: Mapping[str, nn.Module], preset: Targets) -> dict[str, nn.Module]:
    """The layers of ``preset`` among ``layers`` (by dotted name), in the model's own order.

    ``attention`` also takes the projections into and out of a UNet's transformer blocks, as PEFT and kohya do with
    ``Transformer2DModel``. ``all linear`` leaves the embedders out; ``all`` adds convolutions.
    """
    out = {}
    for name, layer in layers.items():
        attention = bool(ATTENTION.search(name) or TRANSFORMER_PROJECTIONS.search(name))
        feed_forward = bool(FEED_FORWARD.search(name))
        embedder = bool(EMBEDDERS.search(name))
        wanted = {
            "attention": is_linear(layer) and attention and not embedder,
            "attention + feed-forward": is_linear(layer) and (attention or feed_forward) and not embedder,
            "all linear": is_linear(layer) and not embedder,
            "all": (is_linear(layer) or is_conv(layer)) and not embedder,
        }[preset]
        if wanted:
            out[name] = layer
    if not out:
        raise AtelierError(f"targets: the loaded model has no layer of the kind {preset!r}; try 'all linear'.")
    return out


def select(layers: Mapping[str, nn.Module], config: NetworkConfig) -> dict[str, nn.Module]:
    """The layers that ``config`` names: those of the preset, or those that ``include`` matches, without ``exclude``'s.

    Raises AtelierError for a pattern that matches none, since it is misspelt or meant for another model.
    """
    known = {name: layer for name, layer in layers.items() if is_linear(layer) or is_conv(layer)}
    include, exclude = parse_patterns("include", config.include), parse_patterns("exclude", config.exclude)
    for pattern in (*include, *exclude):
        if not any(pattern.matches(name) for name in known):
            raise AtelierError(f"{pattern.where}: {pattern.text!r} matches no layer of the loaded model{_for_example(known)}.")
    chosen = choose(layers, config.targets) if not include else known
    out = {
        name: layer
        for name, layer in chosen.items()
        if (not include or any(p.matches(name) for p in include)) and not any(p.matches(name) for p in exclude)
    }
    if not out:
        raise AtelierError("exclude: it leaves no layer to train; remove a line.")
    return out


@dataclass(frozen=True)
class LayerSettings:
    """What one layer's branch is made with."""

    rank: int
    scale: float
    """alpha / rank, or alpha / sqrt(rank) (rs-LoRA; Kalajdzievski 2023, arXiv 2312.03732)."""
    rate: float
    """Factor on the learning rate."""


def settings(
    layers: Mapping[str, nn.Module], config: NetworkConfig, ranks: Mapping[str, int] | None = None
) -> dict[str, LayerSettings]:
    """Rank, scale and rate of every layer; a later rule outranks an earlier one, setting by setting.

    Where only a rank is given, alpha keeps its ratio to the rank. ``ranks`` are some layers' own, which outrank all. Raises
    AtelierError for a rule that matches none of ``layers``.
    """
    rules = parse_rules(config.rules)
    for rule in rules:
        if not any(rule.pattern.matches(name) for name in layers):
            raise AtelierError(
                f"{rule.pattern.where}: {rule.pattern.text!r} matches no layer that is trained{_for_example(layers)}."
            )
    out = {}
    for name, layer in layers.items():
        rank, ratio, rate = _defaults(layer, config)
        alpha: float | None = None
        for rule in rules:
            if rule.pattern.matches(name):
                rank = rule.rank if rule.rank is not None else rank
                alpha = rule.alpha if rule.alpha is not None else alpha
                rate = rule.rate if rule.rate is not None else rate
        rank = ranks.get(name, rank) if ranks else rank
        alpha = ratio * rank if alpha is None else alpha or rank
        out[name] = LayerSettings(rank, alpha / (math.sqrt(rank) if config.rank_stabilised else rank), rate)
    return out


def _defaults(layer: nn.Module, config: NetworkConfig) -> tuple[int, float, float]:
    """(rank, alpha / rank, rate) before any rule. Convolutions of one pixel count as linear, as in kohya's LoCon."""
    ratio = (config.alpha or config.rank) / config.rank
    if not is_conv(layer) or math.prod(weight_shape(layer)[2:]) == 1:
        return config.rank, ratio, 1.0
    rank = config.conv_rank or config.rank
    return rank, config.conv_alpha / rank if config.conv_alpha > 0 else ratio, 1.0


def _for_example(layers: Mapping[str, nn.Module]) -> str:
    return f"; its layers have names such as {next(iter(layers))}" if layers else ""
