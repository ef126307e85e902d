"""Which layers of a model get an adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ..config import Targets
from ..errors import AtelierError
from .lora import is_conv, is_linear

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
