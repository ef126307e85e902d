"""What text encoders of edit models are shown of control pictures, beside the host's own nodes for them."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.cpu_only("a text's tokens are the same on every device")
NODES = {  # the encoder's tokenizer: (its module, the host's node, what the node is called with)
    "QwenImageTokenizer": (
        "qwen_image", "nodes_qwen.TextEncodeQwenImageEditPlus", lambda one, two: {"image1": one, "image2": two},
    ),
    "BooguTokenizer": (
        "boogu", "nodes_boogu.TextEncodeBooguEdit",
        lambda one, two: {"negative_prompt": "", "images": {"image_1": one, "image_2": two}},
    ),
    "MageFlowTokenizer": (
        "mage_flow", "nodes_mage.TextEncodeMageFlowEdit", lambda one, two: {"images": {"image_1": one, "image_2": two}},
    ),
}  # fmt: skip
SAID = "make the (red:1.3) house blue, embedding:easynegative"


class Listening:
    """A CLIP of nothing but a tokenizer, that keeps what it is asked to encode."""

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.heard = tokenizer, list[Any]()

    def tokenize(self, text: str, **named: Any) -> Any:
        return self.tokenizer.tokenize_with_weights(text, **named)

    def encode_from_tokens_scheduled(self, tokens: Any) -> Any:
        self.heard.append(tokens)
        return [[torch.zeros(1, 1, 1), {}]]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.shape == other.shape and torch.allclose(one, other, atol=1e-6)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other


@pytest.mark.parametrize("kind", NODES)
def test_an_encoder_is_shown_what_the_hosts_node_shows_it(kind: str, comfyui: object) -> None:
    from lora_atelier.training.host.seeing import eyes_of
    from lora_atelier.training.host.text import TextEncoder

    module, node, given = NODES[kind]
    try:
        tokenizer = getattr(importlib.import_module(f"comfy.text_encoders.{module}"), kind)()
        where, name = node.split(".")
        nodes = importlib.import_module(f"comfy_extras.{where}")
    except ImportError:
        pytest.skip(f"this ComfyUI has no {node}")
    stream = torch.Generator().manual_seed(3)
    pictures = [torch.rand(1, height, width, 3, generator=stream) for height, width in ((500, 700), (480, 320))]
    said = "make the red house blue"
    theirs = Listening(tokenizer)
    getattr(nodes, name).execute(clip=theirs, prompt=said, vae=None, **given(*pictures))
    ours = Listening(tokenizer)
    eyes = eyes_of(ours)
    assert eyes is not None
    assert same(eyes.tokens(ours, said, pictures), theirs.heard[0])
    encoder = TextEncoder(SimpleNamespace(tokenizer=tokenizer, tokenize=ours.tokenize, patcher=None))
    assert encoder.sees
    plain = encoder.tokenize(said, pictures)
    assert same(plain, theirs.heard[0]), "plain text says the same where nothing in it means anything else"
    letters = encoder.tokenize(SAID, pictures)
    shown = [token[0] for rows in letters.values() for row in rows for token in row if isinstance(token[0], dict)]
    assert [one["type"] for one in shown] == ["image", "image"], "nothing in a caption is read as a file or a picture"


def test_others_read_the_text_alone(comfyui: object) -> None:
    from lora_atelier.training.host.seeing import eyes_of

    assert eyes_of(SimpleNamespace(tokenizer=object())) is None
